"""Runs a network once and notes what it did: layers, modules, products, upsamplings and MACs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.layers import PRODUCTS_KEY, ProductMode, is_quantizable
from adabm_basicsr.quantization.layers.join import is_clip, is_image
from adabm_basicsr.quantization.structure.flow import FLOW_ESTIMATION, estimates_flow
from adabm_basicsr.quantization.structure.macs import MacCounter
from adabm_basicsr.quantization.user_code import users_code

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
PIXEL_SHUFFLES = (torch.pixel_shuffle, F.pixel_shuffle)
KEPT_VALUES = 8  # of each sample; enough to distinguish it from others


@dataclass
class Call:
    """One call of a layer, product or module.

    Attributes:
        name: Its name in the network.
        start: Index of the first layer call inside it.
        end: One past the last.
        pixels: Spatial positions of its output; 0 for products.
        keeps_shape: Whether its output has its input's shape.
    """

    name: str
    start: int
    end: int
    pixels: int
    keeps_shape: bool = False


class Upsampling(NamedTuple):
    """One pixel shuffle or interpolation.

    Attributes:
        first_layer: Index of the first layer call that belongs to it: of a pixel shuffle the layer
            that feeds it, of an interpolation the layer after it.
        pixels: Spatial positions of its output.
    """

    first_layer: int
    pixels: int


@dataclass
class Trace:
    """What one run showed.

    Attributes:
        layers: Calls of quantizable layers and products, in execution order.
        modules: Calls of all other modules that turn tensors into tensors, in the order in which
            they ended.
        products: Names of the products among ``layers``.
        upsamplings: Every pixel shuffle and interpolation, in execution order.
        macs: Multiply-accumulates of each layer and product.
        other_macs: Those of operations in no quantizable layer, by ``module: operation``.
        normalised: Pairs of a layer and the batch normalisation that takes its output, each of
            which ran once.
        overwritten: Layers whose input the network changes in place afterwards.
        inputs: Of each layer and product, a few values of what it took, from each index along the
            first axis.
    """

    layers: list[Call] = field(default_factory=list)
    modules: list[Call] = field(default_factory=list)
    products: list[str] = field(default_factory=list)
    upsamplings: list[Upsampling] = field(default_factory=list)
    macs: Counter[str] = field(default_factory=Counter)
    other_macs: Counter[str] = field(default_factory=Counter)
    normalised: list[tuple[str, str]] = field(default_factory=list)
    overwritten: set[str] = field(default_factory=set)
    inputs: defaultdict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))


def trace_network(network: nn.Module, example: Tensor) -> Trace:
    """Run ``network`` once on ``example``; the network is left as it was.

    Args:
        network: The network.
        example: ``(B, C, H, W)``, or ``(B, T, C, H, W)`` for one that takes clips.

    Raises:
        AdaBMError: The network doesn't take such an image, or gives something else than one.
    """
    kind = type(network).__name__
    tracer = _Tracer(network, takes_clips=is_clip(example))
    what = "a clip" if tracer.takes_clips else "an image"
    sentence = f"{kind} cannot be run on {what} of shape {tuple(example.shape)}"
    with users_code(network, sentence), torch.no_grad(), tracer, _FunctionRecorder(tracer):
        output = network(example.clone())
    _check_output(kind, output, tracer.takes_clips)
    return tracer.finished()


def _check_output(kind: str, output: object, takes_clips: bool) -> None:
    """Reject what a network of the class ``kind`` gives, if that is neither image nor clip."""
    if is_image(output) or (takes_clips and is_clip(output)):
        return
    raise AdaBMError(
        f"{kind} gives {_described(output)} instead of one image: its forward must return a float "
        "tensor (B, C, H, W) alone"
    )


def _described(output: object) -> str:
    """What a network gave, in a few words."""
    if output is None:
        return "nothing"
    if isinstance(output, Tensor):
        return f"{output.dtype} of shape {tuple(output.shape)}"
    if isinstance(output, dict):
        return f"a dictionary of {', '.join(map(repr, output))}"
    kind = type(output).__name__
    if isinstance(output, (tuple, list)):
        return f"a {kind} of {', '.join(type(value).__name__ for value in output)}"
    return f"a {kind}"


class _Tracer(MacCounter):
    """Follows the modules of a network through one run."""

    def __init__(self, network: nn.Module, takes_clips: bool) -> None:
        super().__init__(network)
        self.takes_clips = takes_clips
        self.trace = Trace()
        self.names = {module: name for name, module in network.named_modules()}
        self.product: str | None = None  # the product that is being computed
        # Of each running module: layer calls before it, and products that it has computed.
        self._starts: list[int] = []
        self._seen_products: list[int] = []
        # The module that estimates flow, while it runs.
        self._flow: nn.Module | None = None
        # The layer that ran last.
        self._last_layer = ""
        self._last_output: Tensor | None = None
        # Names of the layers that took a tensor or a part of it.
        self._readers = WeakTensorKeyDictionary()

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        super()._enter(module, args, kwargs)
        self._starts.append(len(self.trace.layers))
        self._seen_products.append(0)
        if self._flow is None and estimates_flow(module):
            self._flow = module
        x = first_argument(args, kwargs)
        follows_layer = x is not None and x is self._last_output
        if follows_layer and isinstance(module, BATCH_NORMS):
            self.trace.normalised.append((self._last_layer, self.names[module]))

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        super()._leave(module, args, kwargs, output)
        start = self._starts.pop()
        self._seen_products.pop()
        if self._flow is not None:
            if module is self._flow:
                self._flow = None
            return
        if not isinstance(output, Tensor):
            return
        x = first_argument(args, kwargs)
        keeps_shape = isinstance(x, Tensor) and x.shape == output.shape
        size = pixels(output.shape, self.takes_clips)
        if isinstance(module, nn.Linear):
            # Its input may be cut into windows, in any number of dimensions.
            size = output.shape[:-1].numel()
        call = Call(self.names[module], start, len(self.trace.layers), size, keeps_shape)
        if not is_quantizable(module):
            self.trace.modules.append(call)
            return
        self.trace.layers.append(call)
        self.note_inputs(call.name, [x])
        readers = self._readers.setdefault(_whole(x), set())
        readers.add(call.name)
        self._last_layer = call.name
        self._last_output = output

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for tensor in written_tensors(func, args, kwargs or {}):
            self.trace.overwritten |= self._readers.get(_whole(tensor), set())
        return super().__torch_dispatch__(func, types, args, kwargs)

    def count(self, module: nn.Module | None, operation: str, macs: int) -> None:
        """Note multiply-accumulates at the product, layer or other operation that did them."""
        name = ""
        if module is not None:
            name = self.names.get(module, "")
        if self._flow is not None:
            self.trace.other_macs[f"{self.names[self._flow]}: {FLOW_ESTIMATION}"] += macs
        elif self.product:
            self.trace.macs[self.product] += macs
        elif module is not None and is_quantizable(module):
            self.trace.macs[name] += macs
        else:
            self.trace.other_macs[f"{name}: {operation}".lstrip(": ")] += macs

    @property
    def in_flow(self) -> bool:
        """Whether a module that estimates flow runs."""
        return self._flow is not None

    def note_inputs(self, name: str, inputs: Sequence[Tensor]) -> None:
        """Note a few values of what a layer or product took."""
        for x in inputs:
            rows = x.flatten(1) if x.dim() > 1 else x.unsqueeze(1)
            spacing = max(rows.shape[1] // KEPT_VALUES, 1)
            self.trace.inputs[name].append(rows[:, ::spacing].clone())

    def start_product(self) -> str:
        """Note a product in the module that runs, and return the product's name."""
        owner = self.names[self.running[-1]]
        index = self._seen_products[-1]
        self._seen_products[-1] += 1
        self.product = f"{owner}.{PRODUCTS_KEY}.{index}".lstrip(".")
        start = len(self.trace.layers)
        self.trace.layers.append(Call(self.product, start, start + 1, pixels=0))
        self.trace.products.append(self.product)
        return self.product

    def note_upsampling(self, output: Tensor, is_shuffle: bool) -> None:
        """Note a pixel shuffle or an interpolation that made ``output``, but for those of flow."""
        if self._flow is not None:
            return
        first_layer = len(self.trace.layers)
        if is_shuffle:
            first_layer -= 1
        self.trace.upsamplings.append(
            Upsampling(first_layer, pixels(output.shape, self.takes_clips))
        )

    def finished(self) -> Trace:
        """The trace, without what turned out not to hold."""
        runs = Counter(call.name for call in self.trace.layers)
        norm_runs = Counter(norm for _, norm in self.trace.normalised)
        kept = []
        for layer, norm in self.trace.normalised:
            if runs[layer] == 1 and norm_runs[norm] == 1:
                kept.append((layer, norm))
        self.trace.normalised = kept
        return self.trace


