"""Finds the repeated blocks that make up the body of a network, or takes those that a user names.

Blocks are siblings of one type that keep their input's shape. Of all such families in the network
the one that holds the most MACs is the body.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from adabm_basicsr.quantization.patterns import match_all
from adabm_basicsr.quantization.structure.tracing import Call, Trace

# Blocks that hold less than this share of the MACs before the upsampling, at the resolution of the
# image or their own or below, are not the body (those at the bottom of a U-Net, say); every layer
# between head and tail is then.
MIN_BODY_SHARE = 0.2
# Of the MACs of a single module, which the blocks in it must hold to be the body instead.
MIN_NESTED_SHARE = 0.5


def find_blocks(
    network: nn.Module, trace: Trace, image_pixels: int, takes_clips: bool = False
) -> list[Call]:
    """The body's blocks, found from one run.

    Args:
        network: The network.
        trace: What its run showed.
        image_pixels: Spatial positions of the image that it ran on.
        takes_clips: Whether it takes clips. Its body may have several parts of the same blocks: one
            for each direction in time, say.

    Returns:
        First calls of the blocks, in execution order; empty if no family of modules is the body.
    """
    families = _families(network, trace)
    if takes_clips:
        families = _of_one_kind(families, network)
    blocks = _largest(families, trace)
    if len(blocks) == 1:
        blocks = _blocks_inside(blocks[0], families, trace) or blocks
    if not blocks:
        return []

    size = max(call.pixels for call in blocks)
    # The last of alike layers may feed a pixel shuffle; it is no block then.
    upsampling = _first_upsampling(trace, size)
    before_upsampling = [call for call in blocks if call.end <= upsampling]
    if before_upsampling:
        blocks = before_upsampling

    all_macs = _macs_before_upsampling(trace, max(size, image_pixels))
    if _macs(blocks, trace) < MIN_BODY_SHARE * all_macs:
        return []
    return sorted(blocks, key=lambda call: call.start)


def named_blocks(trace: Trace, patterns: Sequence[str]) -> list[Call]:
    """First calls of the outermost modules that match ``patterns``, in execution order.

    Raises:
        AdaBMError: A pattern matches no module with layers in it.
    """
    calls = _first_calls(trace)
    modules = [name for name in calls if name]  # "" is the network itself
    names = match_all("blocks", patterns, modules, "module with layers in it")
    outermost = []
    for name in names:
        is_inside = any(name.startswith(f"{other}.") for other in names)
        if not is_inside:
            outermost.append(calls[name])
    return sorted(outermost, key=lambda call: call.start)


def _families(network: nn.Module, trace: Trace) -> list[list[Call]]:
    """Siblings of one type that hold layers and keep their input's shape, of every parent."""
    calls = _first_calls(trace)
    families = []
    for parent_name, parent in network.named_modules():
        by_type: dict[type, list[Call]] = {}
        for child_name, child in parent.named_children():
            call = calls.get(f"{parent_name}.{child_name}".lstrip("."))
            if call and call.end > call.start and call.keeps_shape:
                by_type.setdefault(type(child), []).append(call)
        in_container = isinstance(parent, (nn.Sequential, nn.ModuleList))
        for kind, family in by_type.items():
            # A family of one counts only as the single block of a body container, as in a network
            # with one residual block.
            is_single_block = in_container and kind is not nn.Sequential
            if len(family) > 1 or is_single_block:
                families.append(family)
    return families


def _of_one_kind(families: list[list[Call]], network: nn.Module) -> list[list[Call]]:
    """Families put together whose blocks are of one type and work on as many pixels.

    Containers of any modules are of no type in this sense.
    """
    united: dict[object, list[Call]] = {}
    for family in families:
        kind = type(network.get_submodule(family[0].name))
        key: object = (kind, family[0].pixels)
        if kind is nn.Sequential:
            key = family[0].name
        united.setdefault(key, []).extend(family)
    return list(united.values())


def _blocks_inside(module: Call, families: list[list[Call]], trace: Trace) -> list[Call]:
    """The blocks in a single module, if they hold most of its MACs; else none.

    One module around everything is not a block if there are blocks in it.
    """
    inside = []
    for family in families:
        if len(family) > 1 and family[0].name.startswith(f"{module.name}."):
            inside.append(family)
    largest = _largest(inside, trace)
    if _macs(largest, trace) < MIN_NESTED_SHARE * _macs([module], trace):
        return []
    return largest


def _largest(families: list[list[Call]], trace: Trace) -> list[Call]:
    """The family that holds the most MACs, of equal ones the outermost; empty if there is none."""
    return max(families, key=lambda family: _macs(family, trace), default=[])


def _macs(calls: list[Call], trace: Trace) -> int:
    """MACs of the layers in ``calls``, each layer once."""
    names: set[str] = set()
    for call in calls:
        for layer in trace.layers[call.start : call.end]:
            names.add(layer.name)
    return sum(trace.macs[name] for name in names)


def _macs_before_upsampling(trace: Trace, size: int) -> int:
    """MACs of the layers that work on at most ``size`` pixels before an upsampling beyond them."""
    before = trace.layers[: _first_upsampling(trace, size)]
    names = {call.name for call in before if call.pixels <= size}
    return sum(trace.macs[name] for name in names)


def _first_upsampling(trace: Trace, size: int) -> int:
    """Index of the first layer call of an upsampling beyond ``size`` pixels.

    The number of layer calls if there is no such upsampling.
    """
    starts = []
    for upsampling in trace.upsamplings:
        if upsampling.pixels > size:
            starts.append(upsampling.first_layer)
    return min(starts, default=len(trace.layers))


def _first_calls(trace: Trace) -> dict[str, Call]:
    """The first call of each module that isn't a layer, by name."""
    calls: dict[str, Call] = {}
    for call in trace.modules:
        calls.setdefault(call.name, call)
    return calls
