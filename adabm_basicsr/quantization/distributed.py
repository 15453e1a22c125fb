"""Several processes that calibrate and fine-tune one network together.

In calibration every process has the same images and runs some of them. In fine-tuning each has its
own part of every batch, all of one size. What is found is that of all images, as if one process had
them. Where there is a single process, each function does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

Item = TypeVar("Item")
Result = TypeVar("Result")


def rank_and_size() -> tuple[int, int]:
    """Index of this process and number of processes; ``(0, 1)`` without torch.distributed."""
    if not _is_set_up():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


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
    """The values of all processes, in their order; tensors on the CPU travel best."""
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
    """``[function(item) for item in items]``, each result computed by one of the processes.

    Args:
        function: Its results are tensors, or built of them and plain values.
        items: The same in every process.
        device: Where to put tensors that come from other processes.

    Returns:
        The results of all items in their order, the same in every process.
    """
    rank, size = rank_and_size()
    items = list(items)
    own = [function(item) for item in items[rank::size]]
    if size == 1:
        return own
    on_cpu = tree_map_only(Tensor, Tensor.cpu, own)
    gathered = gather_objects(on_cpu)
    shares = tree_map_only(Tensor, lambda tensor: tensor.to(device), gathered)
    results = []
    for index in range(len(items)):
        process = index % size
        place = index // size
        results.append(shares[process][place])
    return results


def own_share(items: Sequence[Item]) -> Sequence[Item]:
    """Every n-th of ``items``, where n is the number of processes.

    All of them where there are fewer items than processes.
    """
    rank, size = rank_and_size()
    if len(items) < size:
        return items
    return items[rank::size]


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum over all processes, without gradient."""
    if rank_and_size()[1] > 1:
        values = values.detach().clone()
        dist.all_reduce(values)
    return values


def mean_over_processes(values: Tensor) -> Tensor:
    """Mean over all processes, with the gradient of this process's own values.

    Once gradients are averaged (see `set_mean_gradients`), they are those of the mean. The mean is
    the same to the bit in all processes.
    """
    size = rank_and_size()[1]
    if size == 1:
        return values
    mean = sum_over_processes(values) / size
    return values - values.detach() + mean


def weighted_mean(value: float, weight: float) -> float:
    """Mean of the processes' values by their weights; NaN where these are all zero."""
    pairs = gather_objects((value, weight))
    total = sum(w for _, w in pairs)
    if not total:
        return float("nan")
    return sum(v * w for v, w in pairs) / total


def set_mean_gradients(
    parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]
) -> None:
    """Give ``parameters`` the mean of all processes' gradients.

    ``DistributedDataParallel`` can't, as what is trained changes from epoch to epoch.

    Args:
        parameters: The same in every process.
        gradients: This process's own, in double precision; None for a parameter that its images
            don't reach. A parameter that no process's images reach gets no gradient.
    """
    size = rank_and_size()[1]
    if size > 1:
        gradients = _summed(parameters, gradients)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            parameter.grad = None
        else:
            parameter.grad = (gradient / size).to(parameter)


def _summed(
    parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Sums over the processes, all in one message."""
    is_given = torch.tensor([gradient is not None for gradient in gradients])
    message = [is_given.to(parameters[0]).double()]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            message.append(torch.zeros_like(parameter).double().flatten())
        else:
            message.append(gradient.flatten())
    total = sum_over_processes(torch.cat(message))
    counts, *sums = total.split([len(part) for part in message])
    summed: list[Tensor | None] = []
    for parameter, of_parameter, count in zip(parameters, sums, counts.tolist(), strict=True):
        if count:
            summed.append(of_parameter.view_as(parameter))
        else:
            summed.append(None)
    return summed


def copy_from_first(net: nn.Module) -> None:
    """Give every process's network the state of the first: their devices may round differently."""
    if rank_and_size()[1] == 1:
        return
    state = {key: value.cpu() for key, value in net.state_dict().items()}
    net.load_state_dict(from_first(state))
