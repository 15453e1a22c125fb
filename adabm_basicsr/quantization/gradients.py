"""Whether gradients go through a user's network.

Networks are written for their own training code, or for none: they change in place what a gradient
needs, switch gradients off inside, or leave torch. Forward passes work all the same. So whoever
needs gradients tries them first, then on copies of what is changed in place, and does without where
both fail.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors
from torch.overrides import TorchFunctionMode

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.distributed import gather_objects
from adabm_basicsr.quantization.log import LOGGER
from adabm_basicsr.quantization.network import QUANTIZERS, QuantizedNetwork
from adabm_basicsr.quantization.user_code import (
    failure,
    is_out_of_memory,
    last_place,
    short_place,
)

# What cuts a tensor into parts that share its memory.
_PARTS = {
    torch.chunk,
    torch.split,
    torch.tensor_split,
    torch.unbind,
    Tensor.chunk,
    Tensor.split,
    Tensor.tensor_split,
    Tensor.unbind,
}


def gradients_work(net: QuantizedNetwork, attempt: Callable[[], bool], instead: str) -> bool:
    """Try gradients; a warning says why they fail, where in the user's file, and what is done.

    Args:
        net: The network.
        attempt: Runs it forward and backward, and returns whether a gradient came to anything.
        instead: What is done without gradients, a clause.

    Returns:
        Whether they work, in all processes alike.
    """
    problem = _problem(net, attempt)
    if problem and not net.overwrites:
        net.overwrites = True
        if _problem(net, attempt):
            net.overwrites = False
        else:
            problem = ""
    problems = gather_objects(problem)
    found = [problem for problem in problems if problem]
    if not found:
        return True
    kind = type(net.network).__name__
    # Once is enough: what is done instead was said for both.
    level = logging.INFO if net.gradient_problem else logging.WARNING
    net.gradient_problem = found[0]
    LOGGER.log(level, f"{kind} can't be run with gradients: {found[0]}; {instead}")
    return False


def _problem(net: QuantizedNetwork, attempt: Callable[[], bool]) -> str:
    """Why gradients fail, empty where they work."""
    devices = [net.stage.device] if net.stage.is_cuda else []
    try:
        # What networks draw at random is none of the run's numbers.
        with torch.random.fork_rng(devices):
            arrived = attempt()
    except Exception as error:  # whatever the network's own code raises
        if is_out_of_memory(error):
            raise
        # In a forward pass the network has put it into words.
        cause = error.__cause__ if isinstance(error, AdaBMError) else error
        if not isinstance(cause, Exception):
            raise
        return failure(cause, net.network, lambda: _place_of_backward(net.network, attempt))
    if arrived:
        return ""
    return (
        "none come back to its layers (torch.no_grad or torch.utils.checkpoint inside?) "
        f"({_definition(net.network)})"
    )


def _place_of_backward(network: nn.Module, attempt: Callable[[], bool]) -> str:
    """Where the forward pass did what the backward pass fails at; else where ``forward`` begins."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # The same error again.
        with suppress(Exception), torch.autograd.detect_anomaly(check_nan=False):
            attempt()
    places = [last_place(str(warning.message)) for warning in caught]
    return next(filter(None, places), _definition(network))


def _definition(network: nn.Module) -> str:
    """File and line of a network's ``forward``; its class where that isn't Python."""
    forward = inspect.unwrap(type(network).forward)
    if not inspect.isfunction(forward):
        return type(network).__qualname__
    return short_place(forward.__code__.co_filename, forward.__code__.co_firstlineno)


@contextmanager
def gradients_of_overwritten(net: QuantizedNetwork) -> Iterator[None]:
    """Context for a forward pass and its backward pass.

    Of a network that changes in place what gradients need, as in ``y = sigmoid(x); y *= x``, they
    are found on copies.
    """
    if not net.overwrites:
        yield
        return
    with allow_mutation_on_saved_tensors(), _Overwriting():
        yield


class _Overwriting(TorchFunctionMode):
    """Mode in which functions of torch do what gradients don't go through in a way that they do.

    A result goes where ``out=`` says as a copy, and parts of a tensor are views each for itself:
    those that are made together may not be changed in place.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        target = kwargs.get("out")
        if isinstance(target, Tensor):
            others = {key: value for key, value in kwargs.items() if key != "out"}
            return target.copy_(func(*args, **others))
        made = func(*args, **kwargs)
        if func in _PARTS:
            return tuple(_own_view(part) for part in made)
        return made


def _own_view(part: Tensor) -> Tensor:
    """``part`` of a tensor, as a view that was made alone."""
    if part._base is None or part._base.dtype is not part.dtype:
        return part
    return part._base.as_strided(part.shape, part.stride(), part.storage_offset())


@contextmanager
def nothing_recomputed(net: QuantizedNetwork) -> Iterator[None]:
    """Within this context, that of a backward pass, no quantizer may run.

    What a network computes again there (``torch.utils.checkpoint``), it computes without the
    image's bits.

    Raises:
        RuntimeError: One runs.
    """

    def reject(*_: object) -> None:
        raise RuntimeError(
            "quantized layers are computed again in the backward pass (torch.utils.checkpoint)"
        )

    hooks = []
    for module in net.network.modules():
        if isinstance(module, QUANTIZERS):
            hooks.append(module.register_forward_pre_hook(reject))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
