"""``adabm-basicsr import``: quantized checkpoints of the published code (EDSR, RDN, SRResNet) become ours."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import yaml
from torch import Tensor

from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.files import atomic_path
from adabm_basicsr.quantization.checkpoint import (
    BASE_PREFIX,
    QUANTIZED_KEY,
    check_same,
    is_quantized,
    read_checkpoint,
    save_checkpoint,
)
from adabm_basicsr.quantization.network import Stage
from adabm_basicsr.quantization.recipes import RECIPES

RECIPE = "paper"  # the only one that quantizes as the published code does
PIXEL_RANGE = 255.0
MEAN_DIGITS = 7  # of a mean in 0..1; float32 holds no more of it
SIZES = ("num_block", "num_conv", "num_feat", "num_grow_ch", "res_scale")
MEAN_SHIFTS = (
    "sub_mean.",
    "add_mean.",
)  # frozen convolutions; BasicSR's EDSR has the option rgb_mean instead

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
        network: ``network_g: network`` of an option file: type and options of the base architecture.
        options: The other options of ``network_g``: bits, recipe, ``fully_quantized``.
        net: The quantized network built from both, with the checkpoint's weights and ranges.
    """

    network: dict
    options: dict
    net: AdaBMNetwork

    @property
    def state(self) -> dict[str, Tensor]:
        """State dict of ``net``, what a quantized checkpoint of ours holds."""
        return self.net.state_dict()

    def __str__(self) -> str:
        sizes = ", ".join(f"{key} {self.network[key]:g}" for key in SIZES if key in self.network)
        which = "fully quantized" if self.options["fully_quantized"] else "body quantized"
        bits = f"w_bits {self.options['w_bits']}, a_bits {self.options['a_bits']}"
        return (
            f"{self.network['type']} x{self.network['upscale']} ({sizes}), {which}, taken as {bits}"
        )


@dataclass(frozen=True)
class _Layout:
    """One architecture in the published naming.

    Attributes:
        needs: Keys that tell it; the layout with the most of them counts.
        first: The first convolution, quantized only where the whole network is.
        describe: Type and options of our architecture, read off keys and shapes.
    """

    needs: tuple[str, ...]
    first: str
    describe: Callable[[State], dict]


def import_published(
    path: str | os.PathLike, w_bits: int = 4, a_bits: int = 4, res_scale: float = 1.0
) -> Imported:
    """Convert a quantized checkpoint of the published code.

    Args:
        path: Its file: a state dict, wrapped or not, whose quantized layers have ``lower_a``, ``upper_a``, ``upper_w``.
        w_bits: Bits of the weights, 2..8; the file doesn't hold them.
        a_bits: Base bits of the activations, 3..8; the file doesn't hold them.
        res_scale: Factor of EDSR's residuals, above 0; the file doesn't hold it.

    Returns:
        The `Imported` network, its options and state.

    Raises:
        AdaBMError: The file can't be read, isn't quantized, is of another layout or incomplete, or a number is out of
            range.
    """
    _check_bits("w_bits", w_bits, 2)
    _check_bits("a_bits", a_bits, RECIPES[RECIPE].arithmetic.min_a_bits)
    state = read_checkpoint(path)
    try:
        return _convert(state, {"w_bits": w_bits, "a_bits": a_bits}, res_scale)
    except AdaBMError as error:
        raise AdaBMError(f"{path}: {error}") from error


