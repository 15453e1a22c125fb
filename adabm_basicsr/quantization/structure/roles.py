"""Decides which layers of an arbitrary network are head, body, trunk end and tail: `find_roles`.

    image -> [head] -> [body: repeated blocks] -> [trunk end] -> [tail: upsampling, last layer]

Nothing is read off names or types of known networks. One run of the network (`tracing`) shows the
order of its layer calls, their resolutions, and where it upsamples:

- *body*: the layers inside the repeated blocks (`blocks`); without blocks all layers between the
  first one and the tail.
- *head*: the layers before the first block.
- *tail*: everything from the first layer that feeds an upsampling, or that works at a higher
  resolution than the body; at least the last layer.
- *trunk end*: what is left, between the blocks or after them.

Patterns ``head``, ``tail``, ``blocks`` and ``body`` of the user's override what is found.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor, nn

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.config import QuantizationConfig
from adabm_basicsr.quantization.layers import is_half, is_quantizable
from adabm_basicsr.quantization.layers.join import is_clip
from adabm_basicsr.quantization.patterns import match_all
from adabm_basicsr.quantization.structure.batches import find_unbatched
from adabm_basicsr.quantization.structure.blocks import find_blocks, named_blocks
from adabm_basicsr.quantization.structure.tracing import Call, Trace, pixels, trace_network

# Blocks of a U-Net that hold less than this share of the MACs between head and tail are one arm of
# it, and not the body.
MIN_TRUNK_SHARE = 0.5


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
        blocks: Names of the body's repeated blocks, whose outputs feed the feature loss, in
            execution order.
        products: Products of two activations, which are names of ``roles`` but not of modules.
        calls: How many times each layer and product ran.
        unsupported: Layers with weights that no quantized type replaces, with the name of their
            type.
        unbatched: Names of ``roles`` whose input isn't the samples of a batch one after another;
            see `find_unbatched`.
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

    @property
    def total_macs(self) -> int:
        """Multiply-accumulates of the whole network for the example."""
        return sum(self.macs.values()) + sum(self.other_macs.values())


def find_structure(
    network: nn.Module,
    example: Tensor,
    config: QuantizationConfig | None = None,
    small: Tensor | None = None,
) -> Structure:
    """Run ``network`` on ``example`` and find its head, body, tail and blocks.

    Args:
        network: Any network that maps ``(B, C, H, W)`` to an image, or takes clips; left as it was.
        example: Input of the network, ``(1, C, H, W)`` or ``(1, T, C, H, W)``.
        config: Its patterns ``blocks``, ``head``, ``body`` and ``tail`` override what is found.
        small: A smaller input, to find on what doesn't follow a batch sample by sample;
            ``example`` by default.

    Returns:
        The `Structure`.

    Raises:
        AdaBMError: The network doesn't take such an image, or two at once (recipes whose bits
            follow the image), or has no layer that can be quantized, or a pattern matches nothing.
    """
    if config is None:
        config = QuantizationConfig()
    if small is None:
        small = example
    trace = trace_network(network, example)
    if not trace.layers:
        raise AdaBMError(
            f"{type(network).__name__} has no convolution or linear layer that can be quantized"
        )
    if config.blocks:
        blocks = named_blocks(trace, config.blocks)
        roles = find_roles(trace, blocks)
    else:
        takes_clips = is_clip(example)
        image_pixels = pixels(example.shape, takes_clips)
        blocks = find_blocks(network, trace, image_pixels, takes_clips)
        roles = find_roles(trace, blocks)
        if blocks and _are_an_arm(blocks, roles, trace):
            blocks = []
            roles = find_roles(trace, blocks)
    override_roles(roles, config)

    unbatched: set[str] = set()
    if config.arithmetic.adaptive:
        unbatched = find_unbatched(network, small)
    block_names = [block.name for block in blocks]
    if not block_names:
        block_names = _body_layers(network, roles, unbatched)
    return Structure(
        roles=roles,
        macs={name: trace.macs[name] for name in roles},
        other_macs=dict(trace.other_macs),
        blocks=block_names,
        products=trace.products,
        calls=dict(Counter(call.name for call in trace.layers)),
        unsupported=_unsupported(network),
        unbatched=unbatched,
        overwritten=trace.overwritten,
    )


def find_roles(trace: Trace, blocks: list[Call]) -> dict[str, Role]:
    """Decide what each layer and product is: head, body, trunk end or tail.

    Args:
        trace: What one run of the network showed.
        blocks: Calls of the body's blocks, in execution order; may be empty.

    Returns:
        Roles by name, in execution order. What runs several times has the role of its first call.
    """
    tail_start = _tail_start(trace, blocks)
    if blocks:
        body_start = blocks[0].start
        body_end = blocks[-1].end
    else:
        body_start = min(1, len(trace.layers) - 1)
        body_end = tail_start

    roles: dict[str, Role] = {}
    for index, call in enumerate(trace.layers):
        in_block = any(call.name.startswith(f"{block.name}.") for block in blocks)
        if index < body_start:
            role = Role.HEAD
        elif index >= tail_start:
            role = Role.TAIL
        elif index < body_end and (in_block or not blocks):
            role = Role.BODY
        else:
            role = Role.TRUNK_END
        roles.setdefault(call.name, role)
    return roles


def _tail_start(trace: Trace, blocks: list[Call]) -> int:
    """Index of the tail's first layer call, after the body."""
    if blocks:
        body_end = blocks[-1].end
        body_calls = trace.layers[blocks[0].start : body_end]
    else:
        body_end = 1
        body_calls = trace.layers[:2]  # the head, and what follows it
    body_pixels = max((call.pixels for call in body_calls), default=0)

    starts = [len(trace.layers) - 1]
    for upsampling in trace.upsamplings:
        is_after_body = upsampling.first_layer >= body_end - 1
        if is_after_body and upsampling.pixels > body_pixels:
            starts.append(upsampling.first_layer)
    for index in range(body_end, len(trace.layers)):
        if trace.layers[index].pixels > body_pixels:
            starts.append(index)
    return max(min(starts), body_end)


