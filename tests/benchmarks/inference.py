"""Speed, memory, size and accuracy of inference: ours against what a user would pick today.

    python tests/benchmarks/inference.py [--networks EDSR] [--sizes 256x256] [--bits 8 4]
        [--recipe fast] [--accuracy]

Compares float in PyTorch and in both runtimes, ONNX Runtime's own static quantizer, NNCF's
post-training quantization, torchao's with torch.compile (which needs a C++ compiler), and our
graphs. Each runs in a process of its own, in several rounds in turns; the fastest counts. Quantized
files are kept in ``--out``. Prints tables and writes ``inference.json``. Needs ../shared and
``pip install ".[benchmark]"``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import yaml
from accuracy import PERCEPTUAL, SCALE, SETS, images_of, means, read_ground_truth, to_bgr
from integer_share import integer_share
from networks import NETWORKS, SHARED, WEIGHTS, make_example_project_importable, option_file
from tabulate import tabulate

from adabm_basicsr import OnnxNetwork, load_checkpoint, load_network, save_onnx
from adabm_basicsr.deployment.runtimes import openvino_core
from adabm_basicsr.quantization.measures.psnr import pixel_psnr

# The image class whose graph is run where the choice of a class is left out.
MIDDLE = 1
CALIBRATION_IMAGES = 80
# Of whole images that the others calibrate on.
SUBSET = 60
ROUNDS = 3
REPEATS = 3
# What takes minutes to start runs in one round alone.
ONCE = ("torchao int8, compiled",)
# From an image, ``(1, 3, H, W)`` float32 in 0..1, to what a network makes of it.
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Variant:
    """One of the ways of running a network that are compared.

    Attributes:
        start: Makes it ready to run, from the name of the network and the folder of its files.
        file: The file that it needs, if any.
    """

    start: Callable[[str, Path], Run]
    file: str | None = None


@dataclass(frozen=True)
class OurVariant(Variant):
    """One of ours.

    Attributes:
        bits: Of weights and activations.
        runtime: "openvino" or "onnxruntime".
        adaptive: Whether each image chooses its class; otherwise all are of the middle one.
    """

    bits: int = 8
    runtime: str = "openvino"
    adaptive: bool = True


def base_network(kind: str) -> torch.nn.Module:
    """The network before quantization."""
    import inhouse.archs  # noqa: F401 - registers IMDN
    from basicsr.archs import build_network

    net = build_network({"type": kind, **NETWORKS[kind]})
    load_checkpoint(net, SHARED / "weights" / WEIGHTS[kind])
    return net.eval().requires_grad_(False)


def calibration_arrays() -> list[np.ndarray]:
    """Whole LR images, ``(1, 3, H, W)`` in 0..1."""
    images = itertools.islice(images_of("calibration"), SUBSET)
    return [image.numpy() for _, image in images]


def prepare_float(kind: str, folder: Path) -> None:
    """The network in float as ONNX."""
    any_size = {
        "image": {2: "height", 3: "width"},
        "output": {2: "out_height", 3: "out_width"},
    }
    torch.onnx.export(
        base_network(kind),
        (torch.rand(1, 3, 64, 64),),
        folder / "float.onnx",
        dynamo=False,
        input_names=["image"],
        output_names=["output"],
        dynamic_axes=any_size,
    )


def prepare_ours(kind: str, bits: int, recipe: str, folder: Path) -> None:
    """Quantize through the command that users call, and export."""
    from adabm_basicsr.train import main as train

    opt = option_file(
        f"{kind}_{bits}",
        kind,
        seed=1,
        images=CALIBRATION_IMAGES,
        lq_size=64,
        iterations={},
        w_bits=bits,
        a_bits=bits,
        fully_quantized=kind not in PERCEPTUAL,
        recipe=recipe,
    )
    (folder / "options.yml").write_text(yaml.safe_dump(opt))
    os.chdir(folder)
    train(["-opt", "options.yml"])
    save_onnx(load_ours(kind, bits, folder), folder / f"ours_{bits}.onnx")


def load_ours(kind: str, bits: int, folder: Path) -> torch.nn.Module:
    """Our quantized network in torch."""
    checkpoint = next(folder.rglob(f"{kind}_{bits}/models/net_g_latest.pth"))
    return load_network(checkpoint, ["inhouse.archs"])


def prepare_onnxruntime_static(folder: Path) -> None:
    """ONNX Runtime's own post-training quantizer, at its defaults."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(calibration_arrays())

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            if image is None:
                return None
            return {"image": image}

    source = folder / "float.onnx"
    quantize_static(source, folder / "onnxruntime_static.onnx", Reader(), per_channel=True)


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

    side = torch.export.Dim.AUTO
    example = (torch.rand(1, 3, 64, 64),)
    shapes = ({2: side, 3: side},)
    quantizer = x86.X86InductorQuantizer()
    quantizer = quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    exported = torch.export.export(base_network(kind), example, dynamic_shapes=shapes)
    with torch.no_grad():
        observed = prepare_pt2e(exported.module(), quantizer)
        for image in calibration_arrays():
            observed(torch.from_numpy(image))
        quantized = torch.export.export(convert_pt2e(observed), example, dynamic_shapes=shapes)
    torch.export.save(quantized, folder / "torchao.pt2")


