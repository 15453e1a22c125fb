"""Speed, memory, size and accuracy of inference: ours against what a user would pick today.

    python tests/benchmarks/inference.py [--out DIR] [--cache DIR] [--only PROGRAM/NETWORK ...]
        [--bits W8A8 ...] [--again] [--speed-only] [--sets Set5]

Each program that runs networks has the float network, what other tools make of it, and our files
for it. Each file runs in a process of its own, all of one program and network in turns; medians
count. Results are kept by row in ``DIR/inference.json``. What is there isn't measured again, unless
``--again`` says so: a run that was cut off goes on where it was. Files are kept in ``--cache``; a
network is calibrated once for each engine. Prints a table in Markdown and writes ``inference.md``.
Needs ../shared and ``pip install ".[benchmark]"``.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from engine_process import EngineError, EngineProcess
from image_sets import ImageSet, to_bgr
from machine import LIMIT, describe_cpu
from networks import NETWORKS, PERCEPTUAL, SHARED, SMALL_NETWORKS, bits_argument
from peers import choice_path
from results import means
from tabulate import tabulate
from variants import (
    ALL_PROGRAMS,
    IN_HOUSE,
    MIDDLE,
    PROGRAMS,
    OurVariant,
    Variant,
    base_network,
    variants,
)

from adabm_basicsr import load_network
from adabm_basicsr.deployment.ncnn.files import BIN_SUFFIX, PARAM_SUFFIX
from adabm_basicsr.errors import one_line
from adabm_basicsr.files import atomic_path
from adabm_basicsr.quantization.measures.psnr import pixel_psnr

SCALE = 4
SETS = ("Set5", "Set14")
KINDS = (*NETWORKS, *SMALL_NETWORKS)  # the latter are left out unless asked for
ROUNDS = 5
REPEATS = 2  # in each round, after one that doesn't count
Row = dict[str, Any]
Rows = dict[str, Row]


def measure(program: str, kind: str, args: argparse.Namespace, rows: Rows) -> Iterator[None]:
    """Measure what is missing of a program and network; yields whenever there is more to keep.

    Args:
        program: One of `ALL_PROGRAMS`.
        kind: Architecture, one of `KINDS`.
        args: The command line's.
        rows: By key; changed.
    """
    folder = args.cache / kind
    folder.mkdir(parents=True, exist_ok=True)
    compared = {}
    for variant in variants(program, args.bits, args.all_peers):
        compared[f"{kind}/{program}/{variant.name}"] = variant
    if args.again or any(key not in rows for key in compared):
        # All of them, as only those that took turns can be compared.
        rows |= speeds(kind, program, compared, folder, args, rows)
        yield
    if args.speed_only:
        return
    for key, variant in compared.items():
        row = rows[key]
        for name in args.sets:
            if "error" not in row and name not in row["sets"]:
                row["sets"][name] = accuracy(kind, variant, folder, name, args.threads)
                yield


def speeds(
    kind: str,
    program: str,
    compared: dict[str, Variant],
    folder: Path,
    args: argparse.Namespace,
    earlier: Rows,
) -> Rows:
    """Rows of a program, with all but the accuracy; what can't be made or run has an ``error``.

    Args:
        kind: Architecture.
        program: One of `ALL_PROGRAMS`.
        compared: What to run, by the rows' keys.
        folder: Of the network's files.
        args: The command line's.
        earlier: Rows of which the accuracy of other tools' files, which stay, is kept.
    """
    rows: Rows = {}
    image = image_of_size(args.size)
    for key, variant in compared.items():
        rows[key] = {"network": kind, "program": program, "name": variant.name}
        rows[key]["role"] = variant.role
        try:
            make_file(kind, variant, folder)
        except Exception as error:  # of any tool; the other rows are measured still
            rows[key]["error"] = one_line(error)
    with ExitStack() as stack:
        processes = {}
        for key, variant in compared.items():
            if "error" in rows[key]:
                continue
            process = EngineProcess(variant.start, folder / variant.file, args.threads)
            try:
                stack.enter_context(process).seconds(image, repeats=1)
                processes[key] = process
            except EngineError as error:
                rows[key]["error"] = one_line(error)
        times = in_turns(processes, image, args.rounds)
    for key, process in processes.items():
        variant = compared[key]
        rows[key]["ms"] = 1000 * median(times[key])
        rows[key]["peak MB"] = process.peak / 1e6
        rows[key] |= facts_of(variant, folder)
        rows[key]["sets"] = {}
        if not isinstance(variant, OurVariant):
            rows[key]["sets"] = earlier.get(key, {}).get("sets", {})
    return rows


def in_turns(
    processes: dict[str, EngineProcess], image: np.ndarray, rounds: int
) -> dict[str, list[float]]:
    """Seconds of all runs of each process."""
    times: dict[str, list[float]] = {key: [] for key in processes}
    for _ in range(rounds):
        for key, process in processes.items():
            times[key] += process.seconds(image, REPEATS)
    return times


def make_file(kind: str, variant: Variant, folder: Path) -> None:
    """Make a variant's file; ours anew each time, as it is our own code that is measured."""
    path = folder / variant.file
    if isinstance(variant, OurVariant) or not path.exists():
        print(f"making {path}", flush=True)
        variant.make(kind, path)


