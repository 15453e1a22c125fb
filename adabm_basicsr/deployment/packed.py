"""Packed checkpoints: one safetensors file with integer weights at their true bits and all that rebuilds the network.

What takes room is packed: each weight at its own bit-width, everything small in one tensor per type (an entry of the
header takes as much as a small tensor itself), and floats that bfloat16 holds exactly in two bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from adabm_basicsr.deployment.freeze import freeze, set_grid_indices, untie
from adabm_basicsr.errors import AdaBMError, not_found
from adabm_basicsr.files import atomic_path
from adabm_basicsr.quantization.checkpoint import DESCRIPTION_KEY
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.progress import tracked

FORMAT = 3  # since steps of inputs have eight significant bits
CHECKSUM = "checksum"  # key within the description: with two entries the file's bytes would vary
WEIGHTS, SMALL = "levels.", "small."
SMALL_SIZE = 4096  # values
KINDS = {"f": torch.float32, "b": torch.bfloat16, "u": torch.uint8, "i": torch.int64}


def save_packed(net: QuantizedNetwork, path: str | os.PathLike) -> None:
    """Write a calibrated network that was built from options (`AdaBMNetwork`) as a packed file, atomically.

    Raises:
        AdaBMError: The network isn't calibrated or wasn't built from options, or the file can't be written.
    """
    description = getattr(net, "description", None)
    if description is None:
        raise AdaBMError(
            "only networks that were built from options can be packed: build it as AdaBMNetwork"
        )
    tensors, kinds = pack(net)
    description = {"format": FORMAT, **description, "kinds": kinds}
    description[CHECKSUM] = checksum(description, tensors)
    with atomic_path(path) as temporary:
        temporary.write_bytes(
            save(tensors, {DESCRIPTION_KEY: json.dumps(description, separators=(",", ":"))})
        )


def checksum(description: Mapping, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of what a packed file holds apart from itself, in hexadecimal."""
    text = json.dumps({key: value for key, value in description.items() if key != CHECKSUM})
    digest = hashlib.sha256(text.encode())
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def load_packed(path: str | os.PathLike, custom_imports: Sequence[str] = ()) -> QuantizedNetwork:
    """The network of a packed file, which computes what the packed one did, to the bit.

    Args:
        path: File that `save_packed` wrote. Nothing in it is run as code.
        custom_imports: Modules that register an in-house architecture; importing them runs their code.

    Raises:
        AdaBMError: The file is missing, corrupt, of another version, or its architecture isn't registered.
    """
    from adabm_basicsr.archs.adabm_arch import build_described

    description, tensors = read_packed(path)
    try:
        net = build_described(description, custom_imports)
        unpack(net, tensors, description.get("kinds"))
    except AdaBMError as error:
        raise AdaBMError(f"{path}: {error}") from error
    return net


def read_packed(path: str | os.PathLike) -> tuple[dict, dict[str, Tensor]]:
    """Description and tensors of a packed file.

    Raises:
        AdaBMError: The file is missing, corrupt or of another version.
    """
    if not os.path.isfile(path):
        raise not_found("packed file", path)
    try:
        with safe_open(path, "pt") as file:
            description = json.loads((file.metadata() or {})[DESCRIPTION_KEY])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dictionary
    except (SafetensorError, OSError) as error:
        raise AdaBMError(
            f"packed file {path} cannot be read (truncated or corrupt): {error}"
        ) from error
    except (KeyError, ValueError) as error:
        raise AdaBMError(
            f"{path} is no packed file of adabm-basicsr: its description is missing"
        ) from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = description.get("format") if isinstance(description, dict) else None
        raise AdaBMError(f"packed file {path} has format {found!r}; this version reads {FORMAT}")
    if checksum(description, tensors) != description.get(CHECKSUM):
        raise AdaBMError(f"packed file {path} is damaged: its checksum is wrong")
    return description, tensors


def pack(net: QuantizedNetwork) -> tuple[dict[str, Tensor], str]:
    """Tensors of a packed file, and the types of the small ones, a letter each."""
    frozen, tensors, small, kinds = freeze(net).cpu(), {}, {kind: [] for kind in KINDS}, ""
    for name, quantizer in tracked([*frozen.weight_quantizers().items()], "Packing"):
        levels = quantizer.grid_indices(frozen.network.get_submodule(name).weight)
        tensors[WEIGHTS + name] = pack_bits(levels, quantizer.bits)
    for key, value in _kept(frozen).items():
        kind = _kind(value)
        value = value.detach().to(KINDS[kind])
        if value.numel() > SMALL_SIZE:
            tensors[key] = value.contiguous()
        else:
            small[kind].append(value.flatten())
            kinds += kind
    return {
        **tensors,
        **{SMALL + kind: torch.cat(values) for kind, values in small.items() if values},
    }, kinds


