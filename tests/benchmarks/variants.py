"""What is compared in each engine: the float network, other tools' files, and ours.

Whatever `EXPORTS` writes is one of ours by itself: ``.onnx`` files run in ONNX Runtime, but for
those of ``openvino`` and ``openvino_uint8``, and ``.param`` files in ncnn.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx
import peers
import torch
import yaml
from integer_share import (
    Layer,
    integer_share,
    ncnn_file_layers,
    onnxruntime_file_layers,
    openvino_file_layers,
    share_of,
)
from machine import describe_cpu
from networks import (
    NETWORKS,
    arguments,
    make_example_project_importable,
    option_file,
    parse_bits,
    training_environment,
    weights_path,
)
from results import SCOPES

from adabm_basicsr import load_checkpoint, load_network, save_onnx
from adabm_basicsr.deployment.engines import EXPORTS, save_for
from adabm_basicsr.deployment.load import NCNN_SUFFIX
from adabm_basicsr.deployment.ncnn.export import write_graph
from adabm_basicsr.files import atomic_path
from adabm_basicsr.quantization.engines import ENGINES
from adabm_basicsr.quantization.network import QuantizedNetwork

# The image class whose graph is run where the choice of a class is left out.
MIDDLE = 1
CALIBRATION_IMAGES = 80
LQ_SIZE = 64
IN_HOUSE = ["inhouse.archs"]
# ncnn has no Gelu and the like in older opsets; this is the one that our own files are traced in.
OPSET = 20
# Programs that run files, in the order of the table. torchao takes minutes to start.
PROGRAMS = ("pytorch", "openvino", "onnxruntime", "ncnn")
ALL_PROGRAMS = (*PROGRAMS, "torchao")


@dataclass(frozen=True)
class Variant:
    """One of the ways of running a network that are compared.

    Attributes:
        name: What the table calls it.
        start: How it is run, a key of `engine_process.STARTS`.
        file: Name of its file in the folder of its network.
        make: Writes that file, from the name of the network.
        role: "float" is what the others of the program are compared with, "peer" too; "ours", or
            "other".
        share: Share of the MACs that run as integers, from the file's path; None if the program
            doesn't say.
    """

    name: str
    start: str
    file: str
    make: Callable[[str, Path], None]
    role: str = "other"
    share: Callable[[Path], float] | None = None


@dataclass(frozen=True)
class OurVariant(Variant):
    """One of ours.

    Attributes:
        checkpoint: Name of the checkpoint that its file is made of.
        adaptive: Whether each image chooses its class; otherwise all are of the middle one.
    """

    checkpoint: str = ""
    adaptive: bool = False


def variants(program: str, bits: list[str], all_peers: bool) -> list[Variant]:
    """What is compared in a program.

    Args:
        program: One of `ALL_PROGRAMS`.
        bits: Of weights and activations, such as "W8A8"; engines that lack them leave them out.
        all_peers: Whether other tools are compared at their defaults too.
    """
    found = BASELINES[program](all_peers)
    for engine in EXPORTS:
        if program_of(engine) == program:
            for name in dict.fromkeys(bits_of_engine(engine, wanted) for wanted in bits):
                if name is not None:
                    found += ours(engine, name)
    return found


def program_of(engine: str) -> str:
    """The program that runs the files for an engine here."""
    if engine.startswith("openvino"):
        return "openvino"
    if EXPORTS[engine].suffix == NCNN_SUFFIX:
        return "ncnn"
    return "onnxruntime"


def bits_of_engine(engine: str, wanted: str) -> str | None:
    """The bits that an engine takes for those that are wanted: fewer of weights, or None."""
    w_bits, a_bits = parse_bits(wanted)
    if a_bits < ENGINES[engine].min_a_bits:
        return None
    return f"W{min(w_bits, ENGINES[engine].max_w_bits)}A{a_bits}"


def _pytorch(all_peers: bool) -> list[Variant]:
    found = [Variant("float32", "PyTorch, float32", "float.pt", save_module, "float")]
    if has_bfloat16():
        found.append(Variant("bfloat16", "PyTorch, bfloat16", "float.pt", save_module))
    return found


def _openvino(all_peers: bool) -> list[Variant]:
    of_float = partial(_share, partial(openvino_file_layers, precision="f32"))
    of_peer = partial(_share, openvino_file_layers)
    found = [
        Variant("float32", "OpenVINO, float32", "float.onnx", save_float, "float", of_float),
        Variant("NNCF", "OpenVINO", "nncf_best.xml", _of_float(peers.nncf_best), "peer", of_peer),
    ]
    if has_bfloat16():
        found.insert(1, Variant("bfloat16", "OpenVINO, bfloat16", "float.onnx", save_float))
    if all_peers:
        make = _of_float(peers.nncf_defaults)
        name = "NNCF at its defaults"
        found.append(Variant(name, "OpenVINO", "nncf_defaults.xml", make, "other", of_peer))
    return found


def _onnxruntime(all_peers: bool) -> list[Variant]:
    share = partial(_share, onnxruntime_file_layers)
    start = "ONNX Runtime"
    make = _of_float(peers.onnxruntime_best)
    found = [
        Variant("float32", start, "float.onnx", save_float, "float", share),
        Variant("quantize_static", start, "onnxruntime_best.onnx", make, "peer", share),
    ]
    if all_peers:
        make = _of_float(peers.onnxruntime_defaults)
        name = "quantize_static at its defaults"
        found.append(Variant(name, start, "onnxruntime_defaults.onnx", make, "other", share))
    return found


def _ncnn(all_peers: bool) -> list[Variant]:
    share = partial(_share, ncnn_file_layers)
    return [Variant("float32", "NcnnNetwork", "float.param", save_float_ncnn, "float", share)]


def _torchao(all_peers: bool) -> list[Variant]:
    def make(kind: str, path: Path) -> None:
        peers.torchao_defaults(base_network(kind), path)

    return [
        Variant("float32", "PyTorch, float32", "float.pt", save_module, "float"),
        Variant("torchao, compiled", "torch.compile", "torchao.pt2", make, "peer"),
    ]


BASELINES: dict[str, Callable[[bool], list[Variant]]] = {
    "pytorch": _pytorch,
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
    "ncnn": _ncnn,
    "torchao": _torchao,
}


def ours(engine: str, bits: str) -> list[Variant]:
    """Our files for an engine: one, and of ``openvino`` that of one image class too."""
    checkpoint = f"{engine}_{bits}.pth"
    export = partial(_export, engine, checkpoint)
    file = f"{engine}_{bits}{EXPORTS[engine].suffix}"
    name = f"ours, {engine} {bits}"
    if engine != "openvino":
        start = "NcnnNetwork"
        layers: Callable[[Path], list[Layer]] = ncnn_file_layers
        if program_of(engine) == "onnxruntime":
            start = "ONNX Runtime"
            layers = onnxruntime_file_layers
        elif program_of(engine) == "openvino":
            start = "OpenVINO, float32"
            layers = partial(openvino_file_layers, precision="f32")
        share = partial(_share, layers)
        return [OurVariant(name, start, file, export, "ours", share, checkpoint)]

    def export_one(kind: str, path: Path) -> None:
        save_onnx(load_ours(kind, path.parent / checkpoint), path, level=MIDDLE)

    one = f"openvino_{bits}_one_level.onnx"
    of_adaptive = partial(integer_share, runtime="openvino")
    of_one = partial(_share, partial(openvino_file_layers, precision="f32"))
    start = "OpenVINO, float32"
    return [
        OurVariant(name, "OnnxNetwork", file, export, "ours", of_adaptive, checkpoint, True),
        OurVariant(f"{name}, one image class", start, one, export_one, "ours", of_one, checkpoint),
    ]


def _share(layers: Callable[[Path], list[Layer]], path: Path) -> float:
    return share_of(layers(path))


def has_bfloat16() -> bool:
    """Whether the CPU computes in bfloat16; others emulate it, in minutes."""
    return "bf16" in describe_cpu()["flags"]


def base_network(kind: str) -> torch.nn.Module:
    """The network before quantization."""
    make_example_project_importable()
    import inhouse.archs  # noqa: F401 - registers IMDN
    from basicsr.archs import build_network

    net = build_network(arguments(kind))
    load_checkpoint(net, weights_path(kind))
    return net.eval().requires_grad_(False)


def save_module(kind: str, path: Path) -> None:
    """The network as it is."""
    with atomic_path(path) as temporary:
        torch.save(base_network(kind), temporary)


def save_float(kind: str, path: Path) -> None:
    """The network in float as ONNX."""
    with atomic_path(path) as temporary:
        onnx.save(_float_graph(kind), temporary)


def save_float_ncnn(kind: str, path: Path) -> None:
    """The network in float for ncnn."""
    write_graph(_float_graph(kind), path, arguments(kind).get("num_in_ch", 3))


def _float_graph(kind: str) -> onnx.ModelProto:
    any_size = {
        "image": {2: "height", 3: "width"},
        "output": {2: "out_height", 3: "out_width"},
    }
    buffer = io.BytesIO()
    torch.onnx.export(
        base_network(kind),
        (torch.rand(1, 3, 64, 64),),
        buffer,
        dynamo=False,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["output"],
        dynamic_axes=any_size,
    )
    return onnx.load_from_string(buffer.getvalue())


def _of_float(quantize: Callable[[Path, Path], None]) -> Callable[[str, Path], None]:
    """What makes a file from the float network's ONNX file, as another tool does."""

    def make(kind: str, path: Path) -> None:
        source = path.with_name("float.onnx")
        if not source.exists():
            save_float(kind, source)
        quantize(source, path)

    return make


