"""Counts multiply-accumulates, each at the layer or operation that does them."""

from __future__ import annotations

from collections import Counter

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle

from adabm_basicsr.quantization.layers import QuantizedProduct, is_quantizable


class MacCounter(TorchDispatchMode):
    """Counts what forward passes of a network do while it is active. Use it as a context manager.

    Every convolution and matrix product that reaches PyTorch's kernels is seen, be it a layer's or a function's.

    Args:
        network: The network whose modules' calls are followed.

    Attributes:
        macs: Multiply-accumulates per ``(module, operation)``. ``module`` is the layer or product that can be
            quantized; else the innermost module that ran, or None outside of all.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.macs: Counter[tuple[nn.Module | None, str]] = Counter()
        self.running: list[nn.Module] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> MacCounter:
        for module in self.network.modules():
            self._handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            self._handles.append(
                module.register_forward_hook(self._leave, with_kwargs=True, always_call=True)
            )
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        while self._handles:
            self._handles.pop().remove()

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.running.append(module)

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        self.running.pop()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if flops := flop_registry.get(func._overloadpacket):
            macs = flops(*args, **(kwargs or {}), out_val=out) // 2
            self.count(self._unit(), func._overloadpacket.__name__, macs)
        return out

    def count(self, module: nn.Module | None, operation: str, macs: int) -> None:
        """Note ``macs`` multiply-accumulates of an operation in ``module``."""
        self.macs[module, operation] += macs

    def _unit(self) -> nn.Module | None:
        units = (module for module in reversed(self.running) if _is_unit(module))
        return next(units, self.running[-1] if self.running else None)


def _is_unit(module: nn.Module) -> bool:
    return isinstance(module, QuantizedProduct) or is_quantizable(module)
