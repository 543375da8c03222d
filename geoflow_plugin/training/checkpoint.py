"""A file from which a fit goes on as if nothing had happened."""

import io
import time
from pathlib import Path

import torch

from geoflow_plugin.training import processes
from geoflow_plugin.training.files import as_path, write_atomically

__all__ = ["Checkpoint"]

_COST = 20  # writing may take a twentieth of the time


class Checkpoint:
    """A file of tensors and plain containers, written whole or not at all.

    Read without pickle, so that a file from elsewhere runs no code. It belongs to one fit:
    ``identity`` and the shapes of the weights have to agree.

    Parameters
    ----------
    path : str or os.PathLike or None
        None writes nothing.
    resume : bool
        Read the file, if it is there, and put its tensors into ``owner``.
    owner : nn.Module
        All of its tensors are kept, those that are not trained as well.
    identity : dict
        Plain values by which the file is recognised.

    Attributes
    ----------
    found : dict or None
        The snapshot that was in the file.

    Raises
    ------
    TypeError, ValueError
        For no path or one that no file can be at, a file that cannot be read, or one of
        another fit.
    """

    def __init__(self, path, resume, owner, identity):
        self.owner, self.found = owner, None
        self.path: Path | None = None
        if not isinstance(resume, bool):
            raise TypeError(f"resume: expected a bool, got {resume!r}.")
        if path is None:
            if resume:
                raise ValueError("resume: expected a checkpoint= to resume from, got none.")
            return
        # through links, which are not to be replaced
        self.path = as_path(path, "checkpoint").resolve()
        there = self.path.exists()
        if (there and not self.path.is_file()) or not self.path.parent.is_dir():
            raise ValueError(f"checkpoint: expected a file in a folder, got {str(path)!r}.")
        weights = {n: [str(p.dtype), *p.shape] for n, p in owner.named_parameters()}
        self.identity = {**identity, "weights": weights}
        self.written, self.due = None, -float("inf")
        if resume:
            self._read(self.path)

    def _read(self, path):
        there = processes.rank() == 0 and path.exists()
        content = processes.first(path.read_bytes() if there else None)
        if content is None:
            processes.warn(f"fit: no checkpoint at {path} yet; starting anew.")
            return
        try:
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            theirs = dict(found["identity"])
            keep = found["owner"]
        except Exception as error:  # whatever torch says of a file that is no checkpoint
            raise ValueError(
                f"checkpoint: {path} is no checkpoint of a fit, or is damaged."
            ) from error
        for name, ours in self.identity.items():
            if theirs.get(name) != ours:
                raise ValueError(
                    f"checkpoint: {path} belongs to another fit, with other {name}: "
                    f"expected {_short(ours)}, got {_short(theirs.get(name))}. Resume with "
                    "the arguments that it was written with, or use another path."
                )
        load_tensors(self.owner, keep)
        self.found = found["snapshot"]

    def restore(self, state, batches):
        """Put what was found into a ``State`` and ``Batches``; False if nothing was.

        Raises
        ------
        ValueError
            For a file of another training problem.
        """
        if self.found is None:
            return False
        try:
            tensors = self.found["state"]["tensors"]
            if tensors.keys() != named_tensors(state.module).keys():
                raise KeyError("tensors")
            state.restore(self.found["state"])
            batches.place = self.found["place"]
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"checkpoint: {self.path} belongs to another training problem, or is damaged."
            ) from error
        return True

    def write(self, snapshot, last=False):
        """Write a snapshot if the last one is long enough ago, or there is no other."""
        began = time.monotonic()
        if self.path is None or snapshot is self.written or processes.rank() != 0:
            return
        if began < self.due and not last:
            return
        file = io.BytesIO()
        owner = named_tensors(self.owner)
        torch.save({"identity": self.identity, "owner": owner, "snapshot": snapshot}, file)
        try:
            write_atomically(self.path, file.getbuffer())
            self.written = snapshot
        except OSError as error:
            processes.warn(
                f"fit: {self.path} could not be written ({error}); training goes on, with "
                "the model in memory."
            )
        now = time.monotonic()
        self.due = now + _COST * (now - began)


def named_tensors(module):
    """Every parameter and buffer of a module by its name."""
    return {
        name: tensor.detach()
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }


@torch.no_grad()
def load_tensors(module, values):
    """Copy values, by name, into parameters and buffers of the same shape."""
    for name, tensor in named_tensors(module).items():
        value = values.get(name)
        if value is not None and value.shape == tensor.shape:
            tensor.copy_(value)


def _short(value):
    text = repr(value)
    return text if len(text) < 200 else text[:200] + " ..."
