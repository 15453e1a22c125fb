"""Whether a graph can stand for a network.

Tracing keeps what Python code made of one image, for all images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adabm_basicsr.errors import ExportError

DARK = 0.05
BRIGHT = 0.95


def check_traceable(network: nn.Module, shape: tuple[int, ...], name: str) -> None:
    """Run a network on a dark image, on that again and on a bright one, and see what it reads.

    Args:
        network: What is going to be traced; the first that it gives is an image.
        shape: ``(1, C, H, W)`` of an image that it takes.
        name: What to call it.

    Raises:
        ExportError: Its Python code reads values that depend on the image (``if x.mean() > 0.4``),
            or it draws random numbers.
    """
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.rand(shape, generator=generator) - 0.05
    dark = _watch(network, noise + DARK)
    again = _watch(network, noise + DARK)
    bright = _watch(network, noise + BRIGHT)
    if not torch.allclose(dark.output, again.output, equal_nan=True):
        raise ExportError(
            f"{name} can't be written as ONNX: it draws random numbers, which a graph would draw "
            "once"
        )
    if dark.read != bright.read:
        raise ExportError(
            f"{name} can't be written as ONNX: its Python code depends on the image's values (if, "
            "float or int of a tensor), and a graph would keep what one image made of it; use "
            "tensor operations such as torch.where"
        )


def _watch(network: nn.Module, image: Tensor) -> _Watch:
    with torch.no_grad(), _Watch() as watch:
        watch.output = network(image)[0]
    return watch


class _Watch(TorchDispatchMode):
    """Notes values that Python code reads from tensors.

    Attributes:
        read: The values, in the order in which they were read.
        output: What the network gave.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read: list[float] = []
        self.output: Tensor

    def __torch_dispatch__(
        self,
        func: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._local_scalar_dense.default:
            self.read.append(out)
        return out
