"""Goes through the layers of a network in execution order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from adabm_basicsr.quantization.layers import QuantizedLayer
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.progress import progress
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer
from adabm_basicsr.quantization.structure.tracing import first_argument

Kept = TypeVar("Kept")
# Takes a module, its arguments and its keyword arguments.
Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


def layers_with_weights(
    net: QuantizedNetwork,
) -> Iterator[tuple[str, QuantizedLayer, WeightQuantizer]]:
    """Name, layer and weight quantizer of each layer whose weight is quantized."""
    for name, layer in net.layers().items():
        if not isinstance(layer, QuantizedLayer):
            continue
        quantizer = layer.weight_quantizer
        if isinstance(quantizer, WeightQuantizer):
            yield name, layer, quantizer


def visit_in_order(
    net: QuantizedNetwork,
    modules: Iterable[nn.Module],
    images: Tensor,
    keep: Callable[[Any, Tensor, int], Kept],
    visit: Callable[[Any, list[Kept]], None],
    description: str,
) -> None:
    """Run ``net`` once and visit each of some modules with what it takes.

    A module is visited as it is about to run, one that runs several times as it is about to run for
    the last time. What a visit changes is seen by all that comes later.

    Args:
        net: The quantized network.
        modules: Modules of it to visit.
        images: LR images to run it on, ``(B, C, H, W)`` in 0..1.
        keep: Takes a module, its input, and how often the module runs in all; gives what to keep of
            the input, which may change in place afterwards. Called each time that it runs.
        visit: Takes a module and what was kept, in the order in which it ran.
        description: What goes on, for a progress bar.
    """
    pending = set(modules)
    bar = progress(description, len(pending))
    kept: dict[nn.Module, list[Kept]] = defaultdict(list)

    def finish(module: nn.Module) -> None:
        pending.discard(module)
        visit(module, kept.pop(module))
        bar.update(1)

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module in pending:
            kept[module].append(keep(module, first_argument(args, kwargs), calls[module]))
            if len(kept[module]) == calls[module]:
                finish(module)

    with net.lock:
        calls = _count_calls(net, pending, images[:1])
        with _before_each(pending, note), closing(bar):
            net(images)
            # Modules that ran less often than on the image that was counted.
            for module in list(kept):
                finish(module)


def _count_calls(
    net: QuantizedNetwork, modules: Iterable[nn.Module], image: Tensor
) -> Counter[nn.Module]:
    """How often each module runs."""
    calls: Counter[nn.Module] = Counter()

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[module] += 1

    with _before_each(modules, count):
        net(image)
    return calls


@contextmanager
def _before_each(modules: Iterable[nn.Module], hook: Hook) -> Iterator[None]:
    """Within this context ``hook`` is called before each of the modules runs."""
    handles = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
