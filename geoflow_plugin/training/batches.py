"""Batches of one epoch after another, and where one stands among them."""

import itertools

import torch

from geoflow_plugin.training import processes
from geoflow_plugin.training.randomness import generator_at

__all__ = ["Batches", "share", "shuffled"]


class Batches:
    """Batches for ever; two integers and a generator's state say where.

    Parameters
    ----------
    read : callable
        Number of an epoch, from 0, to its batches: pairs of what a loss takes as rows, and
        how many of them count.
    generator : torch.Generator, optional
        One of the user's that ``read`` draws from, and whose state belongs to the place.
    """

    def __init__(self, read, generator=None):
        self.read = read
        self.generator = generator
        self.epoch, self.position, self.start = 0, 0, None

    def __iter__(self):
        while True:
            if self.generator is not None:
                if self.start is None:
                    self.start = self.generator.get_state()
                self.generator.set_state(self.start)
            for batch in itertools.islice(self.read(self.epoch), self.position, None):
                self.position += 1
                yield batch
            if not self.position:
                raise ValueError(
                    f"X: it gave no points in epoch {self.epoch}; what is streamed has to "
                    "give its points anew every time that it is iterated over."
                )
            self.epoch, self.position, self.start = self.epoch + 1, 0, None

    @property
    def place(self):
        """Where the next batch is."""
        return {"epoch": self.epoch, "position": self.position, "start": self.start}

    @place.setter
    def place(self, place):
        self.epoch, self.position, self.start = (
            place[key] for key in ("epoch", "position", "start")
        )


def shuffled(n_rows, batch_size, seed):
    """Shuffled indices; the last short batch of an epoch is used as well."""

    def read(epoch):
        order = torch.randperm(n_rows, generator=generator_at("cpu", seed, "order", epoch))
        for rows in order.split(batch_size):
            own, n = share(len(rows))
            yield rows[own], n

    return Batches(read)


def share(n):
    """Slice of a batch of n rows that is this process's, and how many of them count.

    Where there are fewer rows than processes, some get a row that does not count.
    """
    if processes.rank() < n:
        own = slice(processes.rank(), None, processes.count())
        return own, len(range(n)[own])
    return slice(0, 1), 0
