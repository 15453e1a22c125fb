"""Finds head, body and tail of an arbitrary super-resolution network from one run of it.

    image -> [head] -> [body: repeated blocks] -> [trunk end] -> [tail: upsampling and last layer] -> image

Nothing is read off names or types of known networks: execution order, shapes and upsampling operations decide, and
patterns of the user's override them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor, nn

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.config import QuantizationConfig
from adabm_basicsr.quantization.layers import is_quantizable
from adabm_basicsr.quantization.patterns import match_all
from adabm_basicsr.quantization.structure.batches import find_unbatched
from adabm_basicsr.quantization.structure.tracing import Call, Trace, pixels, trace_network

# Blocks that hold less than this share of the MACs before the upsampling, at the resolution of the image or their own
# or below, are not the body (those at the bottom of a U-Net, say); every layer between head and tail is then.
MIN_BODY_SHARE = 0.2
MIN_TRUNK_SHARE = (
    0.5  # the same in a U-Net, of the MACs between head and tail: the siblings may be one arm of it
)
MIN_NESTED_SHARE = (
    0.5  # of the MACs of a single module, which the blocks in it must hold to be the body instead
)


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
        roles: Role of every quantizable layer and product, in execution order.
        macs: Multiply-accumulates of each of them for the example.
        other_macs: Those of operations outside of quantizable layers, by ``module: operation``.
        blocks: Names of the body's repeated blocks, whose outputs feed the feature loss, in execution order.
        products: Products of two activations, which are names of ``roles`` but not of modules.
        calls: How many times each layer and product ran.
        unsupported: Layers with weights that no quantized type replaces, with the name of their type.
        unbatched: Names of ``roles`` whose input isn't the samples of a batch one after another; see `find_unbatched`.
        overwritten: Names of layers whose input the network changes in place afterwards.
    """

    roles: dict[str, Role]
    macs: dict[str, int]
    other_macs: dict[str, int]
    blocks: list[str]
    products: list[str]
    calls: dict[str, int]
    unsupported: dict[str, str] = field(default_factory=dict)
    unbatched: set[str] = field(default_factory=set)
    overwritten: set[str] = field(default_factory=set)


def find_structure(
    network: nn.Module,
    example: Tensor,
    config: QuantizationConfig | None = None,
    small: Tensor | None = None,
) -> Structure:
    """Run ``network`` on ``example`` and find its head, body, tail and blocks.

    Args:
        network: Any network that maps ``(B, C, H, W)`` to an image; left as it was.
        example: Input of the network, ``(1, C, H, W)``.
        config: Its patterns ``blocks``, ``head``, ``body`` and ``tail`` override what is found.
        small: A smaller input, to find on what follows a batch sample by sample; ``example`` by default.

    Returns:
        The `Structure`.

    Raises:
        AdaBMError: The network doesn't take such an image, or two at once (recipes whose bits follow the image), or has
            no layer that can be quantized, or a pattern matches nothing.
    """
    config = config or QuantizationConfig()
    trace = trace_network(network, example)
    if not trace.layers:
        raise AdaBMError(
            f"{type(network).__name__} has no convolution or linear layer that can be quantized"
        )
    named = bool(config.blocks)
    blocks = (
        _named_blocks(trace, config.blocks)
        if named
        else _find_blocks(network, trace, pixels(example.shape))
    )
    roles = _find_roles(trace, blocks)
    if blocks and not named and _are_an_arm(blocks, roles, trace):
        blocks, roles = [], _find_roles(trace, [])
    _override(roles, config)
    unbatched = set()
    if config.arithmetic.adaptive:
        unbatched = find_unbatched(network, example if small is None else small)
    return Structure(
        roles=roles,
        macs={name: trace.macs[name] for name in roles},
        other_macs=dict(trace.other_macs),
        blocks=[block.name for block in blocks] or _body_layers(network, roles, unbatched),
        products=trace.products,
        calls=Counter(call.name for call in trace.layers),
        unsupported=_unsupported(network),
        unbatched=unbatched,
        overwritten=trace.overwritten,
    )


def _named_blocks(trace: Trace, patterns: tuple[str, ...]) -> list[Call]:
    """The outermost modules that match the user's patterns."""
    calls = _first_calls(trace)
    modules = [name for name in calls if name]  # "": the network itself
    names = match_all("blocks", patterns, modules, "module with layers in it")
    outermost = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    return sorted((calls[name] for name in outermost), key=lambda call: call.start)


def _find_blocks(network: nn.Module, trace: Trace, image_pixels: int) -> list[Call]:
    """The siblings of one type that keep their input's shape and hold the most MACs; the outermost such family."""
    calls = _first_calls(trace)
    families = [
        family
        for name, parent in network.named_modules()
        for family in _families(name, parent, calls)
    ]
    best = max(families, key=lambda family: _macs(family, trace), default=[])
    if len(best) == 1:  # one module around everything is not a block, if there are blocks in it
        inside = [
            family
            for family in families
            if len(family) > 1 and family[0].name.startswith(f"{best[0].name}.")
        ]
        largest = max(inside, key=lambda family: _macs(family, trace), default=[])
        best = largest if _macs(largest, trace) >= MIN_NESTED_SHARE * _macs(best, trace) else best
    size = max((call.pixels for call in best), default=0)
    upsampling = min(_upsamplings(trace, size), default=len(trace.layers))
    # The last of alike layers may feed a pixel shuffle.
    best = [call for call in best if call.end <= upsampling] or best
    is_body = best and _macs(best, trace) >= MIN_BODY_SHARE * _macs_up_to(
        max(size, image_pixels), trace
    )
    return sorted(best, key=lambda call: call.start) if is_body else []


