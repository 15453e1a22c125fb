"""Every image architecture that spandrel builds, small and with random weights.

    python tests/archs/zoo.py

measures them all and writes the table of docs/networks.md.
"""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F

from adabm_basicsr import AdaBMError, calibrate, load_network, save_checkpoint
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.archs.spandrel_arch import import_spandrel, network_classes

PAGE = Path(__file__).parents[2] / "docs" / "networks.md"
BEGIN = "<!-- zoo: python tests/archs/zoo.py -->"
END = "<!-- end of zoo -->"
ENOUGH = 35  # dB
# Static quantization first; bits that are shared out where that isn't enough.
RECIPES = ("static", "fast")
WINDOWS = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 2), "window_size": 8, "upscale": 2}
DIRECT = {**WINDOWS, "img_size": 32, "upsampler": "pixelshuffledirect"}
STEPS = {"enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}


@dataclass
class Entry:
    """A small network of an architecture.

    Attributes:
        kind: Its class in spandrel's module of the architecture.
        options: Arguments of the class.
        refused: What the error says where it can't be quantized; empty otherwise.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


@dataclass
class Result:
    """What came of a network.

    Attributes:
        db: Signal to noise of its output at W8A8 against full precision, in dB.
        recipe: That gave it.
        is_same: Whether it has the same pixels after it was saved and loaded.
        error: Why it was refused; empty otherwise.
    """

    db: float = 0.0
    recipe: str = ""
    is_same: bool = False
    error: str = ""


FACES = "is a network for FaceSR"
ZOO = {
    "ATD": Entry("ATD", {**DIRECT, "category_size": 32, "num_tokens": 16}),
    "Compact": Entry("SRVGGNetCompact", {"num_feat": 16, "num_conv": 4, "upscale": 2}),
    "CRAFT": Entry(
        "CRAFT",
        {"embed_dim": 48, "depths": [2, 2], "num_heads": [6, 6], "upscale": 2},
    ),
    "DAT": Entry(
        "DAT",
        {
            "embed_dim": 32,
            "split_size": [4, 8],
            "depth": [2, 2],
            "num_heads": [2, 2],
            "expansion_factor": 2,
            "upscale": 2,
            "upsampler": "pixelshuffledirect",
        },
    ),
    "DCTLSA": Entry("DCTLSA", {"nf": 20, "num_modules": 6, "upscale": 2, "num_head": 5}),
    "DITN": Entry("DITN_Real", {"dim": 24, "ITL_blocks": 2, "SAL_blocks": 2, "upscale": 2}),
    "DnCNN": Entry("DnCNN", {"in_nc": 3, "out_nc": 3, "nc": 16, "nb": 5}),
    "DRCT": Entry(
        "DRCT", {**DIRECT, "upsampler": "pixelshuffle", "gc": 8, "img_size": 32, "window_size": 8}
    ),
    "DRUNet": Entry("DRUNet", {"in_nc": 4, "out_nc": 3, "nc": [8, 8, 8, 8], "nb": 2}),
    "ESRGAN": Entry("RRDBNet", {"num_filters": 16, "num_blocks": 2, "scale": 4}),
    "FBCNN": Entry("FBCNN"),
    "FDAT": Entry(
        "FDAT",
        {"scale": 2, "embed_dim": 24, "num_groups": 2, "depth_per_group": 2, "num_heads": 2},
    ),
    "FFTformer": Entry(
        "FFTformer", {"dim": 8, "num_blocks": [1, 1, 1], "num_refinement_blocks": 1}
    ),
    "GRL": Entry(
        "GRL",
        {
            "img_size": 32,
            "embed_dim": 96,
            "upscale": 2,
            "upsampler": "pixelshuffledirect",
            "depths": [3, 3],
            "num_heads_window": [2, 2],
            "num_heads_stripe": [2, 2],
            "stripe_size": [8, 8],
        },
    ),
    "HAT": Entry(
        "HAT",
        {
            **WINDOWS,
            "img_size": 32,
            "upsampler": "pixelshuffle",
            "squeeze_factor": 6,
            "num_feat": 16,
        },
    ),
    "HVICIDNet": Entry("CIDNet", {"channels": [8, 8, 16, 32], "heads": [1, 2, 4, 8]}),
    "IPT": Entry("IPT", {"patch_size": 24, "n_feats": 8, "num_heads": 2, "num_layers": 1}),
    "KBNet": Entry("KBNet_s", {"width": 8, "middle_blk_num": 1, **STEPS}),
    "LaMa": Entry("LaMa", {}, "is a network for Inpainting"),
    "MixDehazeNet": Entry("MixDehazeNet", {"embed_dims": [8, 16, 32, 16, 8]}),
    "MMRealSR": Entry(
        "MMRRDBNet_test",
        {
            "num_in_ch": 3,
            "num_out_ch": 3,
            "num_feat": 16,
            "num_block": 1,
            "num_grow_ch": 8,
            "num_feats": [8, 8, 16, 16],
            "num_blocks": [1, 1, 1, 1],
        },
    ),
    "MoESR": Entry("MoESR", {"scale": 2, "dim": 16, "n_blocks": 2, "n_block": 2}),
    "MoSR": Entry("MoSR", {"upscale": 2, "n_block": 3, "dim": 16}),
    "NAFNet": Entry("NAFNet", {"width": 8, **STEPS}),
    "OmniSR": Entry("OmniSR", {"num_feat": 16, "up_scale": 2}),
    "PLKSR": Entry("PLKSR", {"dim": 16, "n_blocks": 3, "upscaling_factor": 2}),
    "RCAN": Entry(
        "RCAN", {"scale": 2, "n_resgroups": 2, "n_resblocks": 2, "n_feats": 16, "reduction": 4}
    ),
    "RealCUGAN": Entry("UpCunet2x"),
    "RealPLKSR": Entry("RealPLKSR", {"dim": 16, "n_blocks": 3, "upscaling_factor": 2}),
    "RestoreFormer": Entry("RestoreFormer", {"ch": 32, "n_embed": 16}, FACES),
    "RetinexFormer": Entry("RetinexFormer", {"n_feat": 8, "stage": 1}),
    "RGT": Entry("RGT", {"embed_dim": 32, "depth": [2, 2], "num_heads": [2, 2], "upscale": 2}),
    "SAFMN": Entry("SAFMN", {"dim": 16, "n_blocks": 2, "upscaling_factor": 2}),
    "SAFMNBCIE": Entry("SAFMN_BCIE", {"dim": 16, "n_blocks": 2, "num_layers": 2}),
    "SCUNet": Entry("SCUNet", {"config": [1, 1, 1, 1, 1, 1, 1]}),
    "SeemoRe": Entry("SeemoRe", {"scale": 2, "num_layers": 2, "embedding_dim": 16}),
    "SPAN": Entry("SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 16, "upscale": 2}),
    "SwiftSRGAN": Entry("Generator", {"num_channels": 16, "num_blocks": 3, "upscale_factor": 2}),
    "Swin2SR": Entry("Swin2SR", {**DIRECT, "mlp_ratio": 2}),
    "SwinIR": Entry("SwinIR", DIRECT),
    "Uformer": Entry(
        "Uformer",
        {"embed_dim": 8, "depths": [1] * 9},
        "any size tried",
    ),
}


# What isn't built here, and why.
LEFT_OUT = {
    "AuraSR": "a generator that takes random numbers besides",
    "GFPGAN": "a face network, which has one size",
}


def architecture_of(name: str) -> str:
    """What spandrel calls the architecture; one has two networks here."""
    return "PLKSR" if name == "RealPLKSR" else name


def smooth_images(channels: int, seed: int = 0) -> torch.Tensor:
    """Four images of 32x40 pixels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(4, channels, 6, 6, generator=generator)
    return F.interpolate(coarse, size=(32, 40), mode="bicubic").clamp(0, 1)


def write_checkpoint(name: str, path: Path) -> None:
    """Write the weights of a network as they are after its construction."""
    entry = ZOO[name]
    torch.manual_seed(0)
    found = import_spandrel().MAIN_REGISTRY[architecture_of(name)].architecture
    network = network_classes(found)[entry.kind](**entry.options)
    torch.save({"params": network.state_dict()}, path)


def quantize_entry(name: str, folder: Path) -> Result:
    """Quantize a network from its checkpoint at W8A8, save and load it."""
    path = folder / "plain.pth"
    write_checkpoint(name, path)
    result = Result()
    for recipe in RECIPES:
        try:
            found = _quantize(path, recipe, folder / "net.pth")
        except AdaBMError as error:
            return Result(error=_reason(str(error), folder))
        if found.db > result.db:
            result = found
        if result.db >= ENOUGH:
            break
    return result


def _reason(error: str, folder: Path) -> str:
    """An error without the paths of this machine."""
    return re.sub(r" \(\S+\.py:\d+\)", "", error.replace(f"{folder}/", ""))


def _quantize(path: Path, recipe: str, saved: Path) -> Result:
    network = {"type": "Spandrel", "path": str(path)}
    net = AdaBMNetwork(network, w_bits=8, a_bits=8, recipe=recipe)
    images = smooth_images(net.in_channels)
    # One by one: networks for one image at a time are among them.
    calibrate(net, images.split(1))
    save_checkpoint(net, saved)
    again = load_network(saved)
    with torch.no_grad():
        output = torch.cat([net(image) for image in images.split(1)])
        loaded = torch.cat([again(image) for image in images.split(1)])
        with net.full_precision():
            full = torch.cat([net(image) for image in images.split(1)])
    is_same = torch.equal(loaded, output)
    noise = (output - full).square().mean().clamp(min=1e-15)
    db = float(10 * torch.log10(full.square().mean() / noise))
    return Result(db, recipe, is_same)


def table(results: dict[str, Result]) -> str:
    """The table in Markdown."""
    lines = ["| network | W8A8 against full precision | recipe, without fine-tuning |"]
    lines.append("| --- | --- | --- |")
    for name, result in results.items():
        if result.error:
            lines.append(f"| {name} | refused: {result.error} | |")
        else:
            lines.append(f"| {name} | {result.db:.0f} dB | `{result.recipe}` |")
    return "\n".join(lines)


def main() -> None:
    """Measure all and write the page."""
    results = {}
    for name in sys.argv[1:] or sorted(ZOO, key=str.lower):
        start = time.perf_counter()
        with TemporaryDirectory() as folder:
            results[name] = quantize_entry(name, Path(folder))
        print(f"{time.perf_counter() - start:6.1f} s  {name}: {results[name]}", flush=True)
    if sys.argv[1:]:
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
