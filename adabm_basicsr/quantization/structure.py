"""Finds head, body and tail of an arbitrary super-resolution network by running it once.

    image -> [head] -> [body: repeated blocks] -> [trunk end] -> [tail: upsampling and last layer] -> image

Nothing is read off names or types of known networks: execution order, shapes and upsampling operations decide.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.layers import is_quantizable

# Blocks that hold less than this share of the MACs at their own resolution or below are not the body; every layer
# between head and tail is then.
MIN_BODY_SHARE = 0.2


class Role(str, Enum):
    """Where in the network a layer works."""

    HEAD = "head"
    BODY = "body"
    TRUNK_END = "trunk end"
    TAIL = "tail"


@dataclass
class Structure:
    """What one run of the network showed.

    Attributes:
        roles: Role of every quantizable layer, in execution order.
        macs: Multiply-accumulates of every quantizable layer for the example input.
        blocks: Names of the body's repeated blocks, whose outputs feed the feature loss, in execution order.
        unsupported: Layers with weights that no quantized type replaces, with the name of their type.
    """

    roles: dict[str, Role]
    macs: dict[str, float]
    blocks: list[str]
    unsupported: dict[str, str] = field(default_factory=dict)


@dataclass
class _Call:
    name: str
    start: int  # index of the first layer call inside this module call
    end: int  # one past the last
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    macs: float = 0.0


@dataclass
class _Trace:
    layers: list[_Call] = field(default_factory=list)
    modules: list[_Call] = field(default_factory=list)
    upsamplings: list[tuple[int, int, bool]] = field(default_factory=list)  # (layer index, pixels out, fed by a layer)


def layer_macs(layer: nn.Module, x: Tensor, out: Tensor) -> int:
    """Multiply-accumulates of a convolution, transposed convolution or linear layer for the whole of its input."""
    return (x if isinstance(layer, nn.ConvTranspose2d) else out).numel() * layer.weight[0].numel()


def find_structure(network: nn.Module, example: Tensor) -> Structure:
    """Run ``network`` once on ``example`` and find its head, body, tail and blocks.

    Args:
        network: Any network that maps ``(B, C, H, W)`` to an image; left as it was.
        example: Input of the network, ``(1, C, H, W)``.

    Returns:
        The `Structure`.

    Raises:
        AdaBMError: The network doesn't take such an image, or has no layer that can be quantized.
    """
    trace = _run(network, example)
    if not trace.layers:
        raise AdaBMError(f"{type(network).__name__} has no convolution or linear layer that can be quantized")
    blocks = _find_blocks(network, trace)
    tail = _tail_start(trace, blocks)
    roles: dict[str, Role] = {}
    macs: dict[str, float] = {}
    for index, call in enumerate(trace.layers):
        roles.setdefault(call.name, _role(index, call.name, blocks, tail, len(trace.layers)))
        macs[call.name] = macs.get(call.name, 0.0) + call.macs
    names = [block.name for block in blocks] or [name for name, role in roles.items() if role is Role.BODY]
    return Structure(roles, macs, names, _unsupported(network))


def _run(network: nn.Module, example: Tensor) -> _Trace:
    trace = _Trace()
    open_calls: list[int] = []

    def enter(module: nn.Module, args: tuple) -> None:
        open_calls.append(len(trace.layers))

    def leave(name: str, module: nn.Module, args: tuple, output) -> None:
        start = open_calls.pop()
        if not (args and isinstance(args[0], Tensor) and isinstance(output, Tensor)):
            return
        call = _Call(name, start, len(trace.layers), tuple(args[0].shape), tuple(output.shape))
        if is_quantizable(module):
            call.macs = layer_macs(module, args[0], output)
            trace.layers.append(call)
        else:
            trace.modules.append(call)

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(lambda m, a, o, name=name: leave(name, m, a, o)))
    try:
        with torch.no_grad(), _UpsamplingRecorder(trace):
            network(example.clone())
    except Exception as error:  # whatever the network's own code raises
        raise AdaBMError(
            f"{type(network).__name__} cannot be run on an image of shape {tuple(example.shape)}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return trace


class _UpsamplingRecorder(TorchFunctionMode):
    """Notes where pixel shuffles and interpolations happen, be they modules or functions."""

    def __init__(self, trace: _Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.pixel_shuffle, F.pixel_shuffle):
            self.trace.upsamplings.append((len(self.trace.layers) - 1, _pixels(out.shape), True))
        elif func is F.interpolate:
            self.trace.upsamplings.append((len(self.trace.layers) - 1, _pixels(out.shape), False))
        return out


def _pixels(shape: tuple[int, ...]) -> int:
    """Spatial positions of an image (B, C, H, W) or a token sequence (B, L, C)."""
    return shape[-1] * shape[-2] if len(shape) == 4 else shape[1] if len(shape) == 3 else 1


def _find_blocks(network: nn.Module, trace: _Trace) -> list[_Call]:
    """The siblings of one type that keep their input's shape and hold the most MACs; the outermost such family."""
    calls: dict[str, _Call] = {}
    for call in trace.modules:
        calls.setdefault(call.name, call)
    best: list[_Call] = []
    best_macs = 0.0
    for parent_name, parent in network.named_modules():
        for family in _families(parent_name, parent, calls):
            macs = sum(layer.macs for call in family for layer in trace.layers[call.start : call.end])
            if macs > best_macs:
                best, best_macs = family, macs
    pixels = max((_pixels(call.out_shape) for call in best), default=0)
    comparable = sum(layer.macs for layer in trace.layers if _pixels(layer.out_shape) <= pixels)
    return sorted(best, key=lambda call: call.start) if best and best_macs >= MIN_BODY_SHARE * comparable else []