def facts_of(variant: Variant, folder: Path) -> Row:
    """Cells of a variant that aren't measured by running it."""
    path = folder / variant.file
    row: Row = {"runs in": variant.start, "file MB": size_of(path)}
    if variant.share is not None:
        row["integer MACs"] = variant.share(path)
    if variant.role == "peer" and choice_path(path).exists():
        row["settings"] = json.loads(choice_path(path).read_text())
    return row


def size_of(path: Path) -> float:
    """Megabytes of a model's file, with the weights beside it that OpenVINO and ncnn have."""
    size = path.stat().st_size
    if path.suffix in (".xml", PARAM_SUFFIX):
        size += path.with_suffix(BIN_SUFFIX).stat().st_size
    return size / 1e6


def image_of_size(size: str) -> np.ndarray:
    """An image of the test set, repeated or cut to "HxW": ``(1, 3, H, W)`` in 0..1."""
    height, width = map(int, size.split("x"))
    image = next(image_set("Set14").images())
    rows = np.arange(height) % image.shape[2]
    columns = np.arange(width) % image.shape[3]
    return np.ascontiguousarray(image.numpy()[:, :, rows][..., columns])


def image_set(name: str) -> ImageSet:
    """One of `SETS`."""
    folder = SHARED / "data" / name
    return ImageSet(name, SCALE, folder / f"LRbicx{SCALE}", folder / "GTmod12")


def accuracy(
    kind: str, variant: Variant, folder: Path, name: str, threads: int
) -> dict[str, float]:
    """What a variant makes of the images of a set.

    Loss of PSNR and self-PSNR are means; of ours also the agreement with the simulation, that of
    the image with the smallest.
    """
    from basicsr.metrics import calculate_psnr

    expected = full_precision(kind, folder, name)
    simulation = simulation_of(variant, folder)
    agreements = []
    figures = []
    options = {"crop_border": SCALE, "test_y_channel": True}
    with EngineProcess(variant.start, folder / variant.file, threads) as process:
        for (image, gt), full in zip(image_set(name).pairs(), expected, strict=True):
            output = torch.from_numpy(process.output(image.numpy()))
            of_full = calculate_psnr(to_bgr(full), gt, **options)
            loss = of_full - calculate_psnr(to_bgr(output), gt, **options)
            figures.append({"loss": loss, "self-PSNR": pixel_psnr(output, full)})
            if simulation is not None:
                agreements.append(pixel_psnr(output, simulation(image)))
    found = means(figures)
    if agreements:
        found["agreement"] = min(agreements)
    return found


def full_precision(kind: str, folder: Path, name: str) -> list[torch.Tensor]:
    """What the network in float makes of the images of a set; computed once."""
    path = folder / f"float_{name}.pt"
    if not path.exists():
        net = base_network(kind)
        with torch.no_grad(), atomic_path(path) as temporary:
            torch.save([net(image) for image in image_set(name).images()], temporary)
    return torch.load(path, weights_only=True)


def simulation_of(variant: Variant, folder: Path) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The network in torch that one of our files is made of; None of another's file."""
    if not isinstance(variant, OurVariant):
        return None
    net = load_network(folder / variant.checkpoint, IN_HOUSE)
    if net.image_mapping is not None and not variant.adaptive:
        net.image_mapping = _Always(MIDDLE)
    return torch.no_grad()(net)


class _Always(torch.nn.Module):
    """An image mapping that finds every image to be of one class, 0 to 2."""

    def __init__(self, image_class: int) -> None:
        super().__init__()
        self.image_factor = image_class - MIDDLE

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.new_full((len(image),), self.image_factor)


def make_table(rows: Rows) -> str:
    """A line for each row, in the order of networks and programs, in Markdown."""
    lines = []
    order = list(itertools.product(KINDS, ALL_PROGRAMS))
    for row in sorted(rows.values(), key=lambda row: order.index((row["network"], row["program"]))):
        line = {"network": row["network"], "program": row["program"], "": row["name"]}
        if "settings" in row:
            line[""] += f" ({row['settings']['chosen']})"
        if "error" in row:
            line["ms"] = row["error"]
        else:
            line |= _cells(row, rows)
        lines.append(line)
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)


