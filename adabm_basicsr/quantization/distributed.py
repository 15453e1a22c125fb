"""Several processes that calibrate and fine-tune one network together; each function does nothing where there is one.

In calibration every process has the same images and runs some of them; in fine-tuning each has its own part of every
batch, all of one size. What is found is that of all images, as if one process had them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

Item, Result = TypeVar("Item"), TypeVar("Result")


def rank_and_size() -> tuple[int, int]:
    """Index of this process and number of processes; ``(0, 1)`` where torch.distributed isn't set up."""
    return (dist.get_rank(), dist.get_world_size()) if _is_set_up() else (0, 1)


def _is_set_up() -> bool:
    return dist.is_available() and dist.is_initialized()


def wait_for_all() -> None:
    """Go on when all processes have come this far."""
    if rank_and_size()[1] > 1:
        dist.barrier()


def end_processes() -> None:
    """Leave torch.distributed, once all is done."""
    if _is_set_up():
        dist.destroy_process_group()


def gather_objects(value: Result) -> list[Result]:
    """What each process gave, in their order; tensors on the CPU travel best."""
    size = rank_and_size()[1]
    gathered = [value] * size
    if size > 1:
        dist.all_gather_object(gathered, value)
    return gathered


def from_first(value: Result) -> Result:
    """The first process's ``value``, in all processes."""
    if rank_and_size()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def map_shared(
    function: Callable[[Item], Result], items: Iterable[Item], device: torch.device
) -> list[Result]:
    """``[function(item) for item in items]``, each item's result computed by one of the processes.

    Args:
        function: Its results are tensors, or built of them and plain values.
        items: The same in every process.
        device: Where to put tensors that come from other processes.
    """
    rank, size = rank_and_size()
    items = list(items)
    results = [function(item) for item in items[rank::size]]
    if size == 1:
        return results
    shares = gather_objects(tree_map_only(Tensor, Tensor.cpu, results))
    shares = tree_map_only(Tensor, lambda tensor: tensor.to(device), shares)
    return [shares[index % size][index // size] for index in range(len(items))]


def own_share(items: Sequence[Item]) -> Sequence[Item]:
    """Every so manieth of ``items``; all of them where they are fewer than the processes."""
    rank, size = rank_and_size()
    return items[rank::size] if len(items) >= size else items


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum over all processes, without gradient."""
    if rank_and_size()[1] > 1:
        values = values.detach().clone()
        dist.all_reduce(values)
    return values


def mean_over_processes(values: Tensor) -> Tensor:
    """Mean over all processes, with this process's own gradient.

    Once gradients are averaged (see `set_mean_gradients`), they are those of the mean.
    """
    size = rank_and_size()[1]
    if size == 1:
        return values
    return (
        values - values.detach() + sum_over_processes(values) / size
    )  # to the bit the same in all processes


def weighted_mean(value: float, weight: float) -> float:
    """Mean of the processes' values by their weights; not a number where these are all zero."""
    pairs = gather_objects((value, weight))
    total = sum(w for _, w in pairs)
    return sum(v * w for v, w in pairs) / total if total else float("nan")


def set_mean_gradients(
    parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]
) -> None:
    """Give ``parameters`` the mean of all processes' gradients.

    `DistributedDataParallel` can't, as what is trained changes from epoch to epoch. A parameter that the images of no
    process reach, where all have None, gets none.
    """
    size = rank_and_size()[1]
    if size > 1:
        gradients = _summed(parameters, gradients)
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = None if gradient is None else (gradient / size).to(parameter)


def _summed(
    parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Sums over the processes, all in one go."""
    reached = (
        torch.tensor([gradient is not None for gradient in gradients]).to(parameters[0]).double()
    )
    values = [
        torch.zeros_like(p).double() if g is None else g for p, g in zip(parameters, gradients)
    ]
    total = sum_over_processes(torch.cat([reached, *(value.flatten() for value in values)]))
    counts, *sums = total.split([len(parameters), *(p.numel() for p in parameters)])
    return [
        s.view_as(p) if count else None for p, s, count in zip(parameters, sums, counts.tolist())
    ]


def copy_from_first(net: nn.Module) -> None:
    """Give the networks of all processes the state of the first one's: their devices may round differently."""
    if rank_and_size()[1] > 1:
        state = {key: value.cpu() for key, value in net.state_dict().items()}
        net.load_state_dict(from_first(state))
