"""Whether a graph can stand for a network.

Tracing keeps what Python code made of one image, for all images: of its values (`check_values`) and
of its size (`check_sizes`). What torch's exporter makes of the trace may keep a size too
(`check_graph`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adabm_basicsr.deployment.onnx.reference import evaluator
from adabm_basicsr.errors import ExportError, first_line

DARK = 0.05
BRIGHT = 0.95
# Heights and widths as shares of those that are traced: small, odd, larger.
OTHER_SIZES = ((0.2, 0.3), (0.08, 0.11), (0.42, 0.61), (1.3, 1.2))
LEAST_AGREEMENT = 80.0  # dB of the output; the same operations in the same order give far more
# Other programs round otherwise, and a value at another grid point moves its neighbours.
LEAST_AGREEMENT_OF_GRAPH = 20.0


def check_values(network: nn.Module, shape: tuple[int, ...], name: str) -> None:
    """Run a network on a dark image, on that again and on a bright one, and see what it reads.

    Args:
        network: What is going to be traced; the first that it gives is an image.
        shape: That of what it takes: ``(1, C, H, W)``, or ``(1, T, C, H, W)`` of a window.
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


def check_sizes(network: nn.Module, shape: tuple[int, ...], name: str, multiple: int = 1) -> None:
    """Trace a network at one size, and see whether the trace computes the same at others.

    Args:
        network: See `check_values`.
        shape: That of what it takes: ``(1, C, H, W)``, or ``(1, T, C, H, W)`` of a window.
        name: What to call it.
        multiple: What the sizes that it takes are multiples of.

    Raises:
        ExportError: Its Python code makes something of an image's size (``if x.shape[-1] < 50``, a
            table for one size, numpy) that the trace keeps for all sizes.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), warnings.catch_warnings():
        # Of values that the tracer keeps as constants: what is looked at here.
        warnings.simplefilter("ignore")
        example = torch.rand(shape, generator=generator)
        traced = torch.jit.trace(network, example, check_trace=False)
        for share_of_height, share_of_width in OTHER_SIZES:
            height = _multiple_near(shape[-2] * share_of_height, multiple)
            width = _multiple_near(shape[-1] * share_of_width, multiple)
            image = torch.rand((*shape[:-2], height, width), generator=generator)
            try:
                expected = network(image.clone())[0]
            except Exception:  # whatever its code raises on a size that it doesn't take
                continue
            try:
                output = traced(image)[0]
            except RuntimeError as error:  # of operations that don't fit the size
                raise _depends_on_size(name, shape, image, first_line(error)) from error
            if output.shape != expected.shape:
                raise _depends_on_size(name, shape, image, "the output has another size")
            agreement = _agreement(output, expected)
            if agreement < LEAST_AGREEMENT:
                raise _depends_on_size(name, shape, image, f"they agree by {agreement:.0f} dB")


def check_graph(
    model: onnx.ModelProto, network: nn.Module, shape: tuple[int, ...], multiple: int = 1
) -> None:
    """Run a graph as ONNX defines it on an image of another size than the one that was traced.

    The exporter computes some shapes at once, of ``nn.MultiheadAttention`` for example. Graphs that
    the definition's own program can't run at the traced size either, for want of an operator or of
    one of its options, aren't looked at.

    Args:
        model: The graph.
        network: What was traced; the first that it gives is an image.
        shape: ``(1, C, H, W)`` of the image that was traced.
        multiple: What the sizes that it takes are multiples of.

    Raises:
        ExportError: The graph fails, or gives another image than the network.
    """
    share_of_height, share_of_width = OTHER_SIZES[0]
    height = _multiple_near(shape[-2] * share_of_height, multiple)
    width = _multiple_near(shape[-1] * share_of_width, multiple)
    difference = _difference(model, network, (*shape[:-2], height, width))
    if difference is None:
        return
    at_traced_size = _difference(model, network, shape)
    if at_traced_size is not None and at_traced_size.is_failure:
        return
    raise ExportError(
        f"the network can't be written as ONNX: its graph, traced with {shape[-1]}x{shape[-2]} "
        f"pixels, doesn't do for {width}x{height} ({difference.reason})"
    )


class _Difference(NamedTuple):
    """What is wrong with a graph's output; a failure where there is none."""

    reason: str
    is_failure: bool = False


def _difference(
    model: onnx.ModelProto, network: nn.Module, shape: tuple[int, ...]
) -> _Difference | None:
    """What is wrong with a graph's output for an image of a shape; None if nothing can be said."""
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            expected = network(image.clone())[0]
    except Exception:  # whatever its code raises on a size that it doesn't take
        return None
    try:
        name = model.graph.input[0].name
        outputs: Any = evaluator(model).run(None, {name: image.numpy()})
    except NotImplementedError:
        return None
    except Exception as error:  # of NumPy, whatever an operator stumbles over
        return _Difference(first_line(error), is_failure=True)
    output = torch.from_numpy(np.asarray(outputs[0]))
    if output.shape != expected.shape:
        return _Difference("the output has another size")
    agreement = _agreement(output, expected)
    if agreement < LEAST_AGREEMENT_OF_GRAPH:
        return _Difference(f"they agree by {agreement:.0f} dB")
    return None


def _multiple_near(size: float, multiple: int) -> int:
    return max(round(size / multiple), 1) * multiple


def _depends_on_size(
    name: str, shape: tuple[int, ...], image: Tensor, difference: str
) -> ExportError:
    traced_size = f"{shape[-1]}x{shape[-2]}"
    size = f"{image.shape[-1]}x{image.shape[-2]}"
    return ExportError(
        f"{name} can't be written as ONNX: its Python code makes something of the image's size, "
        f"which a graph of {traced_size} pixels would keep for {size} ({difference}); use tensor "
        "operations on shapes, and no tables of one size, numpy or if"
    )


def _agreement(output: Tensor, expected: Tensor) -> float:
    """In dB of the expected output; values that aren't finite agree with their like."""
    noise = (output.nan_to_num() - expected.nan_to_num()).double().square().mean()
    signal = expected.nan_to_num().double().square().mean()
    smallest = torch.finfo(torch.float64).tiny
    ratio = signal.clamp(min=smallest) / noise.clamp(min=smallest)
    return float(10 * torch.log10(ratio))


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
