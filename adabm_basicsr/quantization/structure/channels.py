"""Finds which channels of a network belong together: those that can only be scaled as one.

If all layers that make a channel divide it by a number, and all layers that take it multiply it by
that number, the network computes what it did. `find_channels` runs the network once to see who
makes and who takes which channel. A sum makes channels belong together; what isn't proportional to
its input (a sigmoid, a norm, a constant that is added, the network's output) fixes channels at the
scale that they have.

Each value of each tensor carries a mark, in a tensor of marks of the same shape: which output
channel of which layer it is proportional to. What moves values, moves their marks likewise. What
isn't known to keep proportions, fixes all that it reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from adabm_basicsr.quantization.layers import QuantizedLayer, is_quantizable, quantized_type
from adabm_basicsr.quantization.structure.tracing import first_argument, written_tensors

if TYPE_CHECKING:
    from typing_extensions import Self  # typing's own from Python 3.11 on

FIXED_CLASS = -1
# Marks. Those of channels are larger.
ZERO = 0.0  # a value that is 0, whatever channels are scaled by
FIXED = 1.0  # a value that isn't scaled

# PyTorch's own operations, by their names in `torch.ops.aten`.
# They tell nothing of values.
CREATIONS = frozenset(
    {
        "empty_like",
        "full_like",
        "new_empty",
        "new_full",
        "new_ones",
        "new_zeros",
        "ones_like",
        "zeros_like",
    }
)
# Views move values too.
MOVES = frozenset(
    {
        "_unsafe_view",
        "cat",
        "channel_shuffle",
        "clone",
        "copy",
        "flip",
        "im2col",
        "index_select",
        "native_channel_shuffle",
        "pixel_shuffle",
        "pixel_unshuffle",
        "reflection_pad1d",
        "reflection_pad2d",
        "repeat",
        "replication_pad1d",
        "replication_pad2d",
        "roll",
        "stack",
    }
)


class LayerChannels(NamedTuple):
    """Which channels the channels of a layer belong to.

    Attributes:
        inputs: Class of each input channel, ``(C_in,)``; -1 of those that can't be scaled.
        outputs: Class of each row of the weight, likewise. That is an output channel, or all
            output channels that share a row of a transposed convolution with groups.
    """

    inputs: Tensor
    outputs: Tensor


def find_channels(network: nn.Module, example: Tensor) -> dict[Any, LayerChannels]:
    """Run ``network`` once and find which channels of its layers belong together.

    Args:
        network: In full precision; left as it was.
        example: An input of it, ``(B, C, H, W)``.

    Returns:
        The channels of each layer that has a quantized type and a weight of its own, quantized or
        not. Nothing where a layer didn't run: it may take any channels for other images.
    """
    tracer = _ChannelTracer(network)
    with torch.no_grad(), tracer:
        output = network(example.clone())
    return tracer.found(output)


class _Union:
    """Sets of marks, which grow together."""

    def __init__(self) -> None:
        self._parents = [int(ZERO), int(FIXED)]

    def add(self, count: int) -> int:
        """Make new marks, each for itself, and return the first."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return first

    def find(self, mark: int) -> int:
        """The mark that stands for the set of ``mark``; of the fixed set it is `FIXED`."""
        root = mark
        while self._parents[root] != root:
            root = self._parents[root]
        while self._parents[mark] != root:
            mark, self._parents[mark] = self._parents[mark], root
        return root

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Unite the sets of two tensors of marks, value by value; zeros are in no set."""
        first, second = torch.broadcast_tensors(first, second)
        differ = (first != second) & (first != ZERO) & (second != ZERO)
        count = len(self._parents)
        # One number for each pair.
        pairs = (first[differ].long() * count + second[differ].long()).unique()
        for pair in pairs.tolist():
            roots = self.find(pair // count), self.find(pair % count)
            # The smallest stands for all: the fixed one for the fixed set.
            self._parents[max(roots)] = min(roots)

    def fix(self, marks: Tensor) -> None:
        """Fix the sets of all ``marks``."""
        self.unite(marks, torch.full_like(marks, FIXED))

    def is_fixed(self, marks: Tensor) -> bool:
        """Whether none of ``marks`` can be scaled."""
        return all(mark <= FIXED or self.find(int(mark)) == FIXED for mark in marks.unique())


class _Marks(NamedTuple):
    """What a tensor's values are proportional to.

    Attributes:
        of_values: Mark of each value, float64 of the tensor's shape: every operation takes it.
        power: They are proportional to this power of the channels' scales.
    """

    of_values: Tensor
    power: float = 1.0


@dataclass
class _Layer:
    """A layer whose rows and columns can be scaled.

    Attributes:
        first: Mark of its first row.
        rows: Number of rows.
        axis: Axis of the channels, of its input as of its output.
        inputs: Mark of each input channel; None until it ran.
    """

    first: int
    rows: int
    axis: int
    inputs: Tensor | None = None

    @property
    def outputs(self) -> Tensor:
        """Mark of each row."""
        return torch.arange(self.first, self.first + self.rows, dtype=torch.float64)


class _ChannelTracer(TorchDispatchMode):
    """Follows channels through one run of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.union = _Union()
        self.layers: dict[nn.Module, _Layer] = {}
        self._marks = WeakTensorKeyDictionary()
        # Layers by their parameters, and those whose parameters something else reads.
        self._owners = WeakTensorKeyDictionary()
        self._read: set[nn.Module] = set()
        self._inside = False  # a layer, whose own operations aren't followed
        self._handles: list[RemovableHandle] = []
        self._add_layers(network)

    def _add_layers(self, network: nn.Module) -> None:
        uses = _uses_of_storages(network)
        for module in network.modules():
            kind = layer_type(module)
            if kind is None:
                continue
            parameters: list[Any] = [module.weight]
            if module.bias is not None:
                parameters.append(module.bias)
            is_own = all(_is_own(parameter, uses) for parameter in parameters)
            if not is_own:
                # Shared, or computed from something else.
                continue
            rows = parameters[0].shape[kind.weight_axis]
            self.layers[module] = _Layer(self.union.add(rows), rows, kind.output_axis)
            for parameter in parameters:
                self._owners[parameter] = module

    def __enter__(self) -> Self:
        for layer in self.layers:
            entering = layer.register_forward_pre_hook(self._enter, with_kwargs=True)
            leaving = layer.register_forward_hook(self._leave)
            self._handles += [entering, leaving]
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        while self._handles:
            self._handles.pop().remove()

    def found(self, output: Tensor) -> dict[Any, LayerChannels]:
        """The channels of all layers, once the network has returned ``output``."""
        self._fix(self._marks_of(output))
        found: dict[Any, LayerChannels] = {}
        for module, layer in self.layers.items():
            if layer.inputs is None:
                return {}
            if module in self._read:
                self.union.fix(layer.inputs)
                self.union.fix(layer.outputs)
        for module, layer in self.layers.items():
            assert layer.inputs is not None
            found[module] = LayerChannels(self._classes(layer.inputs), self._classes(layer.outputs))
        return found

    def _classes(self, marks: Tensor) -> Tensor:
        classes = []
        for mark in marks.tolist():
            root = self.union.find(int(mark))
            classes.append(root if root > FIXED else FIXED_CLASS)
        return torch.tensor(classes)

    # Layers

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        # Nor is what this does itself followed.
        self._inside = True
        layer = self.layers[module]
        marks = self._marks_of(first_argument(args, kwargs))
        if marks.power != 1:
            self._fix(marks)
        values = marks.of_values
        others = [axis for axis in range(values.dim()) if axis != values.dim() + layer.axis]
        inputs = self._united(values, others).flatten().cpu()
        if layer.inputs is not None:
            # It runs again.
            self.union.unite(layer.inputs, inputs)
            inputs = torch.maximum(layer.inputs, inputs)
        layer.inputs = inputs

    def _leave(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        layer = self.layers[module]
        # Groups of a transposed convolution share rows.
        rows = layer.outputs.repeat(output.shape[layer.axis] // layer.rows)
        shape = [1] * output.dim()
        shape[layer.axis] = -1
        self._note(output, _Marks(rows.view(shape).to(output.device)))
        self._inside = False

    # Operations

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self._inside:
            self._follow(func, args, kwargs, out)
        return out

    def _follow(self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        """Note the marks of what an operation made or wrote to."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            if tensor in self._owners:
                self._read.add(self._owners[tensor])
        name = func._overloadpacket.__name__
        if name in CREATIONS or not any(tensor in self._marks for tensor in tensors):
            return
        # None writes to several of those that are followed.
        written = next(iter(written_tensors(func, args, kwargs)), None)
        if _is_view(func) or name.rstrip("_") in MOVES:
            self._move(func, args, kwargs, out, written)
            return
        rule = RULES.get(name.rstrip("_"))
        marks = None
        if rule is not None:
            marks = rule(self, _Operation(name.rstrip("_"), args, kwargs, out))
        if marks is None:
            self._fix_all(tensors, written)
        elif written is None:
            self._note(out, marks)
        elif written in self._marks:
            self._write(written, marks)
        else:
            self._fix(marks)

    def _move(
        self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any, written: Tensor | None
    ) -> None:
        """Move marks as an operation moved values."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        powers = {self._marks[tensor].power for tensor in tensors if tensor in self._marks}
        is_known = written is None or written in self._marks
        if not is_known or len(powers) > 1:
            self._fix_all(tensors, written)
            return

        def marks_of(leaf: Any) -> Any:
            is_moved = isinstance(leaf, Tensor) and leaf.is_floating_point()
            return self._marks_of(leaf).of_values if is_moved else leaf

        try:
            moved = func(*tree_map(marks_of, args), **tree_map(marks_of, kwargs))
        except RuntimeError:
            # Of a layout in memory that marks don't have.
            self._fix_all(tensors, written)
            return
        power = powers.pop()
        outputs = out if isinstance(out, (list, tuple)) else [out]
        of_outputs = moved if isinstance(moved, (list, tuple)) else [moved]
        for output, values in zip(outputs, of_outputs, strict=True):
            if values.shape != output.shape or values.dtype != torch.float64:
                # Other types of numbers in the same memory.
                self._fix_all(tensors, written)
                return
            self._marks[output] = _Marks(values, power)

    # Marks

    def _marks_of(self, x: Tensor) -> _Marks:
        """Those of a tensor; what comes from elsewhere is fixed."""
        if x in self._marks:
            return self._marks[x]
        return _Marks(torch.full_like(x, FIXED, dtype=torch.float64))

    def _note(self, out: Any, marks: _Marks) -> None:
        """Note the marks of an output, of several ones' the first."""
        output = out[0] if isinstance(out, tuple) else out
        # In memory of their own, as later operations may write to them.
        values = torch.empty_like(output, dtype=torch.float64)
        self._marks[output] = _Marks(values.copy_(marks.of_values), marks.power)

    def _write(self, written: Tensor, marks: _Marks) -> None:
        """Note the marks of what was written to a tensor, of which others may be views."""
        target = self._marks[written]
        if target.power != marks.power:
            self._fix(target)
            self._fix(marks)
        target.of_values.copy_(marks.of_values)

    def _fix(self, marks: _Marks) -> None:
        self.union.fix(marks.of_values)

    def _fix_all(self, tensors: Iterable[Tensor], written: Tensor | None) -> None:
        """Fix what an operation read, and what it wrote."""
        for tensor in tensors:
            if tensor in self._marks:
                self._fix(self._marks[tensor])
        if written is not None and written in self._marks:
            self._marks[written].of_values.fill_(FIXED)

    def _united(self, values: Tensor, axes: list[int]) -> Tensor:
        """Unite marks along ``axes``, which stay with one mark each."""
        if not axes:
            return values
        top = values.amax(axes, keepdim=True)
        self.union.unite(values, top)
        return top

    # Rules: marks of what an operation makes, None where it doesn't keep proportions

    def proportional(self, operation: _Operation) -> _Marks | None:
        """A function of each value with f(s x) = s f(x) for s > 0."""
        return self._marks_of(operation.args[0])

    def converted(self, operation: _Operation) -> _Marks | None:
        """Another type of numbers."""
        if not operation.out.is_floating_point():
            return None
        return self._marks_of(operation.args[0])

    def sum(self, operation: _Operation) -> _Marks | None:
        """Sums, differences, and the larger or smaller of two."""
        left, right = operation.args[:2]
        if not isinstance(right, Tensor):
            return self._marks_of(left) if right == 0 else None
        first = self._marks_of(left)
        second = self._marks_of(right)
        if first.power != second.power:
            self._fix(first)
            self._fix(second)
        self.union.unite(first.of_values, second.of_values)
        return _Marks(torch.maximum(first.of_values, second.of_values), first.power)

    def product(self, operation: _Operation) -> _Marks | None:
        """Products and quotients, of which one factor is fixed."""
        left, right = operation.args[:2]
        if operation.kwargs.get("rounding_mode"):
            return None
        kept = self._marks_of(left)
        if not isinstance(right, Tensor):
            return kept
        fixed = self._marks_of(right)
        if operation.name == "mul" and not self.union.is_fixed(fixed.of_values):
            # The smaller one is a gate.
            is_gate = left.numel() < right.numel()
            if is_gate or self.union.is_fixed(kept.of_values):
                kept, fixed = fixed, kept
        self._fix(fixed)
        return _Marks(kept.of_values.expand(operation.out.shape), kept.power)

    def power(self, operation: _Operation) -> _Marks | None:
        """A power of each value."""
        marks = self._marks_of(operation.args[0])
        exponent = 0.5 if operation.name == "sqrt" else operation.args[1]
        if isinstance(exponent, Tensor) or exponent <= 0:
            return None
        return _Marks(marks.of_values, marks.power * exponent)

    def reduction(self, operation: _Operation) -> _Marks | None:
        """Means and the like, along some axes."""
        args = operation.args
        marks = self._marks_of(args[0])
        axes = args[1] if len(args) > 1 else operation.kwargs.get("dim")
        axes = axes or list(range(marks.of_values.dim()))
        values = self._united(marks.of_values, axes)
        power = 2 * marks.power if operation.name == "var" else marks.power
        return _Marks(values.reshape(operation.out.shape), power)

    def of_planes(self, operation: _Operation) -> _Marks | None:
        """What works on each channel's image for itself, in proportion to its values."""
        out = operation.out[0] if isinstance(operation.out, tuple) else operation.out
        marks = self._marks_of(operation.args[0])
        values = self._united(marks.of_values, [-2, -1])
        return _Marks(values.expand(out.shape), marks.power)

    def padding(self, operation: _Operation) -> _Marks | None:
        """Values of a constant around an image, or cropping."""
        image, sizes, *rest = operation.args
        marks = self._marks_of(image)
        constant = rest[0] if rest else 0
        values = F.pad(marks.of_values, sizes, value=ZERO if constant == 0 else FIXED)
        return _Marks(values, marks.power)


class _Operation(NamedTuple):
    """An operation that ran.

    Attributes:
        name: Its name, without the underscore of those that write to what they take.
        args: What it took.
        kwargs: What it took by name.
        out: What it gave.
    """

    name: str
    args: tuple
    kwargs: dict[str, Any]
    out: Any


_Rule = Callable[[_ChannelTracer, _Operation], _Marks | None]
RULES: dict[str, _Rule] = {
    "_to_copy": _ChannelTracer.converted,
    "constant_pad_nd": _ChannelTracer.padding,
}
for name in ("_prelu_kernel", "abs", "leaky_relu", "neg", "relu"):
    RULES[name] = _ChannelTracer.proportional
for name in ("add", "maximum", "minimum", "sub"):
    RULES[name] = _ChannelTracer.sum
for name in ("div", "mul"):
    RULES[name] = _ChannelTracer.product
for name in ("pow", "sqrt"):
    RULES[name] = _ChannelTracer.power
for name in ("amax", "amin", "mean", "std", "sum", "var"):
    RULES[name] = _ChannelTracer.reduction
for name in (
    "_adaptive_avg_pool2d",
    "_upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa",
    "_upsample_nearest_exact2d",
    "adaptive_max_pool2d",
    "avg_pool2d",
    "max_pool2d_with_indices",
    "upsample_bicubic2d",
    "upsample_bilinear2d",
    "upsample_nearest2d",
):
    RULES[name] = _ChannelTracer.of_planes


def layer_type(module: nn.Module) -> Any:
    """The quantized type of a layer whose rows and columns can be scaled, or None.

    It tells of quantized and unquantized layers alike where their channels are.
    """
    if not is_quantizable(module):
        return None
    kind = type(module) if isinstance(module, QuantizedLayer) else quantized_type(module)
    assert kind is not None
    has_channels = kind.channel_views is not QuantizedLayer.channel_views
    return kind if kind.linear and has_channels else None


def _uses_of_storages(network: nn.Module) -> Counter[int]:
    """How many parameters of how many modules each piece of memory holds."""
    uses: Counter[int] = Counter()
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            uses[parameter.untyped_storage().data_ptr()] += 1
    return uses


def _is_own(parameter: object, uses: Counter[int]) -> bool:
    """Whether a layer's weight or bias is a parameter that no other module has."""
    if not isinstance(parameter, nn.Parameter):
        return False
    return uses[parameter.untyped_storage().data_ptr()] == 1


def _is_view(func: Any) -> bool:
    """Whether an operation gives a part of what it takes, in the same memory."""
    for returned in func._schema.returns:
        if returned.alias_info is not None and not returned.alias_info.is_write:
            return True
    return False
