"""All that a run of a network shows, in a form that is stored beside the weights.

What a network computes may depend on its weights: which of several experts it asks, say. A network
that is rebuilt to load weights has others at first, so it isn't run: it is built by the blueprint
of the one that was saved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import Tensor, nn

from adabm_basicsr.errors import CheckpointError, is_whole
from adabm_basicsr.quantization.config import (
    BITS,
    MAX_CHANNELS,
    MAX_FRAMES,
    MAX_SIZE_MULTIPLE,
    QuantizationConfig,
)
from adabm_basicsr.quantization.engines import NO_SUMS
from adabm_basicsr.quantization.layers import (
    JOINS_KEY,
    PRODUCTS_KEY,
    QuantizedLayer,
    quantized_type,
)
from adabm_basicsr.quantization.layers.functional import SETTINGS
from adabm_basicsr.quantization.layers.join import is_clip
from adabm_basicsr.quantization.precision import full_float32
from adabm_basicsr.quantization.structure.clips import Clips, find_taken_clips
from adabm_basicsr.quantization.structure.functional import FunctionLayer
from adabm_basicsr.quantization.structure.joins import INPUT, OUTPUT, Joins, find_joins
from adabm_basicsr.quantization.structure.preparation import (
    Preparation,
    copy_of,
    find_preparation,
)
from adabm_basicsr.quantization.structure.roles import Role, Structure, find_structure
from adabm_basicsr.quantization.structure.sizes import (
    find_sizes,
    pad_to_multiple,
    smallest_clip,
)
from adabm_basicsr.quantization.structure.surgery import LayerPlan, Plan, plan_layers

MAX_OPERANDS = 4096  # of a concatenation
MAX_STEP = 4096  # of a convolution's stride, padding and dilation, in pixels
PADDINGS = ("same", "valid")
MAX_MACS = 2**62


@dataclass
class Blueprint:
    """What a quantized network is built by, apart from its options and weights.

    Attributes:
        in_channels: Channels of the images, or of the frames, that the network takes.
        size_multiple: What the sizes of images that it takes are multiples of.
        preparation: How it is rewritten before its layers are replaced.
        structure: Roles and blocks.
        plan: Quantized and skipped layers.
        joins: Sums and concatenations of networks for engines that add up integers.
        clips: Which clips the network takes; None of one that takes images.
    """

    in_channels: int
    size_multiple: int
    preparation: Preparation
    structure: Structure
    plan: Plan
    joins: Joins = field(default_factory=Joins)
    clips: Clips | None = None

    def describe(self) -> dict[str, Any]:
        """The blueprint in JSON's types; `read_blueprint` reads it."""
        described = asdict(self)
        structure = described["structure"]
        structure["roles"] = {name: role.value for name, role in self.structure.roles.items()}
        structure["unbatched"] = sorted(self.structure.unbatched)
        structure["overwritten"] = sorted(self.structure.overwritten)
        described["preparation"]["folded"] = [list(pair) for pair in self.preparation.folded]
        return described

    def check(self, prepared: nn.Module) -> None:
        """Check that the network has the layers, blocks and products of the blueprint.

        Args:
            prepared: The network after its preparation.

        Raises:
            CheckpointError: It hasn't.
        """
        modules = dict(prepared.named_modules())
        for name in self.plan.layers:
            if name in self.structure.products:
                continue
            layer = modules.get(name)
            has_type = isinstance(layer, QuantizedLayer) or (
                layer is not None and quantized_type(layer) is not None
            )
            if not has_type:
                raise CheckpointError(f"{name!r} is no layer of the network that can be quantized")
        for name in self.structure.blocks:
            if name not in modules:
                raise CheckpointError(f"the network has no block {name!r}")
        _check_operations(modules, dict.fromkeys(self.structure.products), PRODUCTS_KEY, "product")
        _check_operations(modules, self.joins.operands, JOINS_KEY, "join")


def _check_operations(
    modules: Mapping[str, nn.Module], names: Iterable[str], key: str, kind: str
) -> None:
    """Check that operations are numbered in the modules that compute them.

    Args:
        modules: Of the network, by name.
        names: Of the operations, in the order in which they run.
        key: What holds those of a module.
        kind: What to call one.

    Raises:
        CheckpointError: One isn't.
    """
    counts: Counter[str] = Counter()
    for name in names:
        owner, _, index = name.rpartition(key)
        owner = owner.rstrip(".")
        if owner not in modules or index != f".{counts[owner]}":
            raise CheckpointError(f"the network has no {kind} {name!r}")
        counts[owner] += 1