def _check_bits(key: str, bits: int, low: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or not low <= bits <= 8:
        raise AdaBMError(f"{key}: {bits!r} is out of range; valid: {low} to 8")


def _convert(state: State, bits: dict[str, int], res_scale: float) -> Imported:
    layout = _find_layout(state)
    network = layout.describe(state)
    _set_res_scale(network, res_scale)
    options = {**bits, "recipe": RECIPE, "fully_quantized": f"{layout.first}.lower_a" in state}
    net = AdaBMNetwork(network=network, **options)
    net.load_state_dict(_our_state(net, state, _renamed_modules(network)))
    return Imported(network, options, net)


def _find_layout(state: State) -> _Layout:
    if is_quantized(state):
        raise AdaBMError(
            "this is a quantized checkpoint of ours already; name it as pretrain_network_g"
        )
    if not any(key.endswith(".lower_a") for key in state):
        raise AdaBMError(
            "no layer has lower_a: a full-precision checkpoint; adabm-basicsr train quantizes one"
        )
    known = [layout for layout in LAYOUTS.values() if all(key in state for key in layout.needs)]
    if not known:
        names = "; ".join(f"{name}: {', '.join(layout.needs)}" for name, layout in LAYOUTS.items())
        raise AdaBMError(
            f"unknown layout, it starts with {', '.join(list(state)[:3])}; known by their keys are {names}"
        )
    return max(known, key=lambda layout: len(layout.needs))


def _set_res_scale(network: dict, res_scale: float) -> None:
    if not (math.isfinite(res_scale) and res_scale > 0):
        raise AdaBMError(f"res_scale: {res_scale!r} is not a positive number")
    if network["type"] == "EDSR":
        network["res_scale"] = res_scale
    elif res_scale != 1:
        raise AdaBMError(f"res_scale: {network['type']} has none")


def _our_state(net: AdaBMNetwork, state: State, renamed: dict[str, str]) -> dict[str, Tensor]:
    """State dict for ``net``: every tensor of the published one, under our name.

    Raises:
        AdaBMError: Keys are missing, left over or of another shape; the message has the published names.
    """
    own = net.state_dict()
    published = {key: _published_key(key, renamed) for key in own if key not in OWN_KEYS}
    found = {key: value for key, value in state.items() if not key.startswith(MEAN_SHIFTS)}
    expected = {name: own[key] for key, name in published.items()}
    check_same(expected, found, f"published {type(net.network).__name__}")
    converted = {key: found[name] for key, name in published.items()}
    stage = torch.full_like(
        own["stage"], Stage.CLIPPED
    )  # ranges of a finished run need no clipping any more
    return {**converted, QUANTIZED_KEY: own[QUANTIZED_KEY], "stage": stage}


def _published_key(key: str, renamed: dict[str, str]) -> str:
    """The published name of a key of our state dict."""
    if key in IMAGE_KEYS:
        return IMAGE_KEYS[key]
    module, leaf = key.removeprefix(BASE_PREFIX).rsplit(".", 1)
    for own, name in QUANTIZER_KEYS.items():
        if key.endswith(f".{own}"):
            module, leaf = module.rsplit(".", 1)[0], name
    return f"{renamed.get(module, module)}.{leaf}"


def _describe_edsr(state: State) -> dict:
    return {
        "type": "EDSR",
        **_head_body_tail(state),
        "img_range": PIXEL_RANGE,
        "rgb_mean": _rgb_mean(state),
    }


def _describe_srresnet(state: State) -> dict:
    return {"type": "SRResNet", **_head_body_tail(state), "img_range": PIXEL_RANGE}


def _head_body_tail(state: State) -> dict:
    num_feat, num_in_ch = _channels(state, "head.0")
    upsampler = [*_convolutions(state, "tail.0"), "tail.1"]
    return {
        "num_in_ch": num_in_ch,
        "num_out_ch": _channels(state, "tail.1")[0],
        "num_feat": num_feat,
        "num_block": _count(state, r"body\.(\d+)\.conv\d\."),
        "upscale": _upscale(state, upsampler),
    }


def _describe_rdn(state: State) -> dict:
    num_feat, num_in_ch = _channels(state, "SFENet1")
    upsampler = _convolutions(state, "UPNet")
    return {
        "type": "RDN",
        "num_in_ch": num_in_ch,
        "num_out_ch": _channels(state, upsampler[-1])[0],
        "num_feat": num_feat,
        "num_block": _count(state, r"RDBs\.(\d+)\."),
        "num_conv": _count(state, r"RDBs\.0\.convs\.(\d+)\."),
        "num_grow_ch": _channels(state, "RDBs.0.convs.0.conv.0")[0],
        "upscale": _upscale(state, upsampler),
        "img_range": PIXEL_RANGE,
    }


def _channels(state: State, name: str) -> tuple[int, int]:
    """Output and input channels of a convolution.

    Raises:
        AdaBMError: There is no such convolution.
    """
    weight = state.get(f"{name}.weight")
    if weight is None or weight.dim() != 4:
        raise AdaBMError(
            f"{name}.weight is {'missing' if weight is None else 'not that of a convolution'}"
        )
    return weight.shape[0], weight.shape[1]


def _count(state: State, pattern: str) -> int:
    """One more than the largest index that ``pattern`` finds at the start of a key; at least 1."""
    return 1 + max((int(found[1]) for key in state if (found := re.match(pattern, key))), default=0)


def _convolutions(state: State, parent: str) -> list[str]:
    """Convolutions right below ``parent``, in order; at least the first, be it there or not."""
    pattern = re.compile(rf"{re.escape(parent)}\.(\d+)\.weight")
    found = [
        int(m[1])
        for key, value in state.items()
        if (m := pattern.fullmatch(key)) and value.dim() == 4
    ]
    return [f"{parent}.{index}" for index in sorted(found) or [0]]


def _upscale(state: State, names: list[str]) -> int:
    """Factor of an upsampler: a shuffle by s between two convolutions leaves one channel in s * s."""
    channels = [_channels(state, name) for name in names]
    return math.prod(math.isqrt(before[0] // after[1]) for before, after in pairwise(channels))


def _rgb_mean(state: State) -> list[float]:
    """Mean of the pixels in 0..1 that the published EDSR subtracts by a frozen 1x1 convolution; zeros without it.

    Raises:
        AdaBMError: The convolutions do more than subtract and add the same mean.
    """
    if not any(key.startswith(MEAN_SHIFTS) for key in state):
        return [0.0] * 3
    shifts = []
    for prefix in MEAN_SHIFTS:
        _channels(state, prefix.removesuffix("."))
        weight, bias = state[f"{prefix}weight"].float(), state.get(f"{prefix}bias", torch.zeros(0))
        if (
            weight.shape != (3, 3, 1, 1)
            or bias.shape != (3,)
            or not torch.allclose(weight[..., 0, 0], torch.eye(3))
        ):
            raise AdaBMError(
                f"{prefix}weight and {prefix}bias are no plain shift of three channels"
            )
        shifts.append(bias / PIXEL_RANGE)
    if not torch.allclose(shifts[0], -shifts[1]):
        raise AdaBMError("sub_mean and add_mean are not opposite")
    return [round(value, MEAN_DIGITS) for value in shifts[1].tolist()]


def _renamed_modules(network: dict) -> dict[str, str]:
    """Published names of the modules that are called otherwise here, by our names."""
    if network["type"] != "EDSR":
        return {}
    upsampler = {f"upsample.{index}": f"tail.0.{index}" for index in (0, 2)}
    after_body = f"body.{network['num_block']}"
    return {
        "conv_first": "head.0",
        "conv_after_body": after_body,
        "conv_last": "tail.1",
        **upsampler,
    }


LAYOUTS = {
    "EDSR": _Layout(("head.0.weight", "body.0.conv1.weight"), "head.0", _describe_edsr),
    "RDN": _Layout(("SFENet1.weight", "SFENet2.weight"), "SFENet1", _describe_rdn),
    "SRResNet": _Layout(
        ("head.0.weight", "body.0.conv1.weight", "body.0.bn1.weight"), "head.0", _describe_srresnet
    ),
}


def write_imported(imported: Imported, out: Path) -> Path:
    """Write a quantized checkpoint, and beside it the sections ``network_g`` and ``path`` of an option file for it.

    Args:
        imported: What `import_published` returned.
        out: File to write, ``NAME.pth``; relative to the folder in which the option file will be used.

    Returns:
        The path of the sections, ``NAME.yml``.

    Raises:
        AdaBMError: A file can't be written.
    """
    sections = {
        "network_g": {
            "type": AdaBMNetwork.__name__,
            "network": imported.network,
            **imported.options,
        },
        "path": {"pretrain_network_g": out.as_posix()},
    }
    save_checkpoint(imported.net, out)
    with atomic_path(out.with_suffix(".yml")) as temporary:
        temporary.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
    return out.with_suffix(".yml")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``adabm-basicsr import``."""
    parser = argparse.ArgumentParser(
        prog="adabm-basicsr import", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("published", type=Path, help="quantized checkpoint of the published code")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT.pth", help="checkpoint to write"
    )
    parser.add_argument(
        "--w-bits", type=int, default=4, help="bits of its weights, 2..8 (default: 4)"
    )
    parser.add_argument(
        "--a-bits", type=int, default=4, help="base bits of its activations, 3..8 (default: 4)"
    )
    parser.add_argument(
        "--res-scale", type=float, default=1.0, help="factor of EDSR's residuals (default: 1)"
    )
    args = parser.parse_args(argv)
    if args.out.suffix != ".pth" or args.out.resolve() == args.published.resolve():
        raise AdaBMError(
            f"--out: {args.out} must be another file than the published one, and end in .pth"
        )
    imported = import_published(args.published, args.w_bits, args.a_bits, args.res_scale)
    sections = write_imported(imported, args.out)
    print(f"{args.published}: {imported} (the file doesn't hold its bits)")
    print(
        f"written: {args.out}, and {sections} with its network_g and path for an option file (adabm-basicsr test)"
    )
