"""Speed, memory, size and accuracy of inference: ours against what a user would pick today.

    python tests/benchmarks/inference.py [--networks EDSR] [--sizes 256x256] [--bits 8 4] [--recipe fast] [--accuracy]

Float in PyTorch and in both runtimes, ONNX Runtime's own static quantizer, NNCF's post-training quantization, torchao's
with torch.compile (which needs a C++ compiler), and our graphs. Each runs in a process of its own, in several rounds in
turns; the fastest counts. Quantized files are kept in ``--out``. Prints tables and writes ``inference.json``. Needs
../shared and ``pip install ".[benchmark]"``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import yaml
from accuracy import PERCEPTUAL, SCALE, SETS, images_of, pixels
from integer_share import integer_share
from networks import NETWORKS, SHARED, WEIGHTS, make_example_project_importable, option_file
from tabulate import tabulate

from adabm_basicsr import OnnxNetwork, load_checkpoint, load_network, save_onnx
from adabm_basicsr.data.images import read_image
from adabm_basicsr.deployment.runtimes import openvino_core
from adabm_basicsr.quantization.measures.psnr import pixel_psnr

MIDDLE = 1
CALIBRATION_IMAGES = 80
SUBSET = 60  # of whole images that the others calibrate on
ROUNDS, REPEATS = 3, 3
ONCE = ("torchao int8, compiled",)  # takes minutes to start
Run = Callable[[np.ndarray], np.ndarray]


def base_network(kind: str) -> torch.nn.Module:
    """The network before quantization."""
    import inhouse.archs  # noqa: F401 - registers IMDN
    from basicsr.archs import build_network

    net = build_network({"type": kind, **NETWORKS[kind]})
    load_checkpoint(net, SHARED / "weights" / WEIGHTS[kind])
    return net.eval().requires_grad_(False)


def calibration_arrays() -> list[np.ndarray]:
    """Whole LR images, ``(1, 3, H, W)`` in 0..1."""
    return [image.numpy() for _, image in list(images_of("calibration"))[:SUBSET]]


def prepare_float(kind: str, folder: Path) -> None:
    """The network in float as ONNX."""
    torch.onnx.export(
        base_network(kind),
        (torch.rand(1, 3, 64, 64),),
        folder / "float.onnx",
        dynamo=False,
        input_names=["image"],
        output_names=["output"],
        dynamic_axes={
            "image": {2: "height", 3: "width"},
            "output": {2: "out_height", 3: "out_width"},
        },
    )


def prepare_ours(kind: str, bits: int, recipe: str, folder: Path) -> None:
    """Quantize through the command that users call, and export."""
    from adabm_basicsr.train import main as train

    network = {
        "w_bits": bits,
        "a_bits": bits,
        "fully_quantized": kind not in PERCEPTUAL,
        "recipe": recipe,
    }
    opt = option_file(
        f"{kind}_{bits}", kind, 1, images=CALIBRATION_IMAGES, lq_size=64, iterations={}, **network
    )
    (folder / "options.yml").write_text(yaml.safe_dump(opt))
    os.chdir(folder)
    train(["-opt", "options.yml"])
    checkpoint = next(folder.rglob(f"{kind}_{bits}/models/net_g_latest.pth"))
    save_onnx(load_network(checkpoint, ["inhouse.archs"]), folder / f"ours_{bits}.onnx")


def prepare_onnxruntime_static(folder: Path) -> None:
    """ONNX Runtime's own post-training quantizer, at its defaults."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(calibration_arrays())

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {"image": image}

    quantize_static(
        folder / "float.onnx", folder / "onnxruntime_static.onnx", Reader(), per_channel=True
    )


def prepare_nncf(folder: Path) -> None:
    """NNCF's post-training quantization, at its defaults."""
    import nncf
    import openvino

    images = calibration_arrays()
    model = openvino_core().read_model(folder / "float.onnx")
    quantized = nncf.quantize(model, nncf.Dataset(images), subset_size=len(images))
    openvino.save_model(quantized, folder / "nncf.xml", compress_to_fp16=False)


