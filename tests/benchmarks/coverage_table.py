"""Table of the architectures: layers that are found, share of the MACs that is quantized, scales that are tested.

    python tests/benchmarks/coverage_table.py --out coverage.json

Sizes are the usual ones of each architecture; no weights are needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tabulate import tabulate

from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.quantization.measures.coverage import measure_coverage

sys.path.insert(0, str(Path(__file__).parents[1] / "archs"))
from architectures import ARCHITECTURES, SR

LIGHT = {
    "upscale": 2,
    "img_size": 64,
    "window_size": 8,
    "depths": [6] * 4,
    "embed_dim": 60,
    "num_heads": [6] * 4,
}
USUAL = {
    "EDSR": {**SR, "num_feat": 64, "num_block": 16, "upscale": 4},
    "MSRResNet": {**SR, "num_feat": 64, "num_block": 16, "upscale": 4},
    "RCAN": {**SR, "num_feat": 64, "num_group": 10, "num_block": 20, "upscale": 4},
    "RRDBNet": {**SR, "num_feat": 64, "num_block": 23, "num_grow_ch": 32, "scale": 4},
    "SRVGGNetCompact": {**SR, "num_feat": 64, "num_conv": 16, "upscale": 4},
    "ECBSR": {
        "num_in_ch": 1, "num_out_ch": 1, "num_block": 4, "num_channel": 16, "with_idt": False, "act_type": "prelu",
        "scale": 4,
    },
    "RIDNet": {"in_channels": 3, "mid_channels": 64, "out_channels": 3},
    "SwinIR": {**LIGHT, "mlp_ratio": 2, "upsampler": "pixelshuffledirect"},
    "RDN": {**SR, "num_feat": 64, "num_block": 16, "num_conv": 8, "num_grow_ch": 64, "upscale": 4},
    "SRResNet": {**SR, "num_feat": 64, "num_block": 16, "upscale": 4},
}  # fmt: skip


def coverage_of(kind: str, **options) -> dict[str, float]:
    """Number of quantized layers and their share of the MACs."""
    found = measure_coverage(
        AdaBMNetwork(network={"type": kind, **USUAL[kind]}, recipe="best", **options)
    )
    return {"layers": found.layers, "macs": found.macs}


def measure(kind: str) -> dict:
    """One row of the table."""
    row = {"body": coverage_of(kind), "full": coverage_of(kind, fully_quantized=True)}
    if kind == "SwinIR":
        row["products"] = coverage_of(kind, fully_quantized=True, attention_products=True)
    scales = {name.split()[1] for name, options in ARCHITECTURES.items() if options["type"] == kind}
    return {**row, "scales": sorted(scales)}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    results = {kind: measure(kind) for kind in USUAL}
    args.out.write_text(json.dumps(results, indent=2))
    rows = [[kind, *_cells(row), ", ".join(row["scales"])] for kind, row in results.items()]
    headers = [
        "architecture",
        "body: layers",
        "MACs",
        "fully quantized: layers",
        "MACs",
        "tested scales",
    ]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))


def _cells(row: dict) -> list[str]:
    full = [str(row["full"]["layers"]), f"{100 * row['full']['macs']:.1f} %"]
    if "products" in row:
        full = [
            f"{full[0]} ({row['products']['layers']})",
            f"{full[1]} ({100 * row['products']['macs']:.1f} %)",
        ]
    return [str(row["body"]["layers"]), f"{100 * row['body']['macs']:.1f} %", *full]


if __name__ == "__main__":
    main()
