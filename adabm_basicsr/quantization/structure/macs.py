"""Counts multiply-accumulates (MACs), each at the layer or operation that does them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle

from adabm_basicsr.quantization.layers import QuantizedProduct, is_quantizable

if TYPE_CHECKING:
    from typing_extensions import Self  # typing's own from Python 3.11 on

FLOPS_PER_MAC = 2


class MacCounter(TorchDispatchMode):
    """Counts what forward passes of a network do while it is active. Use it as a context manager.

    Every convolution and matrix product that reaches PyTorch's kernels is seen, be it a layer's or
    a function's.

    Args:
        network: The network whose modules' calls are followed.

    Attributes:
        macs: Multiply-accumulates per ``(module, operation)``. ``module`` is the layer or product
            that can be quantized; else the innermost module that ran, or None outside of all.
        running: Modules whose forward passes have begun and not ended, the outermost first.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.macs: Counter[tuple[nn.Module | None, str]] = Counter()
        self.running: list[nn.Module] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for module in self.network.modules():
            entering = module.register_forward_pre_hook(self._enter, with_kwargs=True)
            leaving = module.register_forward_hook(self._leave, with_kwargs=True, always_call=True)
            self._handles += [entering, leaving]
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        while self._handles:
            self._handles.pop().remove()

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.running.append(module)

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        self.running.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():
            # There, operations aren't made into those of kernels before they come here.
            super().__enter__()
            try:
                out = func.decompose(*args, **kwargs)
            finally:
                super().__exit__(None, None, None)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        operation = func._overloadpacket
        count_flops = flop_registry.get(operation)
        if count_flops is not None:
            macs = count_flops(*args, **kwargs, out_val=out) // FLOPS_PER_MAC
            self.count(self._counted_module(), operation.__name__, macs)
        return out

    def count(self, module: nn.Module | None, operation: str, macs: int) -> None:
        """Note ``macs`` multiply-accumulates of an operation in ``module``."""
        self.macs[module, operation] += macs

    def _counted_module(self) -> nn.Module | None:
        """The innermost running module that can be quantized, or else the innermost of all."""
        for module in reversed(self.running):
            if isinstance(module, QuantizedProduct) or is_quantizable(module):
                return module
        if self.running:
            return self.running[-1]
        return None
