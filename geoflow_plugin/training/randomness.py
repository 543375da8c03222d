"""Random numbers that depend on a seed and a place in training, and on nothing else.

What draws from them at a step draws the same in a run that was interrupted as in one that
was not: there is no state to keep.
"""

import hashlib
import threading
from contextlib import contextmanager

import torch

__all__ = ["generator_at", "own_stream", "reseed"]

_LOCK = threading.RLock()


def generator_at(device, *place):
    """A generator that is new at every place.

    Parameters
    ----------
    device : torch.device
    place : int or str
        Such as a seed and the number of a step.

    Returns
    -------
    generator : torch.Generator
    """
    return torch.Generator(device).manual_seed(_seed_at(*place))


@contextmanager
def own_stream(device, *place):
    """What draws from torch's global streams inside leaves them as they were outside.

    One thread at a time: the streams belong to the process.
    """
    with _LOCK, torch.random.fork_rng([device] if device.type == "cuda" else []):
        reseed(device, *place)
        yield


def reseed(device, *place):
    """Put torch's global streams at a place; inside ``own_stream``."""
    seed = _seed_at(*place)
    # torch.manual_seed would take milliseconds to queue seeds for GPUs that are not in use
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _seed_at(*place):
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
