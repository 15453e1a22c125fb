"""Runs a network once and writes down what it did: layers, modules, products, upsamplings, multiply-accumulates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.layers import PRODUCTS_KEY, ProductMode, is_quantizable
from adabm_basicsr.quantization.structure.macs import MacCounter

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
KEPT = 8  # values of each sample that tell it from others


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


@dataclass
class Trace:
    """What one run showed.

    Attributes:
        layers: Calls of quantizable layers and products, in execution order.
        modules: Calls of all other modules that turn tensors into tensors, in the order in which they ended.
        products: Names of the products among ``layers``.
        upsamplings: Of each pixel shuffle and interpolation: layer calls before it, pixels of its output, and whether
            a pixel shuffle, which the last of these layers feeds, did it.
        macs: Multiply-accumulates of each layer and product.
        other_macs: Those of operations in no quantizable layer, by ``module: operation``.
        normalised: Pairs of a layer and the batch normalisation that takes its output, each of which ran once.
        overwritten: Layers whose input the network changes in place afterwards.
        inputs: Of each layer and product, a few values of what it took, from each index along the first axis.
    """

    layers: list[Call] = field(default_factory=list)
    modules: list[Call] = field(default_factory=list)
    products: list[str] = field(default_factory=list)
    upsamplings: list[tuple[int, int, bool]] = field(default_factory=list)
    macs: Counter[str] = field(default_factory=Counter)
    other_macs: Counter[str] = field(default_factory=Counter)
    normalised: list[tuple[str, str]] = field(default_factory=list)
    overwritten: set[str] = field(default_factory=set)
    inputs: defaultdict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))


def trace_network(network: nn.Module, example: Tensor) -> Trace:
    """Run ``network`` once on ``example``, ``(B, C, H, W)``; the network is left as it was.

    Raises:
        AdaBMError: The network doesn't take such an image, or gives something else than one.
    """
    tracer = _Tracer(network)
    try:
        with torch.no_grad(), tracer, _FunctionRecorder(tracer):
            output = network(example.clone())
    except Exception as error:  # whatever the network's own code raises
        raise AdaBMError(
            f"{type(network).__name__} cannot be run on an image of shape {tuple(example.shape)}: {error}"
        ) from error
    if not isinstance(output, Tensor):
        raise AdaBMError(
            f"{type(network).__name__} gives a {type(output).__name__} instead of one image"
        )
    return tracer.finished()


class _Tracer(MacCounter):
    """Follows the modules of a network through one run."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.trace = Trace()
        self.names = {module: name for name, module in network.named_modules()}
        self.product: str | None = None
        self._starts: list[int] = []
        self._last: tuple[str, Tensor] | None = None  # the layer that ran last, and its output
        self._seen_products: list[int] = []
        self._readers: WeakTensorKeyDictionary = (
            WeakTensorKeyDictionary()
        )  # layers that took a tensor or a part of it

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        super()._enter(module, args, kwargs)
        self._starts.append(len(self.trace.layers))
        self._seen_products.append(0)
        if (
            isinstance(module, BATCH_NORMS)
            and self._last
            and first_argument(args, kwargs) is self._last[1]
        ):
            self.trace.normalised.append((self._last[0], self.names[module]))

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        super()._leave(module, args, kwargs, output)
        start = self._starts.pop()
        self._seen_products.pop()
        if not isinstance(output, Tensor):
            return
        x = first_argument(args, kwargs)
        keeps_shape = isinstance(x, Tensor) and x.shape == output.shape
        # A linear layer's input may be cut into windows, in any number of dimensions.
        size = output.shape[:-1].numel() if isinstance(module, nn.Linear) else pixels(output.shape)
        call = Call(self.names[module], start, len(self.trace.layers), size, keeps_shape)
        if is_quantizable(module):
            self.trace.layers.append(call)
            self.note_inputs(call.name, [x])
            self._readers.setdefault(_whole(x), set()).add(call.name)
            self._last = (call.name, output)
        else:
            self.trace.modules.append(call)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.is_mutable:
            given = {
                **dict(zip((argument.name for argument in func._schema.arguments), args)),
                **(kwargs or {}),
            }
            written = [
                a.name
                for a in func._schema.arguments
                if a.alias_info is not None and a.alias_info.is_write
            ]
            for tensor in filter(torch.is_tensor, map(given.get, written)):
                self.trace.overwritten |= self._readers.get(_whole(tensor), set())
        return super().__torch_dispatch__(func, types, args, kwargs)

    def count(self, module: nn.Module | None, operation: str, macs: int) -> None:
        name = self.names.get(module, "")
        if self.product:
            self.trace.macs[self.product] += macs
        elif module is not None and is_quantizable(module):
            self.trace.macs[name] += macs
        else:
            self.trace.other_macs[f"{name}: {operation}".lstrip(": ")] += macs

    def note_inputs(self, name: str, inputs: Sequence[Tensor]) -> None:
        """Note what a layer or product took."""
        rows = [x.flatten(1) if x.dim() > 1 else x.unsqueeze(1) for x in inputs]
        self.trace.inputs[name] += [row[:, :: max(row.shape[1] // KEPT, 1)].clone() for row in rows]

    def start_product(self) -> None:
        """Note a product in the module that runs."""
        owner, index = self.names[self.running[-1]], self._seen_products[-1]
        self._seen_products[-1] += 1
        self.product = f"{owner}.{PRODUCTS_KEY}.{index}".lstrip(".")
        self.trace.layers.append(
            Call(self.product, len(self.trace.layers), len(self.trace.layers) + 1, pixels=0)
        )
        self.trace.products.append(self.product)

    def finished(self) -> Trace:
        """The trace, without what turned out not to hold."""
        runs = Counter(call.name for call in self.trace.layers)
        norms = Counter(norm for _, norm in self.trace.normalised)
        self.trace.normalised = [
            (layer, norm)
            for layer, norm in self.trace.normalised
            if runs[layer] == norms[norm] == 1
        ]
        return self.trace


class _FunctionRecorder(ProductMode):
    """Notes products, pixel shuffles and interpolations, be they modules' or functions."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs)
        if func in (torch.pixel_shuffle, F.pixel_shuffle, F.interpolate):
            trace = self.tracer.trace
            trace.upsamplings.append(
                (len(trace.layers), pixels(out.shape), func is not F.interpolate)
            )
        return out

    def product(self, function, left, right):
        if is_quantizable(self.tracer.running[-1]):  # a layer's own way to compute what it computes
            return function(left, right)
        self.tracer.start_product()
        self.tracer.note_inputs(self.tracer.product, (left, right))
        try:
            return function(left, right)
        finally:
            self.tracer.product = None


def first_argument(args: tuple, kwargs: dict) -> object:
    """What a module is to work on, its first argument."""
    return next(iter((*args, *kwargs.values())), None)


def _whole(x: Tensor) -> Tensor:
    """The tensor that ``x`` is a view of, or itself."""
    return x if x._base is None else x._base


def pixels(shape: torch.Size) -> int:
    """Spatial positions of an image (B, C, H, W) or a token sequence (B, L, C)."""
    return shape[-1] * shape[-2] if len(shape) == 4 else shape[1] if len(shape) == 3 else 1
