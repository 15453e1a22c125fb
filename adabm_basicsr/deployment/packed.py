"""Packed checkpoints: one safetensors file with all that rebuilds a quantized network.

Weights are integers at their own bit-width, many to a byte where they are narrow. Everything small
stands in one tensor per type, as an entry of the header takes as much as a small tensor itself.
Floats that bfloat16 holds exactly take two bytes. Complex numbers are pairs of floats. Weights are
there as floats too where complex images run in full precision.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from adabm_basicsr.deployment.freeze import freeze, set_grid_indices, untie, weighted_layers
from adabm_basicsr.errors import AdaBMError, CheckpointError, ExportError, not_found, one_line
from adabm_basicsr.files import atomic_path
from adabm_basicsr.quantization.checkpoint import DESCRIPTION_KEY, parse_description
from adabm_basicsr.quantization.config import MIN_BITS
from adabm_basicsr.quantization.network import FULL_PRECISION_KEY, QuantizedNetwork
from adabm_basicsr.quantization.progress import tracked

if TYPE_CHECKING:
    from adabm_basicsr.archs.limits import Held

FORMAT = 3  # since scales of inputs have eight significant bits
CHECKSUM = "checksum"  # key of the description: with an entry of its own, the bytes would vary
# Prefixes of tensors: grid indices of a layer's weight, and small tensors of one type.
WEIGHTS = "levels."
SMALL = "small."
SMALL_SIZE = 4096  # values
KINDS = {
    "f": torch.float32,
    "b": torch.bfloat16,
    "d": torch.float64,
    "u": torch.uint8,
    "i": torch.int64,
}
BYTE = 8  # bits


def save_packed(net: QuantizedNetwork, path: str | os.PathLike) -> None:
    """Write a calibrated network as a packed file, atomically.

    Args:
        net: The network, built from options (`AdaBMNetwork`).
        path: The file to write.

    Raises:
        AdaBMError: The network isn't calibrated or wasn't built from options, or the file can't be
            written.
    """
    built = net.description
    if "network" not in built:
        raise ExportError(
            "only networks that were built from options can be packed: build it as AdaBMNetwork"
        )
    tensors, kinds = pack(net)
    description: dict[str, Any] = {"format": FORMAT}
    description.update(built)
    description["kinds"] = kinds
    write_packed(path, description, tensors)


def write_packed(
    path: str | os.PathLike, description: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write description and tensors with their checksum, atomically.

    Raises:
        AdaBMError: The file can't be written.
    """
    described = dict(description)
    described[CHECKSUM] = checksum(description, tensors)
    metadata = {DESCRIPTION_KEY: json.dumps(described, separators=(",", ":"))}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(dict(tensors), metadata))


def load_packed(path: str | os.PathLike, custom_imports: Sequence[str] = ()) -> QuantizedNetwork:
    """The network of a packed file, which computes what the packed one did, to the bit.

    Args:
        path: File that `save_packed` wrote. Nothing in it is run as code.
        custom_imports: Modules that register an in-house architecture; importing them runs their
            code.

    Raises:
        AdaBMError: The file is missing, corrupt, of another version, or its architecture isn't
            registered.
    """
    from adabm_basicsr.archs.adabm_arch import build_described

    description, tensors = read_packed(path)
    kinds = description.get("kinds")
    try:
        net = build_described(description, _held(tensors, kinds), custom_imports)
        unpack(net, tensors, kinds)
    except AdaBMError as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from error
    return net


def _held(tensors: Mapping[str, Tensor], kinds: object) -> Held:
    """What a packed file holds at most, whatever it says of it."""
    from adabm_basicsr.archs.limits import Held

    values = 0
    count = len(tensors)
    for name, tensor in tensors.items():
        per_entry = BYTE // MIN_BITS if name.startswith(WEIGHTS) else 1
        values += tensor.numel() * per_entry
    if isinstance(kinds, str):
        count += len(kinds)
    return Held(values, count)


def read_packed(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a packed file.

    Raises:
        CheckpointError: The file is missing, corrupt or of another version.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - a name may be too long for a path
        raise not_found("packed file", path, CheckpointError)
    tensors = {}
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            description = parse_description(metadata[DESCRIPTION_KEY])
            for key in file.keys():  # noqa: SIM118 - it is no dictionary
                tensors[key] = file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"packed file {path} cannot be read (truncated or corrupt): {error}"
        ) from error
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no packed file of adabm-basicsr: its description is missing or damaged"
        ) from error
    found = description.get("format")
    if found != FORMAT:
        raise CheckpointError(
            f"packed file {path} has format {found!r}; this version reads {FORMAT}"
        )
    if checksum(description, tensors) != description.get(CHECKSUM):
        raise CheckpointError(f"packed file {path} is damaged: its checksum is wrong")
    return description, tensors


