"""Files of flows and of what they are made of: safe to read, whoever wrote them."""

import torch
from torch import nn

from geoflow_plugin.persistence import kinds as kinds  # the two ways of torch modules
from geoflow_plugin.persistence.container import from_bytes, read, to_bytes, write
from geoflow_plugin.persistence.description import Reader, Writer
from geoflow_plugin.persistence.registry import register_saved
from geoflow_plugin.persistence.versions import FORMAT, up_to_date
from geoflow_plugin.training import as_path, processes

__all__ = ["load", "register_saved", "save"]


def save(thing, path):
    """Write a flow, base, layer, network or space to a file, whole or not at all.

    One file in the safetensors format: weights as tensors under the names that they have in
    ``state_dict``, and a JSON description of the rest in the header. docs/saving.md says
    what comes back. In a process group the first process writes.

    Parameters
    ----------
    thing : Distribution, nn.Module or geomstats Manifold
    path : str or os.PathLike
        An old file is replaced once the new one is complete.

    Raises
    ------
    TypeError, ValueError
        If something in it cannot be described, or would come back as something else; nothing
        is written.
    OSError
        If the file cannot be written; the old one is untouched.
    """
    import geoflow_plugin  # once it is there

    path, writer = as_path(path), Writer(thing)
    try:
        writer.object(thing, "")
        writer.check_complete(thing)
        description = {
            "format": FORMAT,
            "version": geoflow_plugin.__version__,
            "objects": writer.objects,
            "layouts": writer.layouts,
        }
        content = to_bytes(description, writer.tensors)
        _check_same(writer, _made_of(content))
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"save: {error}") from error
    if processes.rank() == 0:
        write(path, content)


def load(path, map_location=None):
    """Read what ``save`` wrote: the same densities, samples and weights, bit for bit.

    A file runs no code: it names classes of a fixed list (and those given to
    ``register_saved``), plain arguments and tensors.

    Parameters
    ----------
    path : str or os.PathLike
    map_location : torch.device or str, optional
        Where the tensors go. Default: the CPU, wherever they came from.

    Returns
    -------
    thing : what was saved

    Raises
    ------
    OSError
        If there is no file, or it cannot be read.
    ValueError
        For a file that is damaged, of a later version, or never was one of these.
    TypeError
        For a path or a device that is none.
    """
    path, device = as_path(path), _as_device(map_location)
    content = read(path)
    try:
        thing = _made_of(content)
    except Exception as error:  # a file from elsewhere may provoke any
        raise ValueError(f"{path}: {error}.") from error
    return thing.to(device) if isinstance(thing, nn.Module) else thing


def _made_of(content):
    description, tensors = from_bytes(content)
    description = up_to_date(description)
    with torch.random.fork_rng(devices=[]):  # should a constructor draw
        table, layouts = description.get("objects"), description.get("layouts")
        return Reader(table, tensors, layouts).objects[-1]


def _check_same(writer, copy):
    """Refuse to write what would come back as something else."""
    again = Writer(copy)
    again.object(copy, "")
    ours, theirs = writer.tensors, again.tensors
    changed = [n for n in ours if n not in theirs or not _equal(ours[n], theirs[n])]
    if changed or again.objects != writer.objects or len(ours) != len(theirs):
        raise TypeError(
            f"a {type(copy).__qualname__} would not come back as it is (tensors that would "
            f"differ: {changed[:5]}); say what makes it by register_saved(cls, arguments=...)."
        )


def _equal(tensor, other):
    if tensor.dtype != other.dtype or tensor.shape != other.shape:
        return False
    bits = [t.cpu().contiguous().reshape(-1).view(torch.uint8) for t in (tensor, other)]
    return torch.equal(*bits)


def _as_device(device):
    if device is None:
        return torch.device("cpu")
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"map_location: expected a torch.device or its name, got {device!r}.")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"map_location: {device!r} is none of torch's ({error}).") from error