def timed(work: Callable[[], None], path: Path, times: dict[str, float]) -> None:
    """Do what makes the file at ``path`` unless it is there, and note the seconds that it took."""
    if not path.exists():
        start = time.perf_counter()
        work()
        times[path.name] = time.perf_counter() - start


def torch_float(kind: str, folder: Path) -> Run:
    """The network as it is."""
    net = base_network(kind)
    return lambda x: net(torch.from_numpy(x)).numpy()


def torch_bfloat16(kind: str, folder: Path) -> Run:
    """The network in bfloat16."""
    net = base_network(kind)

    def run(x: np.ndarray) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return net(torch.from_numpy(x)).float().numpy()

    return run


def compiled_torchao(kind: str, folder: Path) -> Run:
    """The network that torchao quantized."""
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401 - registers the operators

    net = torch.compile(torch.export.load(folder / "torchao.pt2").module(), dynamic=True)
    return lambda x: net(torch.from_numpy(x)).numpy()


def in_onnxruntime(file: str) -> Variant:
    """An ONNX file in ONNX Runtime."""

    def start(kind: str, folder: Path) -> Run:
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
        return lambda x: session.run(["output"], {"image": x})[0]

    return Variant(start, file)


def in_openvino(file: str, precision: str | None = None) -> Variant:
    """A model's file in OpenVINO; ``precision`` is what floats are computed in."""

    def start(kind: str, folder: Path) -> Run:
        options = {"PERFORMANCE_HINT": "LATENCY"}
        if precision:
            options["INFERENCE_PRECISION_HINT"] = precision
        compiled = openvino_core().compile_model(folder / file, "CPU", options)
        return lambda x: compiled(x)[0]

    return Variant(start, file)


def ours(bits: int, runtime: str, adaptive: bool) -> OurVariant:
    """Our graphs in a runtime."""
    file = f"ours_{bits}.onnx"

    def start(kind: str, folder: Path) -> Run:
        network = OnnxNetwork(folder / file, runtime)
        if adaptive:
            return lambda x: network(torch.from_numpy(x)).numpy()
        return network.compiled(MIDDLE)

    return OurVariant(start, file, bits, runtime, adaptive)


def variants(bits: list[int]) -> dict[str, Variant]:
    """What is compared, by name."""
    found = {
        "PyTorch float32": Variant(torch_float),
        "PyTorch bfloat16": Variant(torch_bfloat16),
        "ONNX Runtime float32": in_onnxruntime("float.onnx"),
        "OpenVINO float32": in_openvino("float.onnx", "f32"),
        "OpenVINO bfloat16": in_openvino("float.onnx", "bf16"),
        "ONNX Runtime static int8": in_onnxruntime("onnxruntime_static.onnx"),
        "torchao int8, compiled": Variant(compiled_torchao, "torchao.pt2"),
        "NNCF int8, OpenVINO": in_openvino("nncf.xml"),
    }
    for bit in bits:
        for runtime in ("openvino", "onnxruntime"):
            name = f"ours W{bit}A{bit}, {runtime}"
            found[name] = ours(bit, runtime, adaptive=True)
            found[f"{name}, one level"] = ours(bit, runtime, adaptive=False)
    if not torch.cpu.get_capabilities().get("avx512_bf16"):
        # Bfloat16 would be emulated, in minutes.
        found = {name: variant for name, variant in found.items() if "bfloat16" not in name}
    return found