def checksum(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of what a packed file holds apart from itself, in hexadecimal."""
    described = {key: value for key, value in description.items() if key != CHECKSUM}
    digest = hashlib.sha256(json.dumps(described).encode())
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pack(net: QuantizedNetwork) -> tuple[dict[str, Tensor], str]:
    """What a packed file holds of a network.

    Returns:
        Tensors by name, and the types of the small ones, a key of `KINDS` each, in the order of
        the network's own.
    """
    frozen = freeze(net).cpu()
    tensors = {}
    for name, layer, quantizer in tracked(weighted_layers(frozen), "Packing"):
        indices = quantizer.grid_indices(layer.weight)
        tensors[WEIGHTS + name] = pack_bits(indices, quantizer.bits)

    kinds = ""
    small: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    for key, tensor in _kept_tensors(frozen).items():
        kind, value = _stored(key, tensor)
        if value.numel() > SMALL_SIZE:
            tensors[key] = value
        else:
            small[kind].append(value.flatten())
            kinds += kind
    for kind, values in small.items():
        if values:
            tensors[SMALL + kind] = torch.cat(values)
    if net.full_precision_above is not None:
        tensors[FULL_PRECISION_KEY] = net.full_precision_above.cpu()
    return tensors, kinds


@torch.no_grad()
def unpack(net: QuantizedNetwork, tensors: Mapping[str, Tensor], kinds: object) -> None:
    """Fill a network, built as the packed one was, with the tensors of a packed file.

    Args:
        net: The network; changed in place.
        tensors: See `pack`.
        kinds: See `pack`.

    Raises:
        CheckpointError: The tensors are not those of this network.
    """
    untie(net)
    left = dict(tensors)
    above = left.pop(FULL_PRECISION_KEY, None)
    if above is not None:
        net.keep_images_in_float(_complexity(above))
    small = _SmallTensors(left, kinds)
    for key, own in _kept_tensors(net).items():
        count = _count(own)
        value = small.next(count) if count <= SMALL_SIZE else left.pop(key, None)
        _fill(key, own, value)
    net.check_values(net.state_dict())
    net.read_back()
    net.check_calibrated()

    for name, layer, quantizer in weighted_layers(net):
        packed = left.pop(WEIGHTS + name, None)
        indices = unpack_bits(name, packed, quantizer.bits, layer.weight.shape)
        channel_scale = getattr(layer.input_quantizer, "channel_scale", None)
        if channel_scale is not None:
            _, of_weight = layer.channel_views(channel_scale.flatten())
            # Surgery gives a layer's input and weight scales of channels together.
            assert quantizer.channel_scale is not None
            quantizer.channel_scale.copy_(of_weight)
        indices = indices.to(layer.weight.device)
        set_grid_indices(layer, quantizer, indices, keeps_float=above is not None)

    names = [*left, *small.left()]
    if names:
        raise CheckpointError(
            f"the packed file holds more than the network: {', '.join(names[:4])}"
        )


def _complexity(above: Tensor) -> float:
    """The complexity above which images run in full precision, as a packed file holds it."""
    if above.dtype is not torch.float32 or above.dim() or not torch.isfinite(above):
        raise CheckpointError(f"the packed file is damaged: {FULL_PRECISION_KEY} is no complexity")
    return float(above)


class _SmallTensors:
    """Small tensors of a packed file, one after the other.

    Args:
        tensors: Those of the file; what holds the small ones is taken out.
        kinds: The type of each, a key of `KINDS`; anything but text counts as none.
    """

    def __init__(self, tensors: dict[str, Tensor], kinds: object) -> None:
        self._kinds = list(kinds) if isinstance(kinds, str) else []
        self._values = {}
        for kind, dtype in KINDS.items():
            values = tensors.pop(SMALL + kind, torch.empty(0, dtype=dtype))
            if values.dtype is not dtype or values.dim() != 1:
                raise CheckpointError(
                    f"the packed file is damaged: {SMALL}{kind} is of another type or shape"
                )
            self._values[kind] = values

    def next(self, size: int) -> Tensor | None:
        """The next one, of ``size`` values or fewer if they have run out; None if none is left."""
        if not self._kinds:
            return None
        kind = self._kinds.pop(0)
        values = self._values.get(kind)
        if values is None:
            return None
        self._values[kind] = values[size:]
        return values[:size]

    def left(self) -> list[str]:
        """Names of what hasn't been taken."""
        kinds = set(self._kinds)
        for kind, values in self._values.items():
            if values.numel():
                kinds.add(kind)
        return [SMALL + kind for kind in sorted(kinds)]


def _kept_tensors(net: QuantizedNetwork) -> dict[str, Tensor]:
    """What is stored as it is, by name, each tensor once.

    That is all but weights that are stored as integers, and what follows from the rest.
    """
    has_both = net.full_precision_above is not None
    dropped = {FULL_PRECISION_KEY}
    for name, layer, quantizer in weighted_layers(net):
        if not has_both:
            dropped.add(f"network.{name}.weight")
        dropped.add(f"network.{name}.weight_quantizer.correction")
        if getattr(layer.input_quantizer, "channel_scale", None) is not None:
            dropped.add(f"network.{name}.weight_quantizer.channel_scale")
        if quantizer.bias_correction is not None and layer.bias is not None and not has_both:
            dropped.add(f"network.{name}.weight_quantizer.bias_correction")
    state = net.state_dict()
    kept = {}
    for key, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if key in state and key not in dropped:
            kept[key] = tensor
    return kept


def _stored(key: str, tensor: Tensor) -> tuple[str, Tensor]:
    """A tensor as a packed file holds it, in the smallest type that is exact.

    Args:
        key: Its name, for the message.
        tensor: The tensor.

    Returns:
        The type, a key of `KINDS`, and the values, contiguous and with memory of their own.

    Raises:
        ExportError: The file can't hold it.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise ExportError(f"{key}: a packed file can't hold a tensor that is sparse or quantized")
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    for kind in _kinds_for(tensor):
        value = tensor.to(KINDS[kind], copy=True, memory_format=torch.contiguous_format)
        if not torch.equal(value.to(tensor.dtype), tensor):
            continue
        if value.is_floating_point() and not torch.isfinite(value).all():
            break
        return kind, value
    raise ExportError(f"{key}: a packed file can't hold NaN or infinite values")


def _kinds_for(tensor: Tensor) -> str:
    """Types that may hold a tensor of real numbers, the smallest first."""
    if tensor.is_floating_point():
        return "bfd"
    if tensor.dtype in (torch.uint8, torch.bool):
        return "u"
    return "i"


def _count(own: Tensor) -> int:
    """How many real numbers a tensor holds."""
    return own.numel() * (2 if own.is_complex() else 1)


def _fill(key: str, own: Tensor, value: Tensor | None) -> None:
    """Copy what the file holds of the tensor ``key`` to the network's own."""
    if value is None or value.dtype not in KINDS.values() or value.numel() != _count(own):
        raise CheckpointError(
            f"the packed file doesn't fit the network: {key} is missing or of another size"
        )
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise CheckpointError(f"the packed file is damaged: {key} holds NaN or infinite values")
    target = torch.view_as_real(own) if own.is_complex() else own
    # As the file holds each tensor exactly, its values are those of the network's own type.
    if not torch.equal(value.to(target.dtype).to(value.dtype), value):
        raise CheckpointError(
            f"the packed file doesn't fit the network: {key} isn't of the type "
            f"{str(own.dtype).removeprefix('torch.')}"
        )
    target.copy_(value.view(target.shape))


def pack_bits(indices: Tensor, bits: int) -> Tensor:
    """Whole numbers one behind the other, high bits first.

    Args:
        indices: Of any shape, in ``0 .. 2 ** bits - 1``.
        bits: How many each takes, 1 to 8.

    Returns:
        Bytes, ``(ceil(N * bits / 8),)``.
    """
    values = indices.flatten().to(torch.uint8)
    if bits == BYTE:
        return values
    digits = np.unpackbits(values.numpy()[:, None], axis=1)
    return torch.from_numpy(np.packbits(digits[:, BYTE - bits :]))


def unpack_bits(name: str, packed: Tensor | None, bits: int, shape: torch.Size) -> Tensor:
    """Inverse of `pack_bits`.

    Args:
        name: Of the layer whose weights these are, for the message.
        packed: See `pack_bits`.
        bits: See `pack_bits`.
        shape: Of the result.

    Returns:
        uint8.

    Raises:
        CheckpointError: Bytes are missing or left over.
    """
    count = shape.numel()
    size = -(-count * bits // BYTE)
    if packed is None or packed.dtype is not torch.uint8 or packed.numel() != size:
        raise CheckpointError(
            f"the packed file doesn't fit the network: weights of {name} are missing or of another "
            "size"
        )
    digits = np.unpackbits(packed.numpy())[: count * bits].reshape(count, bits)
    high = np.packbits(digits, axis=1)[:, 0]  # each number at the upper end of a byte
    return torch.from_numpy(high >> (BYTE - bits)).view(shape)
