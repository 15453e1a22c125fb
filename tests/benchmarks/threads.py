"""One exported network that several threads call, against one thread, in each runtime.

    python tests/benchmarks/threads.py [--network EDSR] [--size 128x128] [--threads 1 2 4]

Every thread takes the next image as soon as it is done with one: all of one class, or of all
classes in turn, for which the network changes its graph. Numbers of threads take turns in several
rounds; the fastest counts. The network has random weights, which its speed doesn't depend on.
Prints a table and writes ``threads.json``. Where more threads give fewer images a second than one
thread, a line names them and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from networks import NETWORKS, arguments, make_example_project_importable
from tabulate import tabulate
from torch import Tensor

from adabm_basicsr import OnnxNetwork, calibrate, quantize, save_onnx
from adabm_basicsr.deployment.runtimes import RUNTIMES

CALIBRATION_IMAGES = 64
PATCH = 48
NOISE = 0.03  # by which the same work differs in time from round to round


def export(kind: str, path: Path) -> None:
    """Write a network of random weights, quantized at 4 bits, as ONNX."""
    import inhouse.archs  # noqa: F401 - registers IMDN
    from basicsr.archs import build_network

    torch.manual_seed(0)
    base = build_network(arguments(kind))
    batches = []
    for contrast in torch.linspace(0.05, 1, CALIBRATION_IMAGES):
        batches.append(contrast * torch.rand(1, 3, PATCH, PATCH))
    net = quantize(base, batches[0], w_bits=4, a_bits=4, recipe="fast", fully_quantized=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_onnx(calibrate(net, batches), path)


def images_by_class(network: OnnxNetwork, height: int, width: int) -> dict[str, list[Tensor]]:
    """What is super-resolved: images of one class, and of all classes that there are.

    The middle class is that of most photographs; of a network without image classes it is all.
    """
    found: dict[int, Tensor] = {}
    noise = torch.rand(1, 3, height, width)
    for contrast in torch.linspace(0.01, 1, 100):
        image = contrast * noise
        found.setdefault(network.level(image), image)
    workloads = {"one class": [list(found.values())[len(found) // 2]]}
    if len(found) > 1:
        workloads["all classes"] = list(found.values())
    return workloads


def throughput(network: OnnxNetwork, images: Sequence[Tensor], threads: int, calls: int) -> float:
    """Images a second of ``calls`` calls by so many threads."""
    chosen = [images[call % len(images)] for call in range(calls)]
    with ThreadPoolExecutor(threads) as pool:
        # Graphs are compiled, and threads started, before the time is taken.
        list(pool.map(network, [*images, *chosen[:threads]]))
        start = time.perf_counter()
        list(pool.map(network, chosen))
        return calls / (time.perf_counter() - start)


def measure(
    path: Path, size: tuple[int, int], threads: Sequence[int], calls: int, rounds: int
) -> list[dict]:
    """A row for each runtime, kind of images and number of threads.

    Args:
        path: A file that `save_onnx` wrote.
        size: Height and width of images.
        threads: Numbers of threads, the one that the others are compared with first.
        calls: In each round.
        rounds: The fastest counts.
    """
    rows = []
    for runtime in RUNTIMES:
        network = OnnxNetwork(path, runtime)
        for name, images in images_by_class(network, *size).items():
            fastest = dict.fromkeys(threads, 0.0)
            for _ in range(rounds):
                for count in threads:
                    found = throughput(network, images, count, calls)
                    fastest[count] = max(fastest[count], found)
            for count, speed in fastest.items():
                row = {
                    "runtime": runtime,
                    "images": name,
                    "threads": count,
                    "images/s": speed,
                    "times one thread": speed / fastest[threads[0]],
                }
                rows.append(row)
    return rows


def slower(rows: Sequence[dict]) -> list[str]:
    """The rows in which more threads do less than one."""
    found = []
    for row in rows:
        ratio = row["times one thread"]
        if ratio < 1 - NOISE:
            found.append(
                f"{row['runtime']}, {row['images']}, {row['threads']} threads: {ratio:.2f}"
            )
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="EDSR", choices=list(NETWORKS))
    parser.add_argument("--size", default="128x128", help="of the LR image, height x width")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--calls", type=int, default=24, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/threads"))
    args = parser.parse_args()
    make_example_project_importable()
    path = args.out / f"{args.network}.onnx"
    if not path.exists():
        export(args.network, path)
    height, width = map(int, args.size.split("x"))
    rows = measure(path, (height, width), args.threads, args.calls, args.rounds)
    print(tabulate(rows, headers="keys", floatfmt=".3f", tablefmt="github"))
    (args.out / "threads.json").write_text(json.dumps(rows, indent=2))
    found = slower(rows)
    if found:
        sys.exit("slower than one thread: " + "; ".join(found))


if __name__ == "__main__":
    main()
