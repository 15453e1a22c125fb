"""What quantization and inference take on a GPU: for whoever has one of NVIDIA's.

    python tests/benchmarks/gpu.py --out DIR [--recipes fast paper best] [--size 256]

Quantizes EDSR x4 at W4A4 on 80 random images in patches of 64, whole runs: seconds, forward units
(one float32 forward pass of the network on one patch), the most memory, kernels of an iteration and
how often it waits for the GPU. Then times inference: PyTorch, and ONNX Runtime where it has
providers for GPUs, on graphs in float32, of plain integers, and of integers as TensorRT wants them.
Prints tables and writes ``gpu.json``. Weights and images are random: costs don't depend on them.
``--device cpu`` tries the script out; a CPU has no kernels to count and isn't waited for.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from calibration_cost import Setting, build
from machine import GpuWaits, peak_bytes
from tabulate import tabulate
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from adabm_basicsr import calibrate, finetune, quantize, save_onnx
from adabm_basicsr.quantization.finetuning.finetune import Finetuner, FinetuneSettings
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.recipes import RECIPES

# Seconds that the recipes are meant to take on a data-centre GPU.
PROMISED = {"fast": 10, "paper": 30, "best": 60}
PROVIDERS = {"CUDA": "CUDAExecutionProvider", "TensorRT": "TensorrtExecutionProvider"}
FOR_TENSORRT = "integers for TensorRT"
REPEATS = 10
Run = Callable[[], Any]


def synchronize(device: torch.device) -> None:
    """Wait until a device has computed all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Run, device: torch.device) -> float:
    """Wall time of some work, until its last kernel."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def median_seconds(work: Run, device: torch.device) -> float:
    """Median wall time of a few runs, after two that don't count."""
    work()
    work()
    return median(seconds_of(work, device) for _ in range(REPEATS))


# Quantization


