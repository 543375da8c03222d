"""What a fit learns from: arrays, rows of a dataset fetched when asked for, or a stream.

All three answer alike. ``points`` and ``context`` are there for parts that want to see the
whole at once, and are a bounded sample of what does not fit in memory; ``rows`` takes what
``batches`` gives, or indices, to checked points and their context.
"""

from functools import cached_property
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate
from torch.utils.data.distributed import DistributedSampler

from geoflow_plugin.training.batches import Batches, share, shuffled
from geoflow_plugin.training.randomness import reseed

__all__ = ["BOUND", "Data", "Rows", "Stream", "split"]

BOUND = 2**15  # points held in memory of a dataset or stream
_CHUNK = 4096


class Data(NamedTuple):
    """Points and what they are conditioned on, row by row, in memory."""

    points: torch.Tensor
    context: torch.Tensor | None = None

    def __len__(self):
        return len(self.points)

    @property
    def given(self):
        """The context as a keyword argument, where there is one."""
        return {} if self.context is None else {"context": self.context}

    def to(self, *where):
        """Points and context on another device or in another dtype."""
        context = None if self.context is None else self.context.to(*where)
        return Data(self.points.to(*where), context)

    def part(self, index):
        """Some of the rows."""
        if isinstance(index, torch.Tensor):
            index = index.to(self.points.device)
        context = None if self.context is None else self.context[index]
        return Data(self.points[index], context)

    def rows(self, index):
        """Points of some rows, and their context as a keyword argument."""
        part = self.part(index)
        return part.points, part.given

    def map(self, function):
        """The same with other points: a function's of points and, if any, context."""
        chunks = (self.rows(i) for i in torch.arange(len(self)).split(_CHUNK))
        return Data(torch.cat([function(x, **given) for x, given in chunks]), self.context)

    def tabulate(self, function):
        """A function of points, to a tuple of tensors, as one of rows and their points.

        Called once, here; of rows that are not in memory, with every batch.
        """
        table = function(self.points)
        return lambda rows, points: tuple(column[rows] for column in table)

    def batches(self, batch_size, seed):
        """Shuffled batches for ever."""
        return shuffled(len(self), batch_size, seed)

    def coincidences(self, rows, points, index):
        """Pairs of a position in rows and one in ``index`` that are the same row."""
        return (rows.to(index.device)[:, None] == index).nonzero(as_tuple=True)


class Rows:
    """Rows of a dataset with a length, in an order of their own.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        Of points, or pairs of a point and its context.
    index : torch.Tensor of int, shape=(n,)
        Its rows, in random order.
    read : callable
        Raw ``Data`` to checked and converted ``Data``.
    """

    def __init__(self, dataset, index, read):
        self.dataset, self.index, self.read = dataset, index, read

    def __len__(self):
        return len(self.index)

    def part(self, index):
        """Some of the rows."""
        return Rows(self.dataset, self.index[index], self.read)

    def rows(self, index):
        """Points of some rows, and their context as a keyword argument."""
        chosen = self.index[index.cpu() if isinstance(index, torch.Tensor) else index]
        if hasattr(self.dataset, "__getitems__"):
            items = self.dataset.__getitems__(chosen.tolist())
        else:
            items = [self.dataset[row] for row in chosen.tolist()]
        data = self.read(_raw(default_collate(items)))
        return data.points, data.given

    def map(self, function):
        """The same with other points: a function's of points and, if any, context."""
        return Rows(self.dataset, self.index, lambda raw: self.read(raw).map(function))

    def tabulate(self, function):
        """A function of points, to a tuple of tensors, as one of rows and their points."""
        return lambda rows, points: function(points)

    @cached_property
    def sample(self):
        """The first of the rows, which is a sample of all."""
        points, given = self.rows(slice(BOUND))
        return Data(points, given.get("context"))

    points = property(lambda self: self.sample.points)
    context = property(lambda self: self.sample.context)
    batches = Data.batches
    coincidences = Data.coincidences


