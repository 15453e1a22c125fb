"""Finds sums and concatenations, and at which places of a network the same value is quantized.

Engines that add integers up want each value quantized once, for all that take it: the trunk of a
network, say, for the layer and for the sum behind it. `find_joins` runs the network and follows its
values: which layer or sum makes each, and who takes it, as it is or through operations that keep
its integers (views, ReLU, a factor).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from numbers import Number
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from adabm_basicsr.quantization.engines import ALL_SUMS, CONCATENATIONS, RESIDUAL
from adabm_basicsr.quantization.layers import JOINS_KEY, JoinMode, is_quantizable
from adabm_basicsr.quantization.layers.join import Join, add, is_image
from adabm_basicsr.quantization.structure.tracing import first_argument
from adabm_basicsr.quantization.user_code import users_code

INPUT = "input_quantizer"
OUTPUT = "output_quantizer"

_RELUS = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
# What they give holds integers of their input, at other places.
_VIEWS = {
    F.pixel_shuffle,
    F.pixel_unshuffle,
    torch.pixel_shuffle,
    torch.pixel_unshuffle,
    torch.chunk,
    torch.narrow,
    torch.split,
    Tensor.__getitem__,
    Tensor.chunk,
    Tensor.clone,
    Tensor.contiguous,
    Tensor.narrow,
    Tensor.split,
}
_FACTORS = {
    torch.mul,
    torch.div,
    torch.true_divide,
    Tensor.mul,
    Tensor.div,
    Tensor.__mul__,
    Tensor.__rmul__,
    Tensor.__truediv__,
}


@dataclass
class Joins:
    """Joins of a network, and the places of its values.

    Attributes:
        operands: Number of operands of each join, by name, in execution order.
        values: Of each value the paths of the quantizers that bring it to integers, which are one:
            ``conv.input_quantizer``, ``conv.output_quantizer``, and of joins ``operands.0``,
            ``operands.1`` and ``output``.
    """

    operands: dict[str, int] = field(default_factory=dict)
    values: list[list[str]] = field(default_factory=list)


def find_joins(network: nn.Module, example: Tensor, sums: str) -> Joins:
    """Run a network and follow its values.

    Args:
        network: The network; left as it was.
        example: Input of the network, ``(1, C, H, W)``.
        sums: Which values of sums an engine wants as integers, see `Engine`.

    Raises:
        AdaBMError: The network doesn't take such an image.
    """
    recorder = _Recorder(network, sums)
    sentence = f"{type(network).__name__} cannot be run on an image of shape {tuple(example.shape)}"
    with users_code(network, sentence), torch.no_grad(), recorder.hooked(), recorder:
        output = network(example.clone())
    recorder.read_in_float([output])
    return Joins(recorder.operands, _united(recorder.found()))


@dataclass(eq=False)
class _Value:
    """A value that is followed.

    Attributes:
        made_by: Path of the quantizer behind the layer or sum that makes it; empty if there is
            none.
        source: What it is a ReLU or a multiple of.
        is_multiple: Whether it is a multiple.
        places: Paths of the quantizers of what takes it.
        in_float: Whether something takes it that doesn't quantize it.
        operands: Of a concatenation the paths of its operands' quantizers, where what it makes has
            their integers.
    """

    made_by: str = ""
    source: _Value | None = None
    is_multiple: bool = False
    places: list[str] = field(default_factory=list)
    in_float: bool = False
    operands: list[str] = field(default_factory=list)

    @property
    def origin(self) -> _Value:
        """The value that it comes from through ReLUs and factors."""
        value = self
        while value.source is not None:
            value = value.source
        return value

    @property
    def has_integers(self) -> bool:
        """Whether it is a multiple of what a layer or sum gives as integers."""
        return self.is_multiple and self.source is not None and bool(self.source.made_by)

    @property
    def is_of_layer(self) -> bool:
        """Whether a layer makes it, with a ReLU and a factor at most."""
        return self.origin.made_by.endswith(OUTPUT)


class _Recorder(JoinMode):
    """Follows the values of one run."""

    def __init__(self, network: nn.Module, sums: str) -> None:
        super().__init__()
        self.network = network
        self.sums = sums
        self.operands: dict[str, int] = {}
        self._running: list[str] = []
        self._seen_joins: list[int] = []
        self._in_layer = False
        self._values = WeakTensorKeyDictionary()
        self._all: list[_Value] = []
        self._joined: _Value | None = None

    # Modules

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Within this context the recorder sees which modules run."""
        handles = []
        for name, module in self.network.named_modules():
            enter = partial(self._enter, name)
            leave = partial(self._leave, name)
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._running.append(name)
        self._seen_joins.append(0)
        if is_quantizable(module):
            self._in_layer = True
            x = first_argument(args, kwargs)
            if is_image(x):
                self._read(x, f"{name}.{INPUT}")

    def _leave(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        self._running.pop()
        self._seen_joins.pop()
        if is_quantizable(module):
            self._in_layer = False
            if is_image(output):
                self._make(output, _Value(made_by=f"{name}.{OUTPUT}"))

    # Functions

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._in_layer:
            return func(*args, **(kwargs or {}))
        self._joined = None
        out = super().__torch_function__(func, types, args, kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if self._joined is not None:
            self._make(out, self._joined)
        elif made:
            self._follow(func, args, kwargs or {}, made)
        return out

    def join(self, function: Join, values: Sequence[Tensor]) -> Tensor:
        """Note the join and compute it."""
        owner = self._running[-1]
        index = self._seen_joins[-1]
        self._seen_joins[-1] += 1
        name = f"{owner}.{JOINS_KEY}.{index}".lstrip(".")
        self.operands[name] = len(values)
        is_sum = function is add
        self._joined = _Value(made_by=f"{name}.output" if is_sum else "")
        if self.sums == CONCATENATIONS and not is_sum:
            self._joined.operands = [f"{name}.operands.{place}" for place in range(len(values))]
        if self.sums == ALL_SUMS or self._joined.operands:
            for place, value in enumerate(values):
                self._read(value, f"{name}.operands.{place}")
        elif self.sums == RESIDUAL and is_sum:
            self._read_residual(name, values)
        return function(values)

    def _read_residual(self, name: str, values: Sequence[Tensor]) -> None:
        """Quantize what is added to a layer's output; of two layers' outputs the earlier one."""
        left, right = (self._value(value) for value in values)
        if left.is_of_layer and right.is_of_layer:
            place = int(self._all.index(right.origin) < self._all.index(left.origin))
        elif left.is_of_layer or right.is_of_layer:
            place = int(left.is_of_layer)
        else:
            return
        self._read(values[place], f"{name}.operands.{place}")

    def _follow(self, func: Any, args: tuple, kwargs: dict[str, Any], made: list[Tensor]) -> None:
        x = first_argument(args, kwargs)
        if func in _VIEWS or _repeats_pixels(func, kwargs):
            value = self._value(x)
        elif func in _RELUS:
            value = _Value(source=self._value(x))
        elif func in _FACTORS and _number(args) is not None:
            value = self._multiple(args)
        else:
            self.read_in_float([*args, *kwargs.values()])
            value = _Value()
        for tensor in made:
            self._make(tensor, value)

    def _multiple(self, args: tuple) -> _Value:
        x = next(value for value in args if isinstance(value, Tensor))
        if _number(args) == 1:
            return self._value(x)
        return _Value(source=self._value(x), is_multiple=True)

    # Values

    def _value(self, tensor: Tensor) -> _Value:
        if tensor not in self._values:
            self._make(tensor, _Value())
        value: _Value = self._values[tensor]
        return value

    def _make(self, tensor: Tensor, value: _Value) -> None:
        self._values[tensor] = value
        self._all.append(value)

    def _read(self, tensor: Tensor, place: str) -> None:
        """Something takes a value and quantizes it at a place."""
        value = self._value(tensor)
        if value.has_integers and self.sums != CONCATENATIONS:
            value.origin.in_float = True
            if not place.endswith(INPUT):
                # Its integers are those of what it is a multiple of.
                return
        value.places.append(place)

    def read_in_float(self, arguments: Iterable[Any]) -> None:
        """Something takes values that it doesn't quantize."""
        for leaf in tree_leaves(list(arguments)):
            if is_image(leaf) and leaf in self._values:
                self._values[leaf].origin.in_float = True

    def found(self) -> list[list[str]]:
        """Places of each value."""
        found = []
        for value in dict.fromkeys(self._all):
            places = list(value.places)
            # What ReLUs alone take is quantized behind them.
            if self.sums == ALL_SUMS and value.made_by and (places or value.in_float):
                places.append(value.made_by)
            if places:
                # Integers of a concatenation are those of its operands, so all have one grid.
                found.append([*places, *value.operands])
        return found


def _united(values: list[list[str]]) -> list[list[str]]:
    """The same, with values that have a place in common as one: a layer may run several times."""
    united: list[list[str]] = []
    for places in values:
        merged = dict.fromkeys(places)
        apart = []
        for other in united:
            if merged.keys().isdisjoint(other):
                apart.append(other)
            else:
                merged = dict.fromkeys([*other, *merged])
        united = [*apart, list(merged)]
    return united


def _repeats_pixels(func: Any, kwargs: dict[str, Any]) -> bool:
    return func is F.interpolate and kwargs.get("mode", "nearest") == "nearest"


def _number(args: tuple) -> Number | None:
    """The number among two factors; None if both are tensors."""
    numbers = [value for value in args if isinstance(value, Number)]
    return numbers[0] if len(args) == 2 and numbers else None