def _cells(row: Row, rows: Rows) -> dict[str, str]:
    """Cells of a row; ``rows`` has those that it is compared with."""
    cells = {"runs in": row["runs in"], "ms": f"{row['ms']:.1f}"}
    for role, title in (("float", "times float's speed"), ("peer", "times the other tool's")):
        cells[title] = ""
        for other in rows.values():
            same = (other["network"], other["program"]) == (row["network"], row["program"])
            if same and other["role"] == role and "ms" in other:
                cells[title] = f"{other['ms'] / row['ms']:.2f}"
    cells["integer MACs"] = ""
    if "integer MACs" in row:
        cells["integer MACs"] = f"{100 * row['integer MACs']:.0f} %"
    sets = row["sets"]
    agreements = [found["agreement"] for found in sets.values() if "agreement" in found]
    cells["agreement (dB)"] = f"{min(agreements):.1f}" if agreements else ""
    for name in SETS:
        cells[f"{name} loss (dB)"] = ""
        cells[f"{name} self-PSNR (dB)"] = ""
        if name in sets:
            # The perceptual ones aren't meant to be close to the ground truth.
            if row["network"] not in PERCEPTUAL:
                cells[f"{name} loss (dB)"] = f"{sets[name]['loss']:.3f}"
            cells[f"{name} self-PSNR (dB)"] = f"{sets[name]['self-PSNR']:.1f}"
    cells["peak MB"] = f"{row['peak MB']:.0f}"
    cells["file MB"] = f"{row['file MB']:.2f}"
    return cells


def describe(setting: dict[str, Any]) -> str:
    """What was measured and on what, in words, for below the table."""
    cpu = setting["cpu"]
    limit = cpu[LIMIT]
    limited = f"`{LIMIT}={limit}`" if limit else f"`{LIMIT}` not set"
    return (
        f"LR {setting['size']}, {setting['threads']} threads, on {cpu['cores']} cores of "
        f"{cpu['model']} ({cpu['flags']}; {limited}). Medians of interleaved runs. Peak memory is "
        "that of the process; what runs in PyTorch or a class of ours has torch in it. OpenVINO "
        "compiles for the size of the image, but in OnnxNetwork, which leaves it open. Float "
        "networks are computed in the precision that they are named by; in ncnn, without "
        f"half precision. `{LIMIT}` limits OpenVINO, PyTorch and `has_exact_int8`, but neither "
        "ONNX Runtime's kernels nor ncnn's: what these do without VNNI is seen only on a CPU that "
        "has none."
    )


def read_results(path: Path, setting: dict[str, Any]) -> Rows:
    """The rows of an earlier run in the same setting.

    Raises:
        SystemExit: They were measured in another one.
    """
    if not path.exists():
        return {}
    results = json.loads(path.read_text())
    if results["setting"] != setting:
        raise SystemExit(
            f"{path} was measured in another setting, {results['setting']}, than {setting}; name "
            "another --out"
        )
    return results["rows"]


def write_results(out: Path, setting: dict[str, Any], rows: Rows) -> str:
    """Write ``inference.json`` and ``inference.md``; returns what the latter holds."""
    with atomic_path(out / "inference.json") as temporary:
        temporary.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1))
    text = f"{make_table(rows)}\n\n{describe(setting)}\n"
    with atomic_path(out / "inference.md") as temporary:
        temporary.write_text(text)
    return text


def read_arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    groups = [f"{program}/{kind}" for kind in KINDS for program in ALL_PROGRAMS]
    parser.add_argument("--out", type=Path, default=Path("build/inference"))
    parser.add_argument("--cache", type=Path, default=Path("build/inference/files"))
    parser.add_argument(
        "--only",
        nargs="+",
        choices=groups,
        metavar="PROGRAM/NETWORK",
        help=f"programs: {', '.join(ALL_PROGRAMS)}; networks: {', '.join(KINDS)}",
    )
    parser.add_argument("--size", default="256x256", help="of the LR image, height x width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--bits",
        nargs="+",
        type=bits_argument,
        default=["W8A8"],
        help="such as W8A8 W4A8 W4A4",
    )
    parser.add_argument(
        "--all-peers", action="store_true", help="other tools at their defaults too"
    )
    parser.add_argument("--again", action="store_true", help="what was measured before too")
    parser.add_argument("--speed-only", action="store_true")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    return parser.parse_args()


def main() -> None:
    """Measure what is missing, print and write."""
    args = read_arguments()
    args.cache = args.cache.resolve()
    torch.set_num_threads(args.threads)
    setting = {"cpu": describe_cpu(), "size": args.size, "threads": args.threads}
    rows = read_results(args.out / "inference.json", setting)
    groups = [f"{program}/{kind}" for kind in NETWORKS for program in PROGRAMS]
    for group in args.only or groups:
        print(group, flush=True)
        program, kind = group.split("/")
        for _ in measure(program, kind, args, rows):
            write_results(args.out, setting, rows)
    print(write_results(args.out, setting, rows))


if __name__ == "__main__":
    main()
