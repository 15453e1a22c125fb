"""Goes through the layers of a network in execution order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from adabm_basicsr.quantization.layers import QuantizedLayer
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.progress import progress
from adabm_basicsr.quantization.quantizers.weight import WeightQuantizer
from adabm_basicsr.quantization.structure.tracing import first_argument


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
    visit: Callable[[Any, Any], None],
    description: str,
) -> None:
    """Run ``net`` once and call ``visit`` as each of some modules is about to run.

    What a visit changes is seen by all that comes later. A module that runs twice is visited once.

    Args:
        net: The quantized network.
        modules: Modules of it to visit.
        images: LR images to run it on, ``(B, C, H, W)`` in 0..1.
        visit: Takes a module and its input.
        description: What goes on, for a progress bar.
    """
    pending = set(modules)
    bar = progress(description, len(pending))

    def visit_first_time(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module in pending:
            pending.discard(module)
            visit(module, first_argument(args, kwargs))
            bar.update(1)

    with net.lock:
        hooks = []
        for module in pending:
            hooks.append(module.register_forward_pre_hook(visit_first_time, with_kwargs=True))
        try:
            net(images)
        finally:
            for hook in hooks:
                hook.remove()
            bar.close()
