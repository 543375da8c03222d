"""One process of several that train one model; alone, all of this does nothing.

Every process takes its share of each batch, and gradients are averaged by one reduction,
whatever made them (functional transforms, hand-written backward passes).
"""

import atexit
import os
import warnings

import torch
import torch.distributed as dist

__all__ = ["average", "broadcast", "count", "first", "join", "own_device", "rank", "warn"]


def count():
    """Number of processes."""
    return dist.get_world_size() if _joined() else 1


def rank():
    """Number of this process; the one of rank 0 prints and writes."""
    return dist.get_rank() if _joined() else 0


def _joined():
    return dist.is_available() and dist.is_initialized()


def join():
    """Join the processes that torchrun started, if it did and nobody has joined yet."""
    needed = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    if _joined() or not dist.is_available() or not needed <= os.environ.keys():
        return
    if int(os.environ["WORLD_SIZE"]) > 1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        one_each = dist.is_nccl_available() and torch.cuda.device_count() >= here
        dist.init_process_group("cpu:gloo,cuda:nccl" if one_each else "gloo")
        atexit.register(_leave)


def _leave():
    if _joined():
        dist.destroy_process_group()


def own_device(device):
    """The device, or the GPU of this process where several train on GPUs."""
    if count() == 1 or device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    local = int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count()
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@torch.no_grad()
def broadcast(module):
    """Give every process the weights and buffers of the first."""
    if count() > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            sent = tensor.contiguous().clone()
            dist.broadcast(sent, 0)
            if not torch.equal(sent, tensor):
                tensor.copy_(sent)


def first(value):
    """What the first process has for a picklable value."""
    if count() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@torch.no_grad()
def average(parameters, value, weight):
    """Weighted mean over the processes of the gradients, in place, and of a loss.

    Parameters
    ----------
    parameters : list of torch.Tensor
    value : float
        Loss of this process's share of the batch.
    weight : int
        Number of its rows.

    Returns
    -------
    value : float
        Loss of the whole batch.
    """
    if count() == 1:
        return value
    like = parameters[0]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    parts = [g.flatten() for g in gradients] + [like.new_tensor([value, 1.0])]
    total = torch.cat(parts)
    # a share that is empty says nothing, even where it is not finite
    total = total * weight if weight else torch.zeros_like(total)
    dist.all_reduce(total)
    total = total / total[-1]
    sizes = [p.numel() for p in parameters]
    for p, mean in zip(parameters, total[:-2].split(sizes), strict=True):
        p.grad = mean.reshape(p.shape).to(p.dtype)
    return float(total[-2])


def warn(message):
    """Warn once, not once a process."""
    if rank() == 0:
        warnings.warn(message, stacklevel=4)