def prepare_torchao(kind: str, folder: Path) -> None:
    """Torchao's post-training quantization for x86 CPUs, at its defaults."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    side, example = torch.export.Dim.AUTO, (torch.rand(1, 3, 64, 64),)
    shapes = ({2: side, 3: side},)
    quantizer = x86.X86InductorQuantizer().set_global(
        x86.get_default_x86_inductor_quantization_config()
    )
    exported = torch.export.export(base_network(kind), example, dynamic_shapes=shapes)
    with torch.no_grad():
        observed = prepare_pt2e(exported.module(), quantizer)
        for image in calibration_arrays():
            observed(torch.from_numpy(image))
        quantized = torch.export.export(convert_pt2e(observed), example, dynamic_shapes=shapes)
    torch.export.save(quantized, folder / "torchao.pt2")


def timed(work: Callable[[], None], path: Path, times: dict) -> None:
    """Do what makes the file at ``path`` unless it is there, and note how long it took."""
    if not path.exists():
        start = time.perf_counter()
        work()
        times[path.name] = time.perf_counter() - start


def torch_float(kind: str, folder: Path) -> Run:
    net = base_network(kind)
    return lambda x: net(torch.from_numpy(x)).numpy()


def torch_bfloat16(kind: str, folder: Path) -> Run:
    net = base_network(kind)

    def run(x: np.ndarray) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return net(torch.from_numpy(x)).float().numpy()

    return run


def compiled_torchao(kind: str, folder: Path) -> Run:
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401 - registers the file's operators

    net = torch.compile(torch.export.load(folder / "torchao.pt2").module(), dynamic=True)
    return lambda x: net(torch.from_numpy(x)).numpy()


def in_onnxruntime(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x: session.run(["output"], {"image": x})[0]


def in_openvino(path: Path, precision: str | None = None) -> Run:
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        **({"INFERENCE_PRECISION_HINT": precision} if precision else {}),
    }
    compiled = openvino_core().compile_model(path, "CPU", options)
    return lambda x: compiled(x)[0]


def ours(path: Path, runtime: str, adaptive: bool) -> Run:
    network = OnnxNetwork(path, runtime)
    if adaptive:
        return lambda x: network(torch.from_numpy(x)).numpy()
    return network.compiled(MIDDLE)


def variants(bits: list[int]) -> dict[str, tuple[str | None, Callable[[str, Path], Run]]]:
    """What is compared: the file it needs, and what makes it run."""
    found = {
        "PyTorch float32": (None, torch_float),
        "PyTorch bfloat16": (None, torch_bfloat16),
        "ONNX Runtime float32": ("float.onnx", lambda _, f: in_onnxruntime(f / "float.onnx")),
        "OpenVINO float32": ("float.onnx", lambda _, f: in_openvino(f / "float.onnx", "f32")),
        "OpenVINO bfloat16": ("float.onnx", lambda _, f: in_openvino(f / "float.onnx", "bf16")),
        "ONNX Runtime static int8": (
            "onnxruntime_static.onnx", lambda _, f: in_onnxruntime(f / "onnxruntime_static.onnx")
        ),
        "torchao int8, compiled": ("torchao.pt2", compiled_torchao),
        "NNCF int8, OpenVINO": ("nncf.xml", lambda _, f: in_openvino(f / "nncf.xml")),
    }  # fmt: skip
    for bit in bits:
        for runtime in ("openvino", "onnxruntime"):
            for adaptive in (True, False):
                name = f"ours W{bit}A{bit}, {runtime}{'' if adaptive else ', one level'}"
                found[name] = (
                    f"ours_{bit}.onnx",
                    lambda _, f, bit=bit, runtime=runtime, adaptive=adaptive: ours(
                        f / f"ours_{bit}.onnx", runtime, adaptive
                    ),
                )
    if not torch.cpu.get_capabilities().get("avx512_bf16"):  # emulated, in minutes
        found = {name: variant for name, variant in found.items() if "bfloat16" not in name}
    return found


def measure_one(kind: str, name: str, bits: list[int], folder: Path, size: str) -> dict:
    """Latency and memory of one variant in this process."""
    torch.set_grad_enabled(False)
    height, width = map(int, size.split("x"))
    _path, image = next(iter(images_of("Set14")))
    x = np.ascontiguousarray(
        np.resize(image[0].numpy().transpose(1, 2, 0), (height, width, 3)).transpose(2, 0, 1)[None]
    )
    run = variants(bits)[name][1](kind, folder)
    run(x)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run(x)
        times.append(time.perf_counter() - start)
    return {
        "seconds": min(times),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def accuracy(kind: str, name: str, bits: list[int], folder: Path) -> dict:
    """Loss of PSNR and self-PSNR, means over the images of each set, in this process."""
    from basicsr.metrics import calculate_psnr

    torch.set_grad_enabled(False)
    run, teacher = variants(bits)[name][1](kind, folder), base_network(kind)
    figures = {}
    for of_set in SETS:
        rows = []
        for path, image in images_of(of_set):
            output, expected = torch.from_numpy(run(image.numpy())), teacher(image)
            gt = read_image(SHARED / "data" / of_set / "GTmod12" / path.name)[..., ::-1]
            made = (pixels(o)[0].permute(1, 2, 0).flip(2).numpy() for o in (output, expected))
            psnr, full = (
                calculate_psnr(m, gt, crop_border=SCALE, test_y_channel=True) for m in made
            )
            rows.append({"loss": full - psnr, "self_psnr": pixel_psnr(output, expected)})
        figures[of_set] = {key: mean(row[key] for row in rows) for key in rows[0]}
    return figures


class _Always(torch.nn.Module):
    """An image mapping that finds every image to be of one level."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level - MIDDLE

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.new_full((len(image),), self.level)