@full_float32()
def find_blueprint(network: nn.Module, config: QuantizationConfig, example: Tensor) -> Blueprint:
    """Run ``network`` and decide by it how the network is quantized.

    Args:
        network: In evaluation mode; left as it was.
        config: What to quantize and how.
        example: An input of the network, ``(1, C, H, W)`` or ``(1, T, C, H, W)``, on its device.

    Raises:
        AdaBMError: The network doesn't take such an input, a pattern matches nothing, or nothing
            can be quantized.
    """
    channels = example.shape[-3]
    if config.size_multiple:
        size_multiple = config.size_multiple
        example = pad_to_multiple(example, size_multiple)
        # A size that the network takes.
        small = example
    else:
        size_multiple, small_size = find_sizes(network, example)
        example = pad_to_multiple(example, size_multiple)
        small = example.new_zeros(*example.shape[:-2], *small_size)
        if is_clip(example):
            small = smallest_clip(network, example, size_multiple)
    clips = find_taken_clips(network, small)

    preparation = find_preparation(network, example, fold=config.arithmetic.integer)
    prepared = network
    if preparation:
        prepared = preparation.apply(copy_of(network)).eval()
    structure = find_structure(prepared, example, config, small)
    plan = plan_layers(structure, config)
    joins = Joins()
    if config.integers_of.sums != NO_SUMS:
        joins = find_joins(prepared, example, config.integers_of.sums)
    return Blueprint(channels, size_multiple, preparation, structure, plan, joins, clips)


# Reading


def read_blueprint(described: object) -> Blueprint:
    """The blueprint that `Blueprint.describe` described.

    Args:
        described: From a file, which may come from anyone.

    Raises:
        CheckpointError: Something in it is missing, unknown or of another kind.
    """
    if isinstance(described, dict):
        # Files that were written before are of networks that take images.
        described = {"clips": None, **described}
    parts = _parts("blueprint", described, Blueprint)
    in_channels = _whole("in_channels", parts["in_channels"], 1, MAX_CHANNELS)
    size_multiple = _whole("size_multiple", parts["size_multiple"], 1, MAX_SIZE_MULTIPLE)
    preparation = _read_preparation(parts["preparation"])
    structure = _read_structure(parts["structure"])
    plan = _read_plan(parts["plan"], structure)
    joins = _read_joins(parts["joins"], structure)
    clips = read_clips(parts["clips"])
    return Blueprint(in_channels, size_multiple, preparation, structure, plan, joins, clips)


def read_clips(described: object) -> Clips | None:
    """Clips that a network takes, as a file describes them; None of one that takes images.

    Raises:
        CheckpointError: The description is damaged.
    """
    if described is None:
        return None
    parts = _parts("clips", described, Clips)
    frames = _whole("clips: frames", parts["frames"], 1, MAX_FRAMES)
    if not isinstance(parts["any_length"], bool):
        raise _damaged("clips: any_length", parts["any_length"])
    return Clips(frames, parts["any_length"])


def _read_preparation(described: object) -> Preparation:
    if isinstance(described, dict):
        # Files that were written before have none.
        described = {"functions": [], **described}
    parts = _parts("preparation", described, Preparation)
    folded = []
    for pair in _list("preparation: folded", parts["folded"]):
        names = _texts("preparation: folded", pair)
        if len(names) != 2:
            raise _damaged("preparation: folded", pair)
        folded.append((names[0], names[1]))
    functions = []
    for function in _list("preparation: functions", parts["functions"]):
        functions.append(_read_function(function))
    return Preparation(
        functions=functions,
        rewritten=_texts("preparation: rewritten", parts["rewritten"]),
        normalised=_texts("preparation: normalised", parts["normalised"]),
        folded=folded,
    )


def _read_function(described: object) -> FunctionLayer:
    key = "preparation: functions"
    parts = _parts(key, described, FunctionLayer)
    names = [parts[name] for name in ("owner", "weight", "bias")]
    _texts(key, names)
    settings = _mapping(key, parts["settings"])
    if settings and settings.keys() != SETTINGS.keys():
        raise _damaged(f"{key}: settings", settings)
    for name, value in settings.items():
        if name == "groups":
            _whole(f"{key}: {name}", value, 1, MAX_CHANNELS)
        elif name != "padding" or value not in PADDINGS:
            pair = _list(f"{key}: {name}", value)
            if len(pair) != 2:
                raise _damaged(f"{key}: {name}", pair)
            for number in pair:
                _whole(f"{key}: {name}", number, int(name != "padding"), MAX_STEP)
    return FunctionLayer(names[0], names[1], names[2], settings)


