"""Files for engines: one table, `EXPORTS`.

An export takes a network whose arithmetic its engine has (`quantization.engines`), and writes the
file that the engine runs as integers. To add one, give it an entry; ``export --for`` takes it from
there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from adabm_basicsr.deployment.freeze import weighted_layers
from adabm_basicsr.deployment.load import NCNN_SUFFIX, ONNX_SUFFIX
from adabm_basicsr.deployment.runtimes import import_runtime
from adabm_basicsr.deployment.tuning import fastest_form
from adabm_basicsr.errors import ExportError
from adabm_basicsr.quantization.config import FLOAT_BITS
from adabm_basicsr.quantization.engines import CONCATENATIONS, DEFAULT_ENGINE, ENGINES
from adabm_basicsr.quantization.measures.cost import BITS_PER_BYTE
from adabm_basicsr.quantization.network import QuantizedNetwork

if TYPE_CHECKING:
    from adabm_basicsr.deployment.onnx.integers import Convolutions

# Traits that a network may have and an engine may lack, and what to say of them.
TRAITS = {
    "zero_points": "zero points",
    "channel_scales": "a scale for each channel of activations",
    "image_classes": "ranges that follow the image",
}
# Bits of weights whose products with activations of 8 bits add up in pairs in 16 bits.
PAIRED_BITS = 7


class Export(NamedTuple):
    """How files for an engine are written.

    Attributes:
        programs: Programs that run them.
        suffix: What their names end in.
        save: Writes a network to a path; returns lines on what runs how.
        next_step: What to do with the file.
        save_form: Writes a network in a form, a key of `deployment.onnx.fusion.FORMS`; None where
            files have one form alone.
        forms: Those that ``--tune`` tries, the usual one first.
    """

    programs: str
    suffix: str
    save: Callable[[QuantizedNetwork, Path], list[str]]
    next_step: str
    save_form: Callable[[QuantizedNetwork, Path, str], list[str]] | None = None
    forms: tuple[str, ...] = ()


def save_for(engine: str, net: QuantizedNetwork, path: Path, tune: bool = False) -> list[str]:
    """Write a calibrated network for an engine.

    Args:
        engine: A key of `EXPORTS`.
        net: The network.
        path: The file to write.
        tune: Whether to try the engine's forms on this machine and write the fastest.

    Returns:
        Lines on what runs as integers, what doesn't, and what to do with the file.

    Raises:
        AdaBMError: The network's arithmetic isn't the engine's, or the network can't be written.
    """
    export = EXPORTS[engine]
    if net.clips is not None and (engine != DEFAULT_ENGINE or tune):
        raise ExportError(
            f"--for {engine}{' --tune' if tune else ''}: the network takes clips; valid: "
            f"--for {DEFAULT_ENGINE} alone"
        )
    if tune and export.save_form is None:
        tuned = " or ".join(f"--for {name}" for name, other in EXPORTS.items() if other.forms)
        raise ExportError(f"--tune: files for {engine} have one form alone; valid: {tuned}")
    check_fits(engine, net)
    next_step = export.next_step.format(path=path)
    if not tune or export.save_form is None:
        return [*export.save(net, path), next_step]
    import_runtime("onnx")
    form, table = fastest_form(net, export.save_form, export.forms)
    return [*table, *export.save_form(net, path, form), next_step]


def programs() -> str:
    """The engines that files are written for, each with its programs."""
    return "; ".join(f"{engine} ({export.programs})" for engine, export in EXPORTS.items())


def check_fits(engine: str, net: QuantizedNetwork) -> None:
    """Reject a network that was calibrated for other integers than an engine has.

    Raises:
        ExportError: It was.
    """
    made_for = net.config.engine
    made = ENGINES[made_for]
    wanted = ENGINES[engine]
    lacking = []
    for trait, name in TRAITS.items():
        if getattr(made, trait) and not getattr(wanted, trait):
            lacking.append(name)
    if made.min_a_bits < wanted.min_a_bits:
        lacking.append(f"activations of fewer than {wanted.min_a_bits} bits")
    bits = f" and a_bits: {wanted.min_a_bits}" if wanted.min_a_bits > made.min_a_bits else ""
    if _widest_weight(net) > wanted.max_w_bits:
        lacking.append(f"weights of more than {wanted.max_w_bits} bits")
        bits += f" and w_bits: {wanted.max_w_bits}"
    if not lacking:
        return
    raise ExportError(
        f"--for {engine}: the network was quantized for engine: {made_for}, which may have "
        f"{', '.join(lacking)}; set network_g: engine: {engine}{bits}, and quantize it again"
    )


def _widest_weight(net: QuantizedNetwork) -> int:
    """Bits of the widest weight of integers; 0 where there is none."""
    return max((quantizer.bits for quantizer in net.weight_quantizers().values()), default=0)


def describe_full_precision(net: QuantizedNetwork, level: int | None = None) -> list[str]:
    """A line on images in full precision in a file of a network; none where it has no such images.

    Args:
        net: The network.
        level: The image class that the file is for; None where it is for all.
    """
    if net.full_precision_above is None:
        return []
    images = f"images of a complexity above {float(net.full_precision_above):.1f}"
    if level is not None:
        return [f"left out: the float network for {images}; they run as integers here"]
    values = 0
    for _, layer, _ in weighted_layers(net):
        values += layer.weight.numel()
    size = values * FLOAT_BITS / BITS_PER_BYTE / 1e6
    return [f"in full precision: {images}; float weights take {size:.3f} MB of the file"]


def _save_openvino(net: QuantizedNetwork, path: Path, form: str | None = None) -> list[str]:
    import_runtime("onnx")
    # Imports onnx, which not everyone has.
    from adabm_basicsr.deployment.onnx.export import save_onnx

    save_onnx(net, path, form=form)
    return describe_full_precision(net)


def _save_openvino_uint8(
    net: QuantizedNetwork, path: Path, form: str = CONCATENATIONS
) -> list[str]:
    import_runtime("onnx")
    from adabm_basicsr.deployment.onnx.engine_files import save_integers

    found = save_integers(net, path, form)
    of_integers = len(found.integers) + len(found.float_outputs)
    return [
        _as_integers(of_integers, found),
        *_in_float(found.floats),
        *_warn_of_pairs(net),
    ]


def _save_ncnn(net: QuantizedNetwork, path: Path) -> list[str]:
    import_runtime("onnx")
    from adabm_basicsr.deployment.ncnn.export import save_ncnn

    written = save_ncnn(net, path)
    return [f"as integers: {len(written.integers)} convolutions", *_in_float(written.floats)]


def _as_integers(count: int, found: Convolutions) -> str:
    """A line on how many of all convolutions run as integers."""
    total = sum(len(names) for names in found)
    return f"as integers: {count} of {total} convolutions"


def _in_float(names: Sequence[str]) -> list[str]:
    """A line that names the convolutions which run in float; none where there are none."""
    return [f"in float: {', '.join(names)}"] if names else []


def _save_onnxruntime(net: QuantizedNetwork, path: Path) -> list[str]:
    return [*_save_integers(net, path), *_warn_of_pairs(net)]


def _warn_of_pairs(net: QuantizedNetwork) -> list[str]:
    """A line on CPUs that add up pairs of products in 16 bits; none where these fit."""
    if _widest_weight(net) <= PAIRED_BITS:
        return []
    return [
        "only for CPUs with VNNI (since 2019) and ARM: others add up products of 8-bit weights "
        "in 16 bits, wrongly; engine: portable is right on all"
    ]


def _save_portable(net: QuantizedNetwork, path: Path) -> list[str]:
    lines = _save_integers(net, path)
    lines.append(
        "weights take 8 bits in the file and use 7 of them at most: so CPUs without VNNI add up "
        "their products rightly"
    )
    if net.size_multiple > 1:
        lines.append(
            f"not for OpenCV: the graph mirrors images up to multiples of {net.size_multiple} "
            "pixels, and OpenCV has no operators for that"
        )
    return lines


def _save_tensorrt(net: QuantizedNetwork, path: Path) -> list[str]:
    import_runtime("onnx")
    from adabm_basicsr.deployment.onnx.tensorrt import half_path, save_tensorrt

    found = save_tensorrt(net, path)
    of_integers = len(found.integers) + len(found.float_outputs)
    return [
        _as_integers(of_integers, found),
        *_in_float(found.floats),
        f"what isn't INT8 has 32 bits there, and 16 in the copy {half_path(path)}",
    ]


def _save_integers(net: QuantizedNetwork, path: Path) -> list[str]:
    import_runtime("onnx")
    from adabm_basicsr.deployment.onnx.engine_files import save_integers

    found = save_integers(net, path)
    lines = [_as_integers(len(found.integers), found)]
    if found.float_outputs:
        lines.append(
            "as integers in OpenVINO, in float in ONNX Runtime, which wants their outputs rounded: "
            + ", ".join(found.float_outputs)
        )
    return [*lines, *_in_float(found.floats)]


EXPORTS = {
    "openvino": Export(
        "adabm-basicsr upscale",
        ONNX_SUFFIX,
        _save_openvino,
        "run it: adabm-basicsr upscale -m {path} -i IMAGES -o FOLDER",
        _save_openvino,
        ("openvino", "openvino_unmoved", "any"),
    ),
    "openvino_uint8": Export(
        "OpenVINO in other programs, fast with concatenations",
        ONNX_SUFFIX,
        _save_openvino_uint8,
        "load {path} in OpenVINO: RGB in 0..1, float32",
        _save_openvino_uint8,
        (CONCATENATIONS, f"{CONCATENATIONS}_unmoved"),
    ),
    "onnxruntime": Export(
        "ONNX Runtime in other programs",
        ONNX_SUFFIX,
        _save_onnxruntime,
        "load {path} in ONNX Runtime: RGB in 0..1, float32",
    ),
    "tensorrt": Export(
        "TensorRT, on NVIDIA GPUs",
        ONNX_SUFFIX,
        _save_tensorrt,
        "build an engine of it where the GPU is: trtexec --onnx={path} --stronglyTyped",
    ),
    "portable": Export(
        "chaiNNer, vs-mlrt, OpenCV, and OpenVINO or ONNX Runtime on any CPU",
        ONNX_SUFFIX,
        _save_portable,
        "load {path} in chaiNNer, vs-mlrt, OpenCV, ONNX Runtime or OpenVINO: RGB in 0..1, float32",
    ),
    "ncnn": Export(
        "ncnn, also on phones",
        NCNN_SUFFIX,
        _save_ncnn,
        "load {path} and the .bin beside it in ncnn: RGB in 0..1 into blob data, out of output",
    ),
}