def agreement(kind: str, name: str, bits: list[int], folder: Path) -> dict[str, float]:
    """PSNR between our graph at each level and the simulation at it, means over Set14."""
    torch.set_grad_enabled(False)
    network, simulation = (
        OnnxNetwork(folder / variants(bits)[name][0], name.split(", ")[1]),
        _simulation(name, folder),
    )
    figures = {}
    for level in range(3):
        simulation.image_mapping = _Always(level)
        images = [image for _, image in images_of("Set14")]
        found = mean(
            pixel_psnr(network.at_level(image, level), simulation(image)) for image in images
        )
        figures[f"agreement at level {level}"] = found
    return figures


def _simulation(name: str, folder: Path) -> torch.nn.Module:
    """Our network in torch, of the variant's bits."""
    bits = name.split("W")[1][0]
    return load_network(next(folder.rglob(f"*_{bits}/models/net_g_latest.pth")), ["inhouse.archs"])


def in_own_process(kind: str, name: str, args: argparse.Namespace, *what: str) -> dict:
    """Figures of a variant from a fresh process: each has threads and memory of its own."""
    argv = [
        sys.executable,
        __file__,
        "--networks",
        kind,
        "--bits",
        *map(str, args.bits),
        "--out",
        str(args.out),
    ]
    run = subprocess.run(
        [*argv, "--only", name, *what], capture_output=True, text=True, check=False
    )
    if run.returncode:
        return {"error": run.stderr.strip().splitlines()[-1]}
    return json.loads(run.stdout.splitlines()[-1])


