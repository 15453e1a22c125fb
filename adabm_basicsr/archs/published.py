"""Quantized checkpoints of the published code (EDSR, RDN, SRResNet) become ours."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.errors import AdaBMError, CheckpointError, OptionError, check_range
from adabm_basicsr.files import atomic_path
from adabm_basicsr.quantization.checkpoint import (
    BASE_PREFIX,
    QUANTIZED_KEY,
    check_same,
    is_quantized,
    read_checkpoint,
    save_checkpoint,
)
from adabm_basicsr.quantization.config import MAX_BITS, MIN_BITS
from adabm_basicsr.quantization.network import Stage
from adabm_basicsr.quantization.recipes import RECIPES

RECIPE = "paper"  # the only one that quantizes as the published code does
PIXEL_RANGE = 255.0
MEAN_DIGITS = 7  # of a mean in 0..1; float32 holds no more of it
CONV_DIMENSIONS = 4  # of a convolution's weight
SIZES = ("num_block", "num_conv", "num_feat", "num_grow_ch", "res_scale")
# Frozen convolutions; BasicSR's EDSR has the option rgb_mean instead.
SUB_MEAN = "sub_mean"
ADD_MEAN = "add_mean"

# Published names, by ours.
OWN_KEYS = (QUANTIZED_KEY, "stage")  # without a counterpart
IMAGE_KEYS = {"image_mapping.lower": "measure_l", "image_mapping.upper": "measure_u"}
QUANTIZER_KEYS = {
    "input_quantizer.lower": "lower_a",
    "input_quantizer.upper": "upper_a",
    "input_quantizer.layer_factor": "measure_layer",
    "weight_quantizer.upper": "upper_w",
}

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Imported:
    """A published quantized checkpoint as ours.

    Attributes:
        network: ``network_g: network`` of an option file: type and options of the base
            architecture.
        options: The other options of ``network_g``: bits, recipe, ``fully_quantized``.
        net: The quantized network built from both, with the checkpoint's weights and ranges.
    """

    network: dict[str, Any]
    options: dict[str, Any]
    net: AdaBMNetwork

    @property
    def state(self) -> dict[str, Tensor]:
        """State dict of ``net``, what a quantized checkpoint of ours holds."""
        return self.net.state_dict()

    def __str__(self) -> str:
        network = f"{self.network['type']} x{self.network['upscale']}"
        sizes = ", ".join(f"{key} {self.network[key]:g}" for key in SIZES if key in self.network)
        which = "fully quantized" if self.options["fully_quantized"] else "body quantized"
        bits = f"w_bits {self.options['w_bits']}, a_bits {self.options['a_bits']}"
        return f"{network} ({sizes}), {which}, taken as {bits}"


@dataclass(frozen=True)
class _Layout:
    """One architecture in the published naming.

    Attributes:
        needs: Keys by which it is recognised; of several layouts, that with the most keys counts.
        first: The first convolution, quantized only where the whole network is.
        describe: Type and options of our architecture, read off keys and shapes.
    """

    needs: tuple[str, ...]
    first: str
    describe: Callable[[State], dict[str, Any]]


def import_published(
    path: str | os.PathLike, w_bits: int = 4, a_bits: int = 4, res_scale: float = 1.0
) -> Imported:
    """Convert a quantized checkpoint of the published code.

    Args:
        path: Its file: a state dict, wrapped or not, whose quantized layers have ``lower_a``,
            ``upper_a``, ``upper_w``.
        w_bits: Bits of the weights, 2..8; the file doesn't hold them.
        a_bits: Base bits of the activations, 3..8; the file doesn't hold them.
        res_scale: Factor of EDSR's residuals, above 0; the file doesn't hold it.

    Returns:
        The `Imported` network, its options and state.

    Raises:
        AdaBMError: The file can't be read, isn't quantized, is of another layout or incomplete, or
            a number is out of range.
    """
    check_range("w_bits", w_bits, MIN_BITS, MAX_BITS)
    check_range("a_bits", a_bits, RECIPES[RECIPE].arithmetic.min_a_bits, MAX_BITS)
    state = read_checkpoint(path)
    try:
        return _convert(state, w_bits, a_bits, res_scale)
    except AdaBMError as error:
        raise type(error)(f"{path}: {error}") from error


def _convert(state: State, w_bits: int, a_bits: int, res_scale: float) -> Imported:
    layout = _find_layout(state)
    network = layout.describe(state)
    _set_res_scale(network, res_scale)
    options: dict[str, Any] = {
        "w_bits": w_bits,
        "a_bits": a_bits,
        "recipe": RECIPE,
        "fully_quantized": f"{layout.first}.lower_a" in state,
    }
    net = AdaBMNetwork(network, **options)
    net.load_state_dict(_our_state(net, state, _renamed_modules(network)))
    return Imported(network, options, net)


def _find_layout(state: State) -> _Layout:
    if is_quantized(state):
        raise CheckpointError(
            "this is a quantized checkpoint of ours already; name it as pretrain_network_g"
        )
    if not any(key.endswith(".lower_a") for key in state):
        raise CheckpointError(
            "no layer has lower_a: a full-precision checkpoint; adabm-basicsr train quantizes one"
        )
    fitting = [layout for layout in LAYOUTS.values() if state.keys() >= set(layout.needs)]
    if not fitting:
        start = ", ".join(list(state)[:3])
        known = "; ".join(f"{name}: {', '.join(layout.needs)}" for name, layout in LAYOUTS.items())
        raise CheckpointError(
            f"unknown layout, it starts with {start}; known by their keys are {known}"
        )
    return max(fitting, key=lambda layout: len(layout.needs))


def _set_res_scale(network: dict[str, Any], res_scale: float) -> None:
    if not (math.isfinite(res_scale) and res_scale > 0):
        raise OptionError(f"res_scale: {res_scale!r} is not a positive number")
    if network["type"] == "EDSR":
        network["res_scale"] = res_scale
    elif res_scale != 1:
        raise OptionError(f"res_scale: {network['type']} has none")


def _our_state(net: AdaBMNetwork, state: State, renamed: dict[str, str]) -> dict[str, Tensor]:
    """State dict for ``net``: every tensor of the published one, under our name.

    Raises:
        CheckpointError: Keys are missing, left over or of another shape; the message has the
            published names.
    """
    own = net.state_dict()
    published = {key: _published_key(key, renamed) for key in own if key not in OWN_KEYS}
    expected = {name: own[key] for key, name in published.items()}
    found = {key: value for key, value in state.items() if not _is_mean_shift(key)}
    check_same(expected, found, f"published {type(net.network).__name__}")
    ours = {key: found[name] for key, name in published.items()}
    ours[QUANTIZED_KEY] = own[QUANTIZED_KEY]
    # Ranges of a finished run need no clipping any more.
    ours["stage"] = torch.full_like(own["stage"], Stage.CLIPPED)
    return ours


def _published_key(key: str, renamed: dict[str, str]) -> str:
    """The published name of a key of our state dict."""
    if key in IMAGE_KEYS:
        return IMAGE_KEYS[key]
    module, leaf = key.removeprefix(BASE_PREFIX).rsplit(".", 1)
    for own, published in QUANTIZER_KEYS.items():
        if key.endswith(f".{own}"):
            module = module.rsplit(".", 1)[0]
            leaf = published
    return f"{renamed.get(module, module)}.{leaf}"


def _describe_edsr(state: State) -> dict[str, Any]:
    network = _head_body_tail("EDSR", state)
    network["rgb_mean"] = _rgb_mean(state)
    return network


def _describe_srresnet(state: State) -> dict[str, Any]:
    return _head_body_tail("SRResNet", state)


def _head_body_tail(kind: str, state: State) -> dict[str, Any]:
    num_feat, num_in_ch = _channels(state, "head.0")
    upsampler = [*_convolutions(state, "tail.0"), "tail.1"]
    num_out_ch, _ = _channels(state, "tail.1")
    return {
        "type": kind,
        "num_in_ch": num_in_ch,
        "num_out_ch": num_out_ch,
        "num_feat": num_feat,
        "num_block": _count(state, r"body\.(\d+)\.conv\d\."),
        "upscale": _upscale(state, upsampler),
        "img_range": PIXEL_RANGE,
    }


def _describe_rdn(state: State) -> dict[str, Any]:
    num_feat, num_in_ch = _channels(state, "SFENet1")
    upsampler = _convolutions(state, "UPNet")
    num_out_ch, _ = _channels(state, upsampler[-1])
    num_grow_ch, _ = _channels(state, "RDBs.0.convs.0.conv.0")
    return {
        "type": "RDN",
        "num_in_ch": num_in_ch,
        "num_out_ch": num_out_ch,
        "num_feat": num_feat,
        "num_block": _count(state, r"RDBs\.(\d+)\."),
        "num_conv": _count(state, r"RDBs\.0\.convs\.(\d+)\."),
        "num_grow_ch": num_grow_ch,
        "upscale": _upscale(state, upsampler),
        "img_range": PIXEL_RANGE,
    }


def _channels(state: State, name: str) -> tuple[int, int]:
    """Output and input channels of a convolution.

    Raises:
        CheckpointError: There is no such convolution.
    """
    weight = state.get(f"{name}.weight")
    if weight is None:
        raise CheckpointError(f"{name}.weight is missing")
    if weight.dim() != CONV_DIMENSIONS:
        raise CheckpointError(f"{name}.weight is not that of a convolution")
    return weight.shape[0], weight.shape[1]


def _count(state: State, pattern: str) -> int:
    """One more than the largest index that ``pattern`` finds at the start of a key; at least 1."""
    largest = 0
    for key in state:
        found = re.match(pattern, key)
        if found:
            largest = max(largest, int(found[1]))
    return largest + 1


def _convolutions(state: State, parent: str) -> list[str]:
    """Convolutions right below ``parent``, in order; at least the first, be it there or not."""
    indices = []
    for key, value in state.items():
        found = re.fullmatch(rf"{re.escape(parent)}\.(\d+)\.weight", key)
        if found and value.dim() == CONV_DIMENSIONS:
            indices.append(int(found[1]))
    if not indices:
        indices = [0]
    return [f"{parent}.{index}" for index in sorted(indices)]


def _upscale(state: State, names: list[str]) -> int:
    """Factor of an upsampler of these convolutions.

    A shuffle by s between two of them leaves one channel in s * s.
    """
    factor = 1
    for before, after in pairwise(names):
        made, _ = _channels(state, before)
        _, taken = _channels(state, after)
        factor *= math.isqrt(made // taken)
    return factor


def _is_mean_shift(key: str) -> bool:
    return key.startswith((f"{SUB_MEAN}.", f"{ADD_MEAN}."))


def _rgb_mean(state: State) -> list[float]:
    """The mean that the published EDSR subtracts, and adds again, by frozen convolutions.

    Returns:
        The mean of each channel in 0..1; zeros without such convolutions.

    Raises:
        CheckpointError: The convolutions do more than subtract and add the same mean.
    """
    if not any(_is_mean_shift(key) for key in state):
        return [0.0] * 3
    subtracted = _shift(state, SUB_MEAN)
    added = _shift(state, ADD_MEAN)
    if not torch.allclose(subtracted, -added):
        raise CheckpointError(f"{SUB_MEAN} and {ADD_MEAN} are not opposite")
    return [round(value, MEAN_DIGITS) for value in added.tolist()]


def _shift(state: State, name: str) -> Tensor:
    """What a frozen 1x1 convolution adds to three channels in 0..1, shape ``(3,)``."""
    _channels(state, name)
    weight = state[f"{name}.weight"].float()
    bias = state.get(f"{name}.bias", torch.zeros(0))
    has_shapes = weight.shape == (3, 3, 1, 1) and bias.shape == (3,)
    if not has_shapes or not torch.allclose(weight[..., 0, 0], torch.eye(3)):
        raise CheckpointError(f"{name}.weight and {name}.bias are no plain shift of three channels")
    return bias / PIXEL_RANGE


def _renamed_modules(network: dict[str, Any]) -> dict[str, str]:
    """Published names of the modules that are called otherwise here, by our names."""
    if network["type"] != "EDSR":
        return {}
    return {
        "conv_first": "head.0",
        "conv_after_body": f"body.{network['num_block']}",
        "upsample.0": "tail.0.0",
        "upsample.2": "tail.0.2",
        "conv_last": "tail.1",
    }


LAYOUTS = {
    "EDSR": _Layout(
        needs=("head.0.weight", "body.0.conv1.weight"),
        first="head.0",
        describe=_describe_edsr,
    ),
    "RDN": _Layout(
        needs=("SFENet1.weight", "SFENet2.weight"),
        first="SFENet1",
        describe=_describe_rdn,
    ),
    "SRResNet": _Layout(
        needs=("head.0.weight", "body.0.conv1.weight", "body.0.bn1.weight"),
        first="head.0",
        describe=_describe_srresnet,
    ),
}


def write_imported(imported: Imported, out: Path) -> Path:
    """Write a quantized checkpoint, and beside it sections of an option file for it.

    These are ``network_g`` and ``path``.

    Args:
        imported: What `import_published` returned.
        out: File to write, ``NAME.pth``; relative to the folder in which the option file will be
            used.

    Returns:
        The path of the sections, ``NAME.yml``.

    Raises:
        AdaBMError: A file can't be written.
    """
    network_g = {"type": AdaBMNetwork.__name__, "network": imported.network}
    network_g.update(imported.options)
    sections = {"network_g": network_g, "path": {"pretrain_network_g": out.as_posix()}}
    save_checkpoint(imported.net, out)
    sections_file = out.with_suffix(".yml")
    with atomic_path(sections_file) as temporary:
        temporary.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
    return sections_file
