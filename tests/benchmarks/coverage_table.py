"""Table of the architectures: quantized layers, their share of the MACs, scales that are tested.

    python tests/benchmarks/coverage_table.py --out coverage.json

Sizes are the usual ones of each architecture; no weights are needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.quantization.measures.coverage import measure_coverage

sys.path.insert(0, str(Path(__file__).parents[1] / "archs"))
from architectures import ARCHITECTURES, SR

USUAL = {
    "EDSR": {**SR, "num_feat": 64, "num_block": 16, "upscale": 4},
    "MSRResNet": {**SR, "num_feat": 64, "num_block": 16, "upscale": 4},
    "RCAN": {**SR, "num_feat": 64, "num_group": 10, "num_block": 20, "upscale": 4},
    "RRDBNet": {**SR, "num_feat": 64, "num_block": 23, "num_grow_ch": 32, "scale": 4},
    "SRVGGNetCompact": {**SR, "num_feat": 64, "num_conv": 16, "upscale": 4},
    "ECBSR": {
        "num_in_ch": 1,
        "num_out_ch": 1,
        "num_block": 4,
        "num_channel": 16,
        "with_idt": False,
        "act_type": "prelu",
        "scale": 4,
    },
    "RIDNet": {"in_channels": 3, "mid_channels": 64, "out_channels": 3},
    "SwinIR": {
        "upscale": 2,
        "img_size": 64,
        "window_size": 8,
        "depths": [6, 6, 6, 6],
        "embed_dim": 60,
        "num_heads": [6, 6, 6, 6],
        "mlp_ratio": 2,
        "upsampler": "pixelshuffledirect",
    },
    "RDN": {**SR, "num_feat": 64, "num_block": 16, "num_conv": 8, "num_grow_ch": 64, "upscale": 4},
    "SRResNet": {**SR, "num_feat": 64, "num_block": 16, "upscale": 4},
}


def coverage_of(kind: str, **options: Any) -> dict[str, float]:
    """Number of quantized layers and their share of the MACs."""
    network = {"type": kind, **USUAL[kind]}
    found = measure_coverage(AdaBMNetwork(network=network, recipe="best", **options))
    return {"layers": found.layers, "macs": found.macs}


def measure(kind: str) -> dict:
    """Coverage of one architecture: of the body, fully quantized, and with products of attention.

    The scales are those that the tests of architectures run.
    """
    row: dict[str, Any] = {
        "body": coverage_of(kind),
        "full": coverage_of(kind, fully_quantized=True),
    }
    if kind == "SwinIR":
        row["products"] = coverage_of(kind, fully_quantized=True, attention_products=True)
    scales = set()
    for name, options in ARCHITECTURES.items():
        if options["type"] == kind:
            scales.add(name.split()[1])
    row["scales"] = sorted(scales)
    return row


def make_table(results: dict[str, dict]) -> str:
    """A row for each architecture; in brackets what products of attention add."""
    rows = []
    for kind, found in results.items():
        full_layers = _layers(found["full"])
        full_macs = _macs(found["full"])
        if "products" in found:
            full_layers += f" ({_layers(found['products'])})"
            full_macs += f" ({_macs(found['products'])})"
        scales = ", ".join(found["scales"])
        body = found["body"]
        rows.append([kind, _layers(body), _macs(body), full_layers, full_macs, scales])
    headers = [
        "architecture",
        "body: layers",
        "MACs",
        "fully quantized: layers",
        "MACs",
        "tested scales",
    ]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _layers(coverage: dict[str, float]) -> str:
    return str(coverage["layers"])


def _macs(coverage: dict[str, float]) -> str:
    return f"{100 * coverage['macs']:.1f} %"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    results = {kind: measure(kind) for kind in USUAL}
    args.out.write_text(json.dumps(results, indent=2))
    print(make_table(results))


if __name__ == "__main__":
    main()
