"""Layers in place of functions that a module calls with parameters of its own.

``F.conv2d(x, self.weight)`` in a module's ``forward`` is a convolution like any other, but no layer
that could be replaced. So the module gets a layer for each such parameter, which takes it over.
While the module runs, it finds its parameters where they were, and a torch function mode hands each
call with one of them to the layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from adabm_basicsr.quantization.layers.mixing import MadeType, made_type, set_aside

LAYERS_KEY = "functional_layers"  # child of a module whose calls are layers
# What a convolution is called with besides input, weight and bias, and what it is by default.
SETTINGS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
# Names of the arguments of each function.
FUNCTIONS = {
    F.conv2d: ("input", "weight", "bias", *SETTINGS),
    F.linear: ("input", "weight", "bias"),
}

Settings = dict[str, Any]


class FunctionCall(NamedTuple):
    """A call of a function of `FUNCTIONS`.

    Attributes:
        input: What it is called on.
        weight: Its weight.
        bias: Its bias, if it has one.
        settings: Of a convolution: `SETTINGS`, pairs where both axes have their own.
    """

    input: Any
    weight: Any
    bias: Any
    settings: Settings


def read_call(func: Any, args: tuple, kwargs: Mapping[str, Any]) -> FunctionCall | None:
    """What a function is called with; None if it isn't one of `FUNCTIONS`."""
    names = FUNCTIONS.get(func)
    if names is None:
        return None
    given = dict(zip(names, args, strict=False))
    given.update(kwargs)
    settings = {}
    for key, default in SETTINGS.items():
        if key in names:
            settings[key] = _plain(key, given.get(key, default))
    return FunctionCall(given.get("input"), given.get("weight"), given.get("bias"), settings)


def _plain(key: str, value: Any) -> Any:
    """A setting in the form that layers have: a pair, a text, or the number of groups."""
    if key == "groups" or isinstance(value, str):
        return value
    if isinstance(value, int):
        return (value, value)
    pair = tuple(value)
    return pair * 2 if len(pair) == 1 else pair


def make_layer(weight: nn.Parameter, bias: nn.Parameter | None, settings: Settings) -> nn.Module:
    """The layer that computes what a function does.

    Args:
        weight: ``(C_out, C_in / groups, k, k)`` of a convolution, ``(C_out, C_in)`` of a linear
            layer, which has no settings.
        bias: ``(C_out,)`` or None.
        settings: See `FunctionCall`.
    """
    has_bias = bias is not None
    layer: nn.Conv2d | nn.Linear
    if weight.dim() == 2:
        layer = nn.Linear(weight.shape[1], weight.shape[0], has_bias, device="meta")
    else:
        channels = weight.shape[1] * settings["groups"]
        size = (weight.shape[2], weight.shape[3])
        layer = nn.Conv2d(channels, weight.shape[0], size, bias=has_bias, device="meta", **settings)
    layer.weight = weight
    layer.bias = bias
    return layer.eval()


class FunctionParameters(NamedTuple):
    """What a layer took over from its module.

    Attributes:
        weight: Name of its weight in the module.
        bias: That of its bias; empty if there is none.
        settings: What the function is called with, see `FunctionCall`.
    """

    weight: str
    bias: str
    settings: Settings


class CallsLayers(MadeType):
    """Mixin for a module whose ``forward`` calls functions that layers stand for.

    Attributes:
        layered_functions: What each layer took over.
    """

    prefix = "Layered"
    layered_functions: list[FunctionParameters]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes, by its layers."""
        functions = self.layered_functions
        with (
            set_aside(self, LAYERS_KEY) as layers,
            self._lent(layers),
            _LayerMode(layers, functions),
        ):
            return super().forward(*args, **kwargs)

    @contextmanager
    def _lent(self, layers: Sequence[Any]) -> Iterator[None]:
        """Within this context the module finds its parameters where they were."""
        for function, layer in zip(self.layered_functions, layers, strict=True):
            self._parameters[function.weight] = layer.weight
            if function.bias:
                self._parameters[function.bias] = layer.bias
        try:
            yield
        finally:
            _leave_empty(self, self.layered_functions)


class _LayerMode(TorchFunctionMode):
    """Hands calls of functions to the layers whose parameters they are called with."""

    def __init__(self, layers: Sequence[Any], functions: Sequence[FunctionParameters]) -> None:
        super().__init__()
        self.layers = layers
        self.functions = functions

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        call = read_call(func, args, kwargs)
        if call is not None:
            for layer, function in zip(self.layers, self.functions, strict=True):
                is_own = layer.weight is call.weight and layer.bias is call.bias
                # In a branch that wasn't taken when the network was looked at, settings may be
                # others.
                if is_own and function.settings == call.settings:
                    return layer(call.input)
        return func(*args, **kwargs)


def replace_functions(module: nn.Module, functions: Sequence[FunctionParameters]) -> None:
    """Make a module's calls of functions with its own parameters into calls of layers.

    Args:
        module: The module; changed in place.
        functions: What the layers take over.
    """
    parameters = module._parameters
    layers = []
    for weight, bias, settings in functions:
        own_weight = parameters[weight]
        assert own_weight is not None
        layers.append(make_layer(own_weight, parameters[bias] if bias else None, settings))
    _leave_empty(module, functions)
    kind: Any = type(module)
    module.__class__ = _layered_type(kind)
    module.add_module(LAYERS_KEY, nn.ModuleList(layers))
    module.layered_functions = list(functions)  # type: ignore[assignment]


def _leave_empty(module: nn.Module, functions: Sequence[FunctionParameters]) -> None:
    """Leave nothing but their names of parameters that layers took over."""
    for function in functions:
        module._parameters[function.weight] = None
        if function.bias:
            module._parameters[function.bias] = None


@cache
def _layered_type(kind: type[nn.Module]) -> type[nn.Module]:
    """One type for all modules of type ``kind``: blocks of a network are alike."""
    return made_type(CallsLayers, kind)