@torch.no_grad()
def unpack(net: QuantizedNetwork, tensors: Mapping[str, Tensor], kinds: str) -> None:
    """Fill a network, built as the packed one was, with the tensors of a packed file.

    Raises:
        AdaBMError: The tensors are not those of this network.
    """
    untie(net)
    kept, tensors, kinds = _kept(net), dict(tensors), iter(kinds if isinstance(kinds, str) else "")
    small = {
        kind: tensors.pop(SMALL + kind, torch.empty(0, dtype=dtype))
        for kind, dtype in KINDS.items()
    }
    for key, own in kept.items():
        if own.numel() > SMALL_SIZE:
            value = tensors.pop(key, None)
        else:
            kind = next(kinds, None)
            held = small.get(kind, torch.empty(0))
            value, small[kind] = held[: own.numel()], held[own.numel() :]
        _fill(key, own, value)
    for name, quantizer in net.weight_quantizers().items():
        layer = net.network.get_submodule(name)
        levels = unpack_bits(
            name, tensors.pop(WEIGHTS + name, None), quantizer.bits, layer.weight.shape
        )
        scale = getattr(layer.input_quantizer, "channel_scale", None)
        if scale is not None:
            quantizer.channel_scale.copy_(layer.channel_views(scale.flatten())[1])
        set_grid_indices(layer, levels.to(layer.weight.device))
    left = [*tensors, *(SMALL + kind for kind, values in small.items() if kind and values.numel())]
    if left or next(kinds, None) is not None:
        raise AdaBMError(f"the packed file holds more than the network: {', '.join(left[:4])}")


def _kept(net: QuantizedNetwork) -> dict[str, Tensor]:
    """What is stored as it is, by name, each tensor once: all but weights in levels and what follows from the rest."""
    dropped = set()
    for name, quantizer in net.weight_quantizers().items():
        dropped |= {f"network.{name}.weight", f"network.{name}.weight_quantizer.correction"}
        layer = net.network.get_submodule(name)
        if getattr(layer.input_quantizer, "channel_scale", None) is not None:
            dropped.add(f"network.{name}.weight_quantizer.channel_scale")
        if quantizer.bias_correction is not None and layer.bias is not None:
            dropped.add(f"network.{name}.weight_quantizer.bias_correction")
    state = net.state_dict()
    named = [*net.named_parameters(), *net.named_buffers()]
    return {key: tensor for key, tensor in named if key in state and key not in dropped}


def _kind(value: Tensor) -> str:
    """The smallest type, a key of `KINDS`, that holds a tensor exactly."""
    if value.is_floating_point():
        return "b" if torch.equal(value.bfloat16().to(value), value) else "f"
    return "u" if value.dtype is torch.uint8 else "i"


def _fill(key: str, own: Tensor, value: Tensor | None) -> None:
    if value is None or value.numel() != own.numel():
        raise AdaBMError(
            f"the packed file doesn't fit the network: {key} is missing or of another size"
        )
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise AdaBMError(f"the packed file is damaged: {key} holds NaN or infinite values")
    own.copy_(value.view(own.shape))


def pack_bits(levels: Tensor, bits: int) -> Tensor:
    """Whole numbers in ``0 .. 2 ** bits - 1`` of any shape as bytes, ``(ceil(N * bits / 8),)``, high bits first."""
    if bits == 8:
        return levels.flatten().to(torch.uint8)
    digits = np.unpackbits(levels.flatten().to(torch.uint8).numpy()[:, None], axis=1)[:, 8 - bits :]
    return torch.from_numpy(np.packbits(digits))


def unpack_bits(name: str, packed: Tensor | None, bits: int, shape: torch.Size) -> Tensor:
    """Inverse of `pack_bits`: uint8 of ``shape``.

    Raises:
        AdaBMError: Bytes are missing or left over; ``name`` says of what.
    """
    count = shape.numel()
    if packed is None or packed.dtype is not torch.uint8 or packed.numel() != -(-count * bits // 8):
        raise AdaBMError(
            f"the packed file doesn't fit the network: weights of {name} are missing or of another size"
        )
    digits = np.unpackbits(packed.numpy())[: count * bits].reshape(count, bits)
    return torch.from_numpy(np.packbits(digits, axis=1)[:, 0] >> (8 - bits)).view(shape)