def _macs_up_to(size: int, trace: Trace) -> int:
    """Of the layers before the upsampling beyond ``size`` pixels that have at most so many."""
    upsampling = min(_upsamplings(trace, size), default=len(trace.layers))
    return sum(
        trace.macs[name]
        for name in {call.name for call in trace.layers[:upsampling] if call.pixels <= size}
    )


def _first_calls(trace: Trace) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    for call in trace.modules:
        calls.setdefault(call.name, call)
    return calls


def _macs(family: list[Call], trace: Trace) -> int:
    return sum(
        trace.macs[n]
        for n in {layer.name for call in family for layer in trace.layers[call.start : call.end]}
    )


def _families(parent_name: str, parent: nn.Module, calls: dict[str, Call]) -> list[list[Call]]:
    families: dict[type, list[Call]] = {}
    for child_name, child in parent.named_children():
        call = calls.get(f"{parent_name}.{child_name}".lstrip("."))
        if call and call.end > call.start and call.keeps_shape:
            families.setdefault(type(child), []).append(call)
    # A family of one counts only as the single block of a body container, as in a network with one residual block.
    in_container = isinstance(parent, (nn.Sequential, nn.ModuleList))
    return [
        family
        for kind, family in families.items()
        if len(family) > 1 or (in_container and kind is not nn.Sequential)
    ]


def _find_roles(trace: Trace, blocks: list[Call]) -> dict[str, Role]:
    tail = _tail_start(trace, blocks)
    roles: dict[str, Role] = {}
    for index, call in enumerate(trace.layers):
        roles.setdefault(call.name, _role(index, call.name, blocks, tail, len(trace.layers)))
    return roles


def _are_an_arm(blocks: list[Call], roles: dict[str, Role], trace: Trace) -> bool:
    """Whether ``blocks`` are but one arm of a U-Net: of what is between head and tail, most is outside of them.

    Some of it works below their resolution then; layers on what was pooled to a single pixel don't tell.
    """
    size = max(block.pixels for block in blocks)
    if not any(
        roles[call.name] is Role.TRUNK_END and 1 < call.pixels < size for call in trace.layers
    ):
        return False
    body, end = (
        sum(trace.macs[n] for n in roles if roles[n] is role)
        for role in (Role.BODY, Role.TRUNK_END)
    )
    return body < MIN_TRUNK_SHARE * (body + end)


def _tail_start(trace: Trace, blocks: list[Call]) -> int:
    """Index of the first layer call of the tail: the layer that feeds a pixel shuffle or that works above body size."""
    body_calls = trace.layers[blocks[0].start : blocks[-1].end] if blocks else trace.layers[:2]
    body_end = blocks[-1].end if blocks else 1
    body_pixels = max((call.pixels for call in body_calls), default=0)
    starts = [len(trace.layers) - 1]
    starts += [index for index in _upsamplings(trace, body_pixels) if index >= body_end - 1]
    for index, call in enumerate(trace.layers[body_end:], body_end):
        if call.pixels > body_pixels:
            starts.append(index)
    return max(min(starts), body_end)


def _upsamplings(trace: Trace, size: int) -> list[int]:
    """Index of the first layer call that belongs to each upsampling beyond ``size`` pixels."""
    return [
        before - fed_by_layer for before, pixels, fed_by_layer in trace.upsamplings if pixels > size
    ]


def _role(index: int, name: str, blocks: list[Call], tail: int, count: int) -> Role:
    first, last = (blocks[0].start, blocks[-1].end) if blocks else (min(1, count - 1), tail)
    if index < first:
        return Role.HEAD
    if index >= tail:
        return Role.TAIL
    in_block = not blocks or any(name.startswith(f"{block.name}.") for block in blocks)
    return Role.BODY if index < last and in_block else Role.TRUNK_END


def _override(roles: dict[str, Role], config: QuantizationConfig) -> None:
    """Where the user names head or tail, nothing else is; named body layers are body wherever they stand."""
    names = list(roles)
    for key, role, instead in (("head", Role.HEAD, Role.BODY), ("tail", Role.TAIL, Role.TRUNK_END)):
        if patterns := getattr(config, key):
            matched = match_all(key, patterns, names)
            roles.update({name: instead for name in names if roles[name] is role})
            roles.update({name: role for name in matched})
    roles.update({name: Role.BODY for name in match_all("body", config.body, names)})


def _body_layers(network: nn.Module, roles: dict[str, Role], unbatched: set[str]) -> list[str]:
    """Body layers of a network without blocks; their outputs serve as features of each image."""
    layers = {name for name, _ in network.named_modules()} - unbatched
    return [name for name, role in roles.items() if role is Role.BODY and name in layers]


def _unsupported(network: nn.Module) -> dict[str, str]:
    return {
        name: type(module).__name__
        for name, module in network.named_modules()
        if not is_quantizable(module)
        and isinstance(getattr(module, "weight", None), nn.Parameter)
        and module.weight.dim() > 1
    }
