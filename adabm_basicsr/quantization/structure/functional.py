"""Finds functions that modules call with parameters of their own, as ``F.conv2d(x, self.weight)``.

Those whose weight is a parameter can be quantized: `replace_functions` makes layers of them.
Weights that are computed on the fly stay in full precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from adabm_basicsr.quantization.layers import quantized_type
from adabm_basicsr.quantization.layers.functional import (
    FunctionCall,
    FunctionParameters,
    read_call,
    replace_functions,
)
from adabm_basicsr.quantization.user_code import users_code


@dataclass
class FunctionLayer:
    """A function that a module calls with parameters of its own.

    Attributes:
        owner: Name of the module; empty for the network itself.
        weight: Name of the parameter in it that is the weight.
        bias: That of the bias; empty if there is none.
        settings: Of a convolution: stride, padding and dilation as lists of two, and groups; empty
            for a linear layer.
    """

    owner: str
    weight: str
    bias: str
    settings: dict[str, Any] = field(default_factory=dict)

    def fits(self, network: nn.Module) -> bool:
        """Whether the network has such parameters, of shapes that go together."""
        modules = dict(network.named_modules())
        if self.owner not in modules:
            return False
        parameters = modules[self.owner]._parameters
        weight = parameters.get(self.weight)
        bias = parameters.get(self.bias) if self.bias else None
        if weight is None or weight.dim() != (4 if self.settings else 2):
            return False
        if len(weight) % self.settings.get("groups", 1):
            return False
        return not self.bias or (bias is not None and bias.shape == weight.shape[:1])


def apply_functions(network: nn.Module, functions: Sequence[FunctionLayer]) -> None:
    """Make layers of functions; the network is changed in place."""
    by_owner: dict[str, list[FunctionParameters]] = {}
    for function in functions:
        settings = {}
        for key, value in function.settings.items():
            settings[key] = tuple(value) if isinstance(value, list) else value
        taken_over = by_owner.setdefault(function.owner, [])
        taken_over.append(FunctionParameters(function.weight, function.bias, settings))
    for owner, taken_over in by_owner.items():
        replace_functions(network.get_submodule(owner), taken_over)


def find_functions(network: nn.Module, example: Tensor) -> list[FunctionLayer]:
    """Functions of a network that layers can stand for, in the order in which they run.

    Args:
        network: The network; left as it was.
        example: Input of the network, ``(1, C, H, W)``.

    Raises:
        AdaBMError: The network doesn't take such an image.
    """
    recorder = _Recorder(network)
    sentence = f"{type(network).__name__} cannot be run on an image of shape {tuple(example.shape)}"
    with users_code(network, sentence), torch.no_grad(), recorder.hooked(), recorder:
        network(example.clone())
    found = []
    for function in recorder.found.values():
        if function is not None:
            found.append(function)
    return found


class _Recorder(TorchFunctionMode):
    """Notes the functions that modules call with their own parameters.

    Attributes:
        found: By module and weight; None where it is called in several ways.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.found: dict[tuple[str, str], FunctionLayer | None] = {}
        self._running: list[tuple[str, nn.Module]] = []

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Within this context the recorder sees which modules run."""
        handles = []
        for name, module in self.network.named_modules():
            enter = partial(self._enter, name)
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module, args: tuple) -> None:
        self._running.append((name, module))

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._running.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call = read_call(func, args, kwargs or {})
        if call is not None and self._running:
            self._note(*self._running[-1], call)
        return func(*args, **(kwargs or {}))

    def _note(self, owner: str, module: nn.Module, call: FunctionCall) -> None:
        if quantized_type(module) is not None:
            # A layer's own way to compute what it computes.
            return
        names = {parameter: name for name, parameter in module._parameters.items()}
        weight = names.get(call.weight) if isinstance(call.weight, nn.Parameter) else None
        if weight is None or call.weight.dtype is not torch.float32:
            return
        bias: str | None = ""
        if call.bias is not None:
            bias = names.get(call.bias) if isinstance(call.bias, nn.Parameter) else None
        key = (owner, weight)
        function = None
        if bias is not None:
            settings = {}
            for name, value in call.settings.items():
                settings[name] = list(value) if isinstance(value, tuple) else value
            function = FunctionLayer(owner, weight, bias, settings)
        if key in self.found and self.found[key] != function:
            function = None
        self.found[key] = function