def measure_recipe(setting: Setting, device: torch.device, iterations: int | None) -> dict:
    """Quantize once, from the first batch to the last iteration.

    Args:
        setting: Network, recipe and images.
        device: Where to.
        iterations: Of fine-tuning; the recipe's own by default.
    """
    network = build(setting).to(device)
    images = torch.rand(setting.images, 3, setting.size, setting.size, device=device)
    calibration = list(images.split(setting.calibration_batch))
    batches = list(images.split(setting.batch))
    with torch.no_grad():
        unit = median_seconds(lambda: network(images[:1]), device)
    net = quantize(
        network, images[:1], w_bits=4, a_bits=4, recipe=setting.recipe, fully_quantized=True
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    result = {"recipe": setting.recipe, "promised_seconds": PROMISED.get(setting.recipe)}
    result["calibration_seconds"] = seconds_of(lambda: calibrate(net, calibration), device)
    result["finetuning_seconds"] = 0.0
    if net.config.finetuning.phases:
        count = iterations or net.config.finetuning.iterations
        epochs = -(-count // len(batches))
        patches = (batches * epochs)[:count]
        result["finetuning_seconds"] = seconds_of(
            lambda: finetune(net, patches, iterations_per_epoch=len(batches)), device
        )
        result.update(look_at_iteration(net, batches[0], device))
    result["seconds"] = result["calibration_seconds"] + result["finetuning_seconds"]
    result["unit_seconds"] = unit
    result["units"] = result["seconds"] / unit
    result["peak_bytes"] = peak_bytes()
    if device.type == "cuda":
        result["peak_bytes"] = torch.cuda.max_memory_allocated()
    return result


def look_at_iteration(net: QuantizedNetwork, batch: Tensor, device: torch.device) -> dict:
    """Kernels of an iteration of fine-tuning, where they take longest, and how often it waits."""
    tuner = Finetuner(net, FinetuneSettings(), 1, 10)

    def iterate() -> None:
        tuner.step(batch, 1)

    iterate()
    with GpuWaits(device) as waits:
        iterate()
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        iterate()
        synchronize(device)
    kernels = 0
    durations = {}
    for event in profiler.key_averages():
        is_kernel = event.device_type == torch.autograd.DeviceType.CUDA
        if is_kernel:
            kernels += event.count
            durations[event.key] = event.self_device_time_total
        elif device.type == "cpu":
            durations[event.key] = event.self_cpu_time_total
    longest = sorted(durations, key=lambda name: durations[name], reverse=True)[:10]
    return {
        "iteration_seconds": median_seconds(iterate, device),
        "kernels": kernels or None,
        "waits": waits.count,
        "longest_microseconds": {name: durations[name] for name in longest},
    }


def table_of_recipes(results: list[dict]) -> str:
    """A row for each recipe."""
    rows = []
    for result in results:
        rows.append(
            [
                result["recipe"],
                f"{result['calibration_seconds']:.1f}",
                f"{result['finetuning_seconds']:.1f}",
                f"{result['seconds']:.1f}",
                result["promised_seconds"],
                f"{result['units']:.0f}",
                f"{result['peak_bytes'] / 1e9:.2f}",
                result.get("kernels") or "-",
                result.get("waits", "-"),
            ]
        )
    headers = ["recipe", "calibration s", "fine-tuning s", "all s", "meant s", "units"]
    headers += ["peak GB", "kernels of an iteration", "waits of an iteration"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


# Inference


def measure_inference(size: int, setting: Setting, device: torch.device, folder: Path) -> list:
    """Milliseconds of an image, one row for each way to run the network."""
    network = build(setting).to(device)
    image = torch.rand(1, 3, size, size, device=device)
    rows = []
    for dtype in (torch.float32, torch.float16):
        for layout in (torch.contiguous_format, torch.channels_last):
            copied = build(setting).to(device, dtype).to(memory_format=layout)
            taken = image.to(dtype).to(memory_format=layout)
            name = f"PyTorch, {str(dtype).removeprefix('torch.')}"
            if layout is torch.channels_last:
                name += ", channels-last"
            rows.append(_row(name, _pass(copied, taken), device))
    nets = {
        "integers": quantized(network, image),
        FOR_TENSORRT: quantized(network, image, "tensorrt"),
    }
    rows.append(_row("PyTorch, simulation of integers", _pass(nets["integers"], image), device))
    rows.extend(_rows_of_onnxruntime(network, nets, image, device, folder))
    return rows


def quantized(network: nn.Module, image: Tensor, engine: str | None = None) -> QuantizedNetwork:
    """A network at W8A8, calibrated on an image."""
    options = {"w_bits": 8, "a_bits": 8, "recipe": "static", "fully_quantized": True}
    return calibrate(quantize(network, image, engine=engine, **options), [image])


def _pass(network: nn.Module, image: Tensor) -> Run:
    @torch.no_grad()
    def run() -> None:
        network(image)

    return run


def _rows_of_onnxruntime(
    network: nn.Module,
    nets: dict[str, QuantizedNetwork],
    image: Tensor,
    device: torch.device,
    folder: Path,
) -> list:
    """The network in float32 and our graphs of integers, by each provider that is installed."""
    try:
        import onnxruntime
    except ImportError:
        return [{"name": "ONNX Runtime", "error": "isn't installed"}]

    on_cpu = image.cpu()
    files = {"float32": folder / "float.onnx"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(network.cpu(), (on_cpu,), files["float32"], dynamo=False)
    for kind, net in nets.items():
        files[kind] = folder / f"{kind.replace(' ', '_')}.onnx"
        save_onnx(net.cpu(), files[kind])
    rows = []
    for provider, provider_name in PROVIDERS.items():
        for kind, path in files.items():
            name = f"ONNX Runtime, {provider}, {kind}"
            if provider_name not in onnxruntime.get_available_providers():
                rows.append({"name": name, "error": "isn't installed"})
                continue
            try:
                session = onnxruntime.InferenceSession(path, providers=[provider_name])
                if session.get_providers()[0] != provider_name:
                    raise RuntimeError("its libraries can't be loaded")
                given = {session.get_inputs()[0].name: on_cpu.numpy()}
                rows.append(_row(name, lambda s=session, g=given: s.run(None, g), device))
            except Exception as error:  # a provider may not take a graph
                rows.append({"name": name, "error": str(error).strip().splitlines()[0][:80]})
    return rows


def _row(name: str, run: Run, device: torch.device) -> dict:
    return {"name": name, "milliseconds": 1000 * median_seconds(run, device)}


def table_of_inference(rows: list[dict]) -> str:
    """A row for each way to run the network."""
    cells = []
    for row in rows:
        time_or_reason = row.get("error")
        if "milliseconds" in row:
            time_or_reason = f"{row['milliseconds']:.2f}"
        cells.append([row["name"], time_or_reason])
    headers = ["inference", "ms"]
    return tabulate(cells, headers=headers, tablefmt="github", disable_numparse=True)


def read_arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script out")
    parser.add_argument("--recipes", nargs="+", default=list(PROMISED), choices=list(RECIPES))
    parser.add_argument("--images", type=int, default=80, help="calibration images")
    parser.add_argument("--patch", type=int, default=64, help="side of their patches")
    parser.add_argument("--depth", type=int, help="blocks of EDSR (default: 16)")
    parser.add_argument("--iterations", type=int, help="of fine-tuning (default: the recipe's)")
    parser.add_argument("--size", type=int, default=256, help="side of the image that is upscaled")
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write the results."""
    args = read_arguments()
    if args.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit("gpu.py: there is no CUDA device; --device cpu tries the script out")
    device = torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{card}, torch {torch.__version__}\n")
    recipes = []
    for recipe in args.recipes:
        setting = Setting(recipe=recipe, images=args.images, size=args.patch, depth=args.depth)
        recipes.append(measure_recipe(setting, device, args.iterations))
    print(f"{table_of_recipes(recipes)}\n")
    inference = measure_inference(args.size, Setting(depth=args.depth), device, args.out)
    print(table_of_inference(inference))
    figures = {"device": card, "torch": torch.__version__}
    figures |= {"recipes": recipes, "inference": inference}
    (args.out / "gpu.json").write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
