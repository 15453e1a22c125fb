"""Runs a network and stops at each of its layers, in execution order."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.progress import progress
from adabm_basicsr.quantization.structure.tracing import first_argument


def visit_in_order(
    net: QuantizedNetwork,
    modules: Iterable[nn.Module],
    images: Tensor,
    visit: Callable[[nn.Module, Tensor], None],
    description: str,
) -> None:
    """Run ``net`` on ``images`` and call ``visit(module, input)`` as each of its ``modules`` is about to run.

    What a visit changes is seen by all that comes later. A module that runs twice is visited once. ``description`` says
    what goes on, to who watches.
    """
    pending = set(modules)
    bar = progress(description, len(pending))

    def first_call(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if module in pending:
            pending.discard(module)
            visit(module, first_argument(args, kwargs))
            bar.update(1)

    with net.lock:
        hooks = [
            module.register_forward_pre_hook(first_call, with_kwargs=True) for module in pending
        ]
        try:
            net(images)
        finally:
            for hook in hooks:
                hook.remove()
            bar.close()
