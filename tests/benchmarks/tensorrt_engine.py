"""Builds and times engines of TensorRT: for whoever has an NVIDIA GPU and ``trtexec``.

    python tests/benchmarks/tensorrt_engine.py net.onnx net_fp16.onnx --float float.onnx
        [--size 256x256] [--rounds 3] [--out DIR]

``net.onnx`` and ``net_fp16.onnx`` are what ``adabm-basicsr export --for tensorrt`` writes, and
``float.onnx`` is the network before quantization: it is timed in 32 and in 16 bits. An engine is
built of each file as its numbers are typed, then all are timed in turns. Prints a table, and writes
``tensorrt.json`` and the engines to ``--out``: times on the GPU without the way to and from it
(medians), and the share of the MACs of convolutions that TensorRT runs as integers, by its own
account.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import onnx
from tabulate import tabulate

from adabm_basicsr.deployment.onnx.tensorrt import half_path, in_float16
from adabm_basicsr.files import atomic_path

TRTEXEC = "trtexec"
INPUT = "image"
SECONDS = 3  # of each round


def shape_of(size: str, channels: int) -> str:
    """What trtexec calls the shape of an image of "HxW"."""
    height, width = (int(side) for side in size.split("x"))
    return f"{INPUT}:1x{channels}x{height}x{width}"


def run_trtexec(*arguments: str) -> None:
    """Run trtexec.

    Raises:
        SystemExit: It failed; the message is the last error that it named.
    """
    command = [TRTEXEC, *arguments]
    run = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if run.returncode:
        lines = run.stdout.strip().splitlines() or ["it ended without a word"]
        errors = [line for line in lines if "[E]" in line]
        raise SystemExit(f"{' '.join(command)}: {(errors or lines)[-1]}")


def write_in_float16(model: Path, folder: Path) -> Path:
    """Write a copy of a network that computes in 16 bits to a folder; returns its path."""
    copy = folder / half_path(model).name
    onnx.save(in_float16(onnx.load(model)), copy)
    return copy


def build(model: Path, engine: Path, layers: Path, shape: str) -> None:
    """Build an engine.

    Args:
        model: An ONNX file.
        engine: The file to write.
        layers: Where TensorRT's account of the engine's layers goes, JSON.
        shape: Of the image, as `shape_of` gives it.
    """
    run_trtexec(
        f"--onnx={model}",
        "--stronglyTyped",
        f"--shapes={shape}",
        f"--saveEngine={engine}",
        "--profilingVerbosity=detailed",
        f"--exportLayerInfo={layers}",
        "--skipInference",
    )


def milliseconds(engine: Path, times: Path, shape: str) -> list[float]:
    """Time of each run of an engine on the GPU; ``times`` is a file for trtexec to write."""
    run_trtexec(
        f"--loadEngine={engine}",
        f"--shapes={shape}",
        f"--duration={SECONDS}",
        "--useCudaGraph",
        "--noDataTransfers",
        f"--exportTimes={times}",
    )
    return [float(run["computeMs"]) for run in json.loads(times.read_text())]


def integer_share(layers: list[dict[str, Any]]) -> float:
    """Share of the MACs of convolutions, 0..1, whose weights are integers.

    Args:
        layers: What TensorRT says of each layer of an engine.

    Raises:
        SystemExit: It names no convolution.
    """
    total = 0
    as_integers = 0
    for layer in layers:
        weights = layer.get("Weights", {})
        if "Kernel" not in layer or not weights.get("Count"):
            continue
        height, width = layer["Outputs"][0]["Dimensions"][-2:]
        macs = prod([weights["Count"], height, width])
        total += macs
        if weights["Type"] == "Int8":
            as_integers += macs
    if not total:
        raise SystemExit("TensorRT's account of the engine names no convolution")
    return as_integers / total


def measure(models: list[Path], out: Path, shape: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each file: milliseconds, share of integers, and size of the engine."""
    rows = []
    for model in models:
        engine = out / f"{model.stem}.engine"
        layers = out / f"{model.stem}_layers.json"
        print(f"building {engine}", flush=True)
        build(model, engine, layers, shape)
        share = integer_share(json.loads(layers.read_text())["Layers"])
        size = engine.stat().st_size / 1e6
        rows.append({"file": model.name, "integer MACs": share, "engine MB": size, "times": []})
    for _ in range(rounds):
        for model, row in zip(models, rows, strict=True):
            times = milliseconds(out / f"{model.stem}.engine", out / "times.json", shape)
            row["times"].append(median(times))
    return rows


def make_table(rows: list[dict[str, Any]]) -> str:
    """A line for each file, in Markdown; speeds are compared with that of the last one."""
    lines = []
    compared = median(rows[-1]["times"])
    for row in rows:
        time = median(row["times"])
        lines.append(
            {
                "file": row["file"],
                "ms": f"{time:.2f}",
                f"times the speed of {rows[-1]['file']}": f"{compared / time:.2f}",
                "integer MACs": f"{100 * row['integer MACs']:.0f} %",
                "engine MB": f"{row['engine MB']:.2f}",
            }
        )
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)


def graphics_card() -> str:
    """The name of the GPU and its driver's version, by NVIDIA's own tool."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, check=True, stdout=subprocess.PIPE, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def read_arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="FILE.onnx")
    parser.add_argument("--float", type=Path, required=True, metavar="FILE.onnx")
    parser.add_argument("--size", default="256x256", help="of the LR image, height x width")
    parser.add_argument("--channels", type=int, default=3, help="of the LR image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/tensorrt"))
    return parser.parse_args()


def main() -> None:
    """Build, time, print and write."""
    args = read_arguments()
    if not shutil.which(TRTEXEC):
        raise SystemExit(
            f"{TRTEXEC} isn't on the PATH: it comes with TensorRT, and needs an NVIDIA GPU"
        )
    for model in (*args.models, args.float):
        if not model.is_file():
            raise SystemExit(f"{model}: no such file")
    args.out.mkdir(parents=True, exist_ok=True)
    models = [*args.models, write_in_float16(args.float, args.out), args.float]
    rows = measure(models, args.out, shape_of(args.size, args.channels), args.rounds)
    setting = {"size": args.size, "card": graphics_card()}
    with atomic_path(args.out / "tensorrt.json") as temporary:
        temporary.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1))
    print(f"{make_table(rows)}\n\nLR {args.size}, {setting['card']}")


if __name__ == "__main__":
    main()