def measure_one(kind: str, variant: Variant, folder: Path, size: str) -> dict[str, float]:
    """Latency and memory of one variant in this process."""
    torch.set_grad_enabled(False)
    x = image_of_size(size)
    run = variant.start(kind, folder)
    run(x)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run(x)
        times.append(time.perf_counter() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": min(times), "memory": memory}


def image_of_size(size: str) -> np.ndarray:
    """An image of the test set, repeated or cut to "HxW": ``(1, 3, H, W)`` in 0..1."""
    height, width = map(int, size.split("x"))
    _, image = next(images_of("Set14"))
    pixels = image[0].numpy().transpose(1, 2, 0)
    resized = np.resize(pixels, (height, width, 3)).transpose(2, 0, 1)
    return np.ascontiguousarray(resized[None])


def accuracy(kind: str, variant: Variant, folder: Path) -> dict[str, dict[str, float]]:
    """Loss of PSNR and self-PSNR, means over the images of each set, in this process."""
    from basicsr.metrics import calculate_psnr

    torch.set_grad_enabled(False)
    run = variant.start(kind, folder)
    teacher = base_network(kind)
    figures = {}
    for name in SETS:
        rows = []
        for path, image in images_of(name):
            output = torch.from_numpy(run(image.numpy()))
            expected = teacher(image)
            gt = read_ground_truth(name, path)
            options = {"crop_border": SCALE, "test_y_channel": True}
            psnr = calculate_psnr(to_bgr(output), gt, **options)
            full = calculate_psnr(to_bgr(expected), gt, **options)
            rows.append({"loss": full - psnr, "self_psnr": pixel_psnr(output, expected)})
        figures[name] = means(rows)
    return figures


class _Always(torch.nn.Module):
    """An image mapping that finds every image to be of one class, 0 to 2."""

    def __init__(self, image_class: int) -> None:
        super().__init__()
        self.image_factor = image_class - MIDDLE

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.new_full((len(image),), self.image_factor)


def agreement(kind: str, variant: OurVariant, folder: Path) -> dict[str, float]:
    """PSNR between our graph and the simulation at each image class, means over Set14."""
    torch.set_grad_enabled(False)
    network = OnnxNetwork(folder / variant.file, variant.runtime)
    simulation = load_ours(kind, variant.bits, folder)
    images = [image for _, image in images_of("Set14")]
    figures = {}
    for image_class in range(3):
        simulation.image_mapping = _Always(image_class)
        found = []
        for image in images:
            found.append(pixel_psnr(network.at_level(image, image_class), simulation(image)))
        figures[f"agreement at level {image_class}"] = mean(found)
    return figures


def in_own_process(kind: str, name: str, args: argparse.Namespace, *what: str) -> dict:
    """Figures of a variant from a fresh process: each has threads and memory of its own.

    ``what`` are the flags of what to measure.
    """
    command = [sys.executable, __file__, "--networks", kind, "--out", str(args.out)]
    command += ["--bits", *map(str, args.bits), "--only", name, *what]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        return {"error": run.stderr.strip().splitlines()[-1]}
    return json.loads(run.stdout.splitlines()[-1])


def prepare(kind: str, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Make the files that are missing; seconds that each took, of this run and earlier ones."""
    kept = folder / "seconds.json"
    times = {}
    if kept.is_file():
        times = json.loads(kept.read_text())
    work = {"float.onnx": partial(prepare_float, kind, folder)}
    for bits in args.bits:
        work[f"ours_{bits}.onnx"] = partial(prepare_ours, kind, bits, args.recipe, folder)
    work["onnxruntime_static.onnx"] = partial(prepare_onnxruntime_static, folder)
    work["torchao.pt2"] = partial(prepare_torchao, kind, folder)
    work["nncf.xml"] = partial(prepare_nncf, folder)
    for name, make in work.items():
        timed(make, folder / name, times)
    kept.write_text(json.dumps(times))
    return times


def size_of(path: Path) -> float:
    """Megabytes of a model's file, or of the two that OpenVINO writes."""
    size = path.stat().st_size
    if path.suffix == ".xml":
        size += path.with_suffix(".bin").stat().st_size
    return size / 1e6


def compare(kind: str, args: argparse.Namespace) -> Iterator[list[dict]]:
    """Rows of a network's variants, for one size of image after another."""
    folder = args.out / kind
    folder.mkdir(parents=True, exist_ok=True)
    times = prepare(kind, args, folder)
    for size in args.sizes:
        found = measure_in_turns(kind, args, size)
        reference = min(result.get("seconds", np.inf) for result in found["PyTorch float32"])
        rows = []
        for name, results in found.items():
            row = {"network": kind, "size": size, "variant": name}
            errors = [result["error"] for result in results if "error" in result]
            if errors:
                row["error"] = errors[0]
            else:
                best = min(results, key=lambda result: result["seconds"])
                row |= speed_of(best, size, reference)
                row |= facts_of(kind, name, size, times, args)
            rows.append(row)
        yield rows


def measure_in_turns(kind: str, args: argparse.Namespace, size: str) -> dict[str, list[dict]]:
    """Latency and memory of each variant, one result for each round."""
    found: dict[str, list[dict]] = {name: [] for name in variants(args.bits)}
    for turn in range(ROUNDS):
        for name, results in found.items():
            if turn == 0 or name not in ONCE:
                results.append(in_own_process(kind, name, args, "--size", size))
    return found


def speed_of(best: dict[str, float], size: str, reference: float) -> dict[str, float]:
    """Cells of a variant's fastest round; ``reference`` are the seconds of PyTorch in float32."""
    height, width = map(int, size.split("x"))
    pixels = height * width * SCALE**2
    return {
        "ms": 1000 * best["seconds"],
        "times float32": reference / best["seconds"],
        "MP/s": pixels / best["seconds"] / 1e6,
        "peak MB": best["memory"] / 1e6,
    }


def facts_of(
    kind: str, name: str, size: str, times: dict[str, float], args: argparse.Namespace
) -> dict[str, Any]:
    """Cells of a variant that aren't its speed; its accuracy at the first size alone."""
    row: dict[str, Any] = {}
    variant = variants(args.bits)[name]
    of_one_class = isinstance(variant, OurVariant) and not variant.adaptive
    if variant.file:
        path = args.out / kind / variant.file
        row["file MB"] = size_of(path)
        row["made in s"] = times.get(variant.file)
        if of_one_class:
            row["integer MACs"] = integer_share(path, variant.runtime)
    if args.accuracy and size == args.sizes[0]:
        for of_set, figures in in_own_process(kind, name, args, "--accuracy").items():
            for key, value in figures.items():
                row[f"{of_set} {key}"] = value
        if of_one_class:
            row |= in_own_process(kind, name, args, "--agreement")
    return row


def read_arguments() -> argparse.Namespace:
    """What the command line asks for; with ``--only``, a single variant in this process."""
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
    return parser.parse_args()


def measure_only(args: argparse.Namespace) -> dict:
    """What `in_own_process` asks this process for."""
    kind = args.networks[0]
    folder = args.out / kind
    variant = variants(args.bits)[args.only]
    if args.size:
        return measure_one(kind, variant, folder, args.size)
    if args.agreement:
        return agreement(kind, variant, folder)
    return accuracy(kind, variant, folder)


def main() -> None:
    """Compare, print and write."""
    args = read_arguments()
    make_example_project_importable()
    if args.only:
        print(json.dumps(measure_only(args)))
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