def _read_structure(described: object) -> Structure:
    parts = _parts("structure", described, Structure)
    roles = {}
    known = {role.value: role for role in Role}
    for name, role in _mapping("roles", parts["roles"]).items():
        if not isinstance(role, str) or role not in known:
            raise _damaged(f"roles: {name}", role)
        roles[name] = known[role]
    names = list(roles)
    structure = Structure(
        roles=roles,
        macs=_counts("macs", parts["macs"], 0),
        other_macs=_counts("other_macs", parts["other_macs"], 0),
        blocks=_texts("blocks", parts["blocks"]),
        products=_names_among("products", parts["products"], names),
        calls=_counts("calls", parts["calls"], 1),
        unsupported=_text_mapping("unsupported", parts["unsupported"]),
        unbatched=set(_names_among("unbatched", parts["unbatched"], names)),
        overwritten=set(_names_among("overwritten", parts["overwritten"], names)),
    )
    for key, counted in (("macs", structure.macs), ("calls", structure.calls)):
        if counted.keys() != roles.keys():
            raise CheckpointError(f"{_WHERE}: {key} and roles are of other layers")
    if not 0 < structure.total_macs < MAX_MACS:
        raise _damaged("macs", structure.total_macs)
    return structure


def _read_plan(described: object, structure: Structure) -> Plan:
    parts = _parts("plan", described, Plan)
    layers = {}
    for name, bits in _mapping("layers", parts["layers"]).items():
        layers[name] = _read_layer(f"layers: {name}", bits)
    if not layers:
        raise _damaged("layers", parts["layers"])
    _names_among("layers", list(layers), list(structure.roles))
    return Plan(layers, skipped=_text_mapping("skipped", parts["skipped"]))


def _read_joins(described: object, structure: Structure) -> Joins:
    parts = _parts("joins", described, Joins)
    operands = _counts("joins: operands", parts["operands"], 1)
    known: set[str] = set()
    for name in structure.roles:
        known.update((f"{name}.{INPUT}", f"{name}.{OUTPUT}"))
    for name, count in operands.items():
        known.add(f"{name}.output")
        known.update(f"{name}.operands.{place}" for place in range(min(count, MAX_OPERANDS)))
    values = []
    for places in _list("joins: values", parts["values"]):
        values.append(_names_among("joins: values", places, known))
    return Joins(operands, values)


def _read_layer(key: str, described: object) -> LayerPlan:
    parts = _parts(key, described, LayerPlan)
    for name, value in parts.items():
        if name in ("w_bits", "a_bits"):
            is_valid = is_whole(value) and value in BITS
        else:
            is_valid = isinstance(value, bool)
        if not is_valid:
            raise _damaged(f"{key}: {name}", value)
    return LayerPlan(**parts)


# Checks of single values


_WHERE = "the description of the network is damaged"


def _damaged(key: str, value: object) -> CheckpointError:
    shown = repr(value)
    if len(shown) > 60:
        shown = f"{shown[:60]}..."
    return CheckpointError(f"{_WHERE}: {key}: {shown} can't be")


def _parts(key: str, described: object, kind: type) -> dict[str, Any]:
    """The fields of a dataclass, all of them and no others."""
    parts = _mapping(key, described)
    names = [field.name for field in fields(kind)]
    for name in names:
        if name not in parts:
            raise CheckpointError(f"{_WHERE}: {key}: {name} is missing")
    for name in parts:
        if name not in names:
            raise CheckpointError(f"{_WHERE}: {key}: unknown key {name!r}")
    return parts


def _mapping(key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _damaged(key, value)
    return value


def _list(key: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise _damaged(key, value)
    return value


def _texts(key: str, value: object) -> list[str]:
    for text in _list(key, value):
        if not isinstance(text, str):
            raise _damaged(key, text)
    return _list(key, value)


def _names_among(key: str, value: object, known: Iterable[str]) -> list[str]:
    """Names of layers and products, each of which is known."""
    names = _texts(key, value)
    unknown = set(names).difference(known)
    if unknown:
        raise _damaged(key, min(unknown))
    return names


def _text_mapping(key: str, value: object) -> dict[str, str]:
    found = _mapping(key, value)
    _texts(key, list(found.values()))
    return found


def _counts(key: str, value: object, lowest: int) -> dict[str, int]:
    found = _mapping(key, value)
    for name, count in found.items():
        _whole(f"{key}: {name}", count, lowest, MAX_MACS)
    return found


def _whole(key: str, value: object, lowest: int, highest: int) -> int:
    if not is_whole(value) or not lowest <= value <= highest:
        raise _damaged(key, value)
    return value