class Stream:
    """What a loader yields, epoch by epoch.

    Parameters
    ----------
    loader : torch.utils.data.DataLoader
        Yields batches of points, or pairs of points and their context.
    read : callable
        Raw ``Data`` to checked and converted ``Data``.
    """

    def __init__(self, loader, read):
        self.loader, self.read = loader, read

    def __len__(self):
        return len(self.sample)

    def rows(self, batch):
        """Points of a batch, or of rows of the sample, and their context."""
        data = self.read(batch) if isinstance(batch, Data) else self.sample.part(batch)
        return data.points, data.given

    def map(self, function):
        """The same with other points: a function's of points and, if any, context."""
        return Stream(self.loader, lambda raw: self.read(raw).map(function))

    tabulate = Rows.tabulate
    points = Rows.points
    context = Rows.context

    @cached_property
    def sample(self):
        """The first points that come."""
        parts, n = [], 0
        for batch in self.loader:
            parts.append(self.read(_raw(batch)))
            n += len(parts[-1])
            if n >= BOUND:
                break
        if not parts:
            raise ValueError("X: expected points, but the loader yields nothing.")
        points, context = zip(*parts, strict=True)
        given = None if context[0] is None else torch.cat(context)[:BOUND]
        return Data(torch.cat(points)[:BOUND], given)

    def batches(self, batch_size, seed):
        """The loader's batches for ever, each process's share of them."""
        loader, cpu = self.loader, torch.device("cpu")
        samplers = [loader.sampler, getattr(loader.batch_sampler, "sampler", None)]
        is_shared = any(isinstance(s, DistributedSampler) for s in samplers)

        def read(epoch):
            if is_shared:
                samplers[0].set_epoch(epoch)
            # what a loader or a transform of it draws depends on its place alone
            reseed(cpu, seed, "stream", epoch, 0)
            for position, batch in enumerate(loader, start=1):
                batch = _raw(batch)
                own, n = (slice(None), len(batch)) if is_shared else share(len(batch))
                yield batch.part(own), n
                reseed(cpu, seed, "stream", epoch, position)

        found = [loader.generator, *(getattr(s, "generator", None) for s in samplers)]
        return Batches(read, next((g for g in found if g is not None), None))

    def coincidences(self, batch, points, index):
        """Pairs of a position in a batch and one in ``index`` that are the same point."""
        points, anchors = points.flatten(1), self.points[index].flatten(1)
        at, row = (points[:, None, 0] == anchors[:, 0]).nonzero(as_tuple=True)
        same = (points[at] == anchors[row]).all(1)
        return at[same], row[same]


def split(X, context, validation, *, read, batch_size, generator):
    """Training data, and held-out data in memory.

    Parameters
    ----------
    X, context, validation
        See ``Flow.fit``.
    read : callable
        Points, their context and the argument's name to checked and converted ``Data``.
    batch_size : int
        For streams that have none.
    generator : torch.Generator

    Returns
    -------
    train : Data, Rows or Stream
    held_out : Data or None

    Raises
    ------
    TypeError, ValueError
        For a share of a stream, which has no rows to hold out, or one out of range.
    """
    data = _opened(X, context, "X", read, batch_size, generator)
    if validation is not None and not isinstance(validation, (int, float)):
        points, given = validation if isinstance(validation, tuple) else (validation, None)
        held_out = _opened(points, given, "validation", read, batch_size, generator)
        return data, getattr(held_out, "sample", held_out)
    share_ = float(validation or 0)
    if not 0 <= share_ < 1:
        raise ValueError(f"validation: expected a share in [0, 1), got {validation!r}.")
    if isinstance(data, Stream):
        if share_:
            raise ValueError(
                "validation: a stream has no rows to hold out; expected points, a Dataset "
                f"or a DataLoader to validate on, or None to go without, got {validation!r}."
            )
        return data, None
    n_held_out = max(1, round(share_ * len(data))) if share_ else 0
    if len(data) - n_held_out < 2:
        raise ValueError(
            f"X: expected two training points at least, got {len(data)} points in "
            f"all and validation={validation!r}."
        )
    if isinstance(data, Rows):
        n_held_out = min(n_held_out, BOUND)
    order = torch.randperm(len(data), generator=generator)
    if not n_held_out:
        return data.part(order), None
    held_out = data.part(order[:n_held_out])
    return data.part(order[n_held_out:]), getattr(held_out, "sample", held_out)


def _opened(X, context, name, read, batch_size, generator):
    if isinstance(X, (Dataset, DataLoader)) and context is not None:
        raise TypeError(
            "context: expected none beside a Dataset or DataLoader, which yields pairs of "
            f"points and context itself, got {type(context).__name__}."
        )

    def checked(raw):
        return read(raw.points, raw.context, name)

    if isinstance(X, IterableDataset):
        X = DataLoader(X, batch_size=batch_size)
    if isinstance(X, DataLoader):
        return Stream(X, checked)
    if isinstance(X, Dataset):
        if not hasattr(X, "__len__") or not len(X):
            raise ValueError(f"{name}: expected a Dataset with a length of one at least.")
        return Rows(X, torch.randperm(len(X), generator=generator), checked)
    return read(X, context, name)


def _raw(batch):
    """A collated batch as unchecked ``Data``."""
    parts = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    if len(parts) > 2 or not all(hasattr(part, "__array__") for part in parts):
        raise TypeError(
            "X: expected a dataset of points, or of pairs of points and context, got "
            f"{[type(part).__name__ for part in parts]}."
        )
    return Data(*(torch.as_tensor(part) for part in parts))