class _FunctionRecorder(ProductMode):
    """Notes products, pixel shuffles and interpolations, be they modules' or functions."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = super().__torch_function__(func, types, args, kwargs)
        if func in PIXEL_SHUFFLES:
            self.tracer.note_upsampling(out, is_shuffle=True)
        elif func is F.interpolate:
            self.tracer.note_upsampling(out, is_shuffle=False)
        return out

    def product(
        self, function: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor
    ) -> Tensor:
        """Note the product and compute it."""
        if is_quantizable(self.tracer.running[-1]) or self.tracer.in_flow:
            # A layer's own way to compute what it computes, or what stays in float.
            return function(left, right)
        name = self.tracer.start_product()
        self.tracer.note_inputs(name, (left, right))
        try:
            return function(left, right)
        finally:
            self.tracer.product = None


def first_argument(args: tuple, kwargs: dict[str, Any]) -> Any:
    """What a module is to work on, its first argument; None if it takes nothing."""
    if args:
        return args[0]
    return next(iter(kwargs.values()), None)


def written_tensors(func: Any, args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation of `torch.ops` writes to."""
    if not func._schema.is_mutable:
        return []
    written = []
    for index, argument in enumerate(func._schema.arguments):
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        if is_written and isinstance(value, Tensor):
            written.append(value)
    return written


def _whole(x: Tensor) -> Tensor:
    """The tensor that ``x`` is a view of, or itself."""
    if x._base is None:
        return x
    return x._base


def pixels(shape: torch.Size, takes_clips: bool = False) -> int:
    """Spatial positions of an image (B, C, H, W) or a token sequence (B, L, C); 1 of all else.

    In networks that take clips, five axes end in height and width too.
    """
    if len(shape) == 4 or (takes_clips and len(shape) == 5):
        return shape[-1] * shape[-2]
    if len(shape) == 3:
        return shape[1]
    return 1