def _are_an_arm(blocks: list[Call], roles: dict[str, Role], trace: Trace) -> bool:
    """Whether ``blocks`` are but one arm of a U-Net.

    Then most of what is between head and tail is outside of them, and some of it works at a lower
    resolution. Layers on what was pooled to a single pixel say nothing about that.
    """
    size = max(block.pixels for block in blocks)
    lower_calls = [call for call in trace.layers if 1 < call.pixels < size]
    if not any(roles[call.name] is Role.TRUNK_END for call in lower_calls):
        return False
    macs: Counter[Role] = Counter()
    for name, role in roles.items():
        macs[role] += trace.macs[name]
    between = macs[Role.BODY] + macs[Role.TRUNK_END]
    return macs[Role.BODY] < MIN_TRUNK_SHARE * between


def override_roles(roles: dict[str, Role], config: QuantizationConfig) -> None:
    """Change ``roles`` to what the user's patterns say.

    Where the user names head or tail, nothing else is; named body layers are body wherever they
    stand.
    """
    names = list(roles)
    head = match_all("head", config.head, names)
    if head:
        _give_alone(roles, head, Role.HEAD, instead=Role.BODY)
    tail = match_all("tail", config.tail, names)
    if tail:
        _give_alone(roles, tail, Role.TAIL, instead=Role.TRUNK_END)
    for name in match_all("body", config.body, names):
        roles[name] = Role.BODY


def _give_alone(roles: dict[str, Role], names: list[str], role: Role, instead: Role) -> None:
    """Give ``role`` to ``names`` and to no others; those that had it get another ``instead``."""
    for name, had in roles.items():
        if had is role:
            roles[name] = instead
    for name in names:
        roles[name] = role


def _body_layers(network: nn.Module, roles: dict[str, Role], unbatched: set[str]) -> list[str]:
    """Body layers of a network without blocks; their outputs serve as features of each image."""
    modules = {name for name, _ in network.named_modules()}
    body = [name for name, role in roles.items() if role is Role.BODY]
    return [name for name in body if name in modules and name not in unbatched]


def _unsupported(network: nn.Module) -> dict[str, str]:
    """Layers with weights that no quantized type replaces, with the name of their type."""
    found = {}
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        has_weight = isinstance(weight, nn.Parameter) and weight.dim() > 1
        if has_weight and not is_quantizable(module):
            found[name] = _kind(module)
    return found


def _kind(layer: nn.Module) -> str:
    """Type of a layer, and of its weight where that is the reason."""
    name = type(layer).__name__
    if is_half(layer):
        return f"{name} in {layer.weight.dtype}"
    return name