def _export(engine: str, checkpoint: str, kind: str, path: Path) -> None:
    """Write our file for an engine."""
    save_for(engine, load_ours(kind, path.parent / checkpoint), path)


def load_ours(kind: str, checkpoint: Path) -> QuantizedNetwork:
    """Our quantized network, calibrated unless that was done before."""
    if not checkpoint.exists():
        calibrate(kind, checkpoint)
    make_example_project_importable()
    net = load_network(checkpoint, IN_HOUSE)
    assert isinstance(net, QuantizedNetwork)
    return net


def calibrate(kind: str, checkpoint: Path) -> None:
    """Quantize a network through the command that users call.

    Args:
        kind: Architecture, a key of `NETWORKS` or `SMALL_NETWORKS`; the former are fully quantized,
            the latter in the body.
        checkpoint: The file to write, named ``ENGINE_BITS.pth``.
    """
    engine, _, bits = checkpoint.stem.rpartition("_")
    w_bits, a_bits = parse_bits(bits)
    opt = option_file(
        checkpoint.stem,
        kind,
        seed=1,
        images=CALIBRATION_IMAGES,
        lq_size=LQ_SIZE,
        iterations={},
        w_bits=w_bits,
        a_bits=a_bits,
        recipe="fast",
        engine=engine,
        **SCOPES["full" if kind in NETWORKS else "body"],
    )
    folder = checkpoint.parent
    options = folder / f"{checkpoint.stem}.yml"
    options.write_text(yaml.safe_dump(opt, sort_keys=False))
    subprocess.run(
        [sys.executable, "-m", "adabm_basicsr.train", "-opt", options.name],
        check=True,
        cwd=folder,
        env=training_environment(),
        stdout=subprocess.DEVNULL,
    )
    models = folder / "experiments" / checkpoint.stem / "models"
    with atomic_path(checkpoint) as temporary:
        shutil.copyfile(models / "net_g_latest.pth", temporary)