def prepare(kind: str, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Make the files that are missing; seconds that each took, of this run and earlier ones."""
    kept = folder / "seconds.json"
    times = json.loads(kept.read_text()) if kept.is_file() else {}
    timed(lambda: prepare_float(kind, folder), folder / "float.onnx", times)
    for bits in args.bits:
        timed(
            lambda: prepare_ours(kind, bits, args.recipe, folder),
            folder / f"ours_{bits}.onnx",
            times,
        )
    timed(lambda: prepare_onnxruntime_static(folder), folder / "onnxruntime_static.onnx", times)
    timed(lambda: prepare_torchao(kind, folder), folder / "torchao.pt2", times)
    timed(lambda: prepare_nncf(folder), folder / "nncf.xml", times)
    kept.write_text(json.dumps(times))
    return times


def size_of(path: Path) -> float:
    """Megabytes of a model's file, or of the two that OpenVINO writes."""
    files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    return sum(file.stat().st_size for file in files) / 1e6


def compare(kind: str, args: argparse.Namespace) -> Iterator[list[dict]]:
    """Rows of a network's variants, for one size of image after another."""
    folder = args.out / kind
    folder.mkdir(parents=True, exist_ok=True)
    times = prepare(kind, args, folder)
    for size in args.sizes:
        figures: dict[str, list[dict]] = {name: [] for name in variants(args.bits)}
        for turn in range(ROUNDS):
            for name, results in figures.items():
                if turn == 0 or name not in ONCE:
                    results.append(in_own_process(kind, name, args, "--size", size))
        first = min(result.get("seconds", np.inf) for result in figures["PyTorch float32"])
        yield [
            row_of(kind, name, size, results, first, times, args)
            for name, results in figures.items()
        ]


def row_of(
    kind: str, name: str, size: str, results: list[dict], first: float, times: dict, args
) -> dict:
    """What is told of one variant at one size; of its accuracy at the first size alone."""
    row = {"network": kind, "size": size, "variant": name}
    if errors := [result["error"] for result in results if "error" in result]:
        return {**row, "error": errors[0]}
    best = min(results, key=lambda result: result["seconds"])
    height, width = map(int, size.split("x"))
    row |= {"ms": 1000 * best["seconds"], "times float32": first / best["seconds"]}
    row |= {
        "MP/s": height * width * SCALE**2 / best["seconds"] / 1e6,
        "peak MB": best["memory"] / 1e6,
    }
    path = variants(args.bits)[name][0]
    if path:
        row |= {"file MB": size_of(args.out / kind / path), "made in s": times.get(path)}
    one_level = name.startswith("ours") and "one level" in name
    if one_level:
        row["integer MACs"] = integer_share(args.out / kind / path, name.split(", ")[1])
    if args.accuracy and size == args.sizes[0]:
        for of_set, told in in_own_process(kind, name, args, "--accuracy").items():
            row |= {f"{of_set} {key}": value for key, value in told.items()}
        row |= in_own_process(kind, name, args, "--agreement") if one_level else {}
    return row


def main() -> None:
    """Compare, print and write; with ``--only``, measure a single variant in this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["EDSR"], choices=list(NETWORKS))
    parser.add_argument(
        "--sizes", nargs="+", default=["256x256"], help="of the LR image, height x width"
    )
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4])
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--accuracy", action="store_true", help="PSNR on Set5 and Set14 too")
    parser.add_argument("--out", type=Path, default=Path("build/inference"))
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--agreement", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    args = parser.parse_args()
    make_example_project_importable()
    if args.only:
        kind, folder = args.networks[0], args.out / args.networks[0]
        if args.size:
            figures = measure_one(kind, args.only, args.bits, folder, args.size)
        else:
            figures = (agreement if args.agreement else accuracy)(
                kind, args.only, args.bits, folder
            )
        print(json.dumps(figures))
        return
    args.out = args.out.resolve()
    rows: list[dict] = []
    for kind in args.networks:
        for of_size in compare(kind, args):
            rows += of_size
            (args.out / "inference.json").write_text(json.dumps(rows, indent=2))
    table = tabulate(rows, headers="keys", floatfmt=".3f", tablefmt="github")
    (args.out / "inference.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