def _families(parent_name: str, parent: nn.Module, calls: dict[str, _Call]) -> list[list[_Call]]:
    families: dict[type, list[_Call]] = {}
    for child_name, child in parent.named_children():
        call = calls.get(f"{parent_name}.{child_name}".lstrip("."))
        if call and call.end > call.start and call.in_shape == call.out_shape:
            families.setdefault(type(child), []).append(call)
    # A family of one counts only as the single block of a body container, as in a network with one residual block.
    in_container = isinstance(parent, (nn.Sequential, nn.ModuleList))
    return [
        family for kind, family in families.items() if len(family) > 1 or (in_container and kind is not nn.Sequential)
    ]


def _tail_start(trace: _Trace, blocks: list[_Call]) -> int:
    """Index of the first layer call of the tail: the layer that feeds a pixel shuffle or that works above body size."""
    body_calls = trace.layers[blocks[0].start : blocks[-1].end] if blocks else trace.layers[:2]
    body_end = blocks[-1].end if blocks else 1
    body_pixels = max(_pixels(call.out_shape) for call in body_calls)
    starts = [len(trace.layers) - 1]
    for index, pixels, fed_by_layer in trace.upsamplings:
        if index >= body_end - 1 and pixels > body_pixels:
            starts.append(index if fed_by_layer else index + 1)
    for index, call in enumerate(trace.layers[body_end:], body_end):
        if _pixels(call.out_shape) > body_pixels:
            starts.append(index)
    return max(min(starts), body_end)


def _role(index: int, name: str, blocks: list[_Call], tail: int, count: int) -> Role:
    first, last = (blocks[0].start, blocks[-1].end) if blocks else (min(1, count - 1), tail)
    if index < first:
        return Role.HEAD
    if index >= tail:
        return Role.TAIL
    in_block = not blocks or any(name.startswith(f"{block.name}.") for block in blocks)
    return Role.BODY if index < last and in_block else Role.TRUNK_END


def _unsupported(network: nn.Module) -> dict[str, str]:
    return {
        name: type(module).__name__
        for name, module in network.named_modules()
        if not is_quantizable(module)
        and isinstance(getattr(module, "weight", None), nn.Parameter)
        and module.weight.dim() > 1
    }
