"""Tools that a user would quantize with today, each at its defaults and at its best.

"At its best" are the settings, of those in `ONNXRUNTIME_BEST` and `NNCF_BEST`, whose images are
closest to those of the float network on `SCORED` of the images that it was calibrated on. Which
they are stands in a ``.json`` beside the file.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import numpy as np
import torch
from engine_process import STARTS
from image_sets import images_of
from networks import calibration_folder

from adabm_basicsr.files import atomic_path
from adabm_basicsr.quantization.measures.psnr import pixel_psnr

# All images that there are for calibration. Of whole ones a tool's histograms take half an hour for
# a network; ours sees less of each, 64x64.
IMAGES = 80
SIDE = 96
SCORED = 8
# Images whose values are in memory at a time while histograms are made.
STRIDE = 4
ONNXRUNTIME_BEST = ("MinMax", "Percentile", "Entropy")
# `mixed` gives activations a zero point, which values behind other functions than ReLU need; full
# bias correction goes layer by layer, in place of one pass. All images are taken for statistics.
NNCF_BEST = {
    "mixed": {"preset": "mixed"},
    "mixed, full bias correction": {"preset": "mixed", "fast_bias_correction": False},
    "performance, full bias correction": {"preset": "performance", "fast_bias_correction": False},
}


def calibration_arrays() -> list[np.ndarray]:
    """The middles of LR images, ``(1, 3, SIDE, SIDE)`` in 0..1.

    All have one size, as ONNX Runtime's histograms need it.
    """
    middles = []
    for image in itertools.islice(images_of(calibration_folder()), IMAGES):
        top = (image.shape[2] - SIDE) // 2
        left = (image.shape[3] - SIDE) // 2
        middles.append(image.numpy()[:, :, top : top + SIDE, left : left + SIDE])
    return middles


def onnxruntime_defaults(source: Path, path: Path) -> None:
    """ONNX Runtime's static quantizer: signed activations, the graph as it is.

    Args:
        source: The network in float, an ONNX file.
        path: The file to write.
    """
    from onnxruntime.quantization import quantize_static

    with _whole(path) as temporary:
        quantize_static(source, temporary, _reader(calibration_arrays()), per_channel=True)


def onnxruntime_best(source: Path, path: Path) -> None:
    """The same with a pre-processed graph and unsigned activations, at its best way to calibrate.

    Arguments as those of `onnxruntime_defaults`.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        # Its symbolic shapes fail where a network enlarges its input, and aren't needed.
        quant_pre_process(source, prepared, skip_symbolic_shape=True)

        def make(name: str, candidate: Path) -> None:
            quantize_static(
                prepared,
                candidate,
                _reader(calibration_arrays()),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                calibrate_method=CalibrationMethod[name],
                extra_options={"CalibStridedMinMax": STRIDE},
            )

        _keep_best(list(ONNXRUNTIME_BEST), make, source, path)


def nncf_defaults(source: Path, path: Path) -> None:
    """NNCF's post-training quantization as a call without options does it.

    Args:
        source: The network in float, an ONNX file.
        path: The ``.xml`` to write; a ``.bin`` stands beside it.
    """
    with _whole(path) as temporary:
        _quantize_by_nncf(source, temporary)


def nncf_best(source: Path, path: Path) -> None:
    """The same at its best settings; arguments as those of `nncf_defaults`."""

    def make(name: str, candidate: Path) -> None:
        import nncf

        options = dict(NNCF_BEST[name])
        options["preset"] = nncf.QuantizationPreset(options["preset"])
        _quantize_by_nncf(source, candidate, **options)

    _keep_best(list(NNCF_BEST), make, source, path)


def _quantize_by_nncf(source: Path, path: Path, **options: object) -> None:
    import nncf
    import openvino

    images = calibration_arrays()
    # Not read_model: NNCF corrects no biases in what that gives, as it doesn't find them.
    model = openvino.convert_model(source)
    quantized = nncf.quantize(model, nncf.Dataset(images), subset_size=len(images), **options)
    openvino.save_model(quantized, path, compress_to_fp16=False)


def torchao_defaults(network: torch.nn.Module, path: Path) -> None:
    """Torchao's post-training quantization for x86 CPUs; writes an exported program."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    side = torch.export.Dim.AUTO
    example = (torch.rand(1, 3, 64, 64),)
    shapes = ({2: side, 3: side},)
    quantizer = x86.X86InductorQuantizer()
    quantizer = quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    exported = torch.export.export(network, example, dynamic_shapes=shapes)
    with torch.no_grad():
        observed = prepare_pt2e(exported.module(), quantizer)
        for image in calibration_arrays():
            observed(torch.from_numpy(image))
        quantized = torch.export.export(convert_pt2e(observed), example, dynamic_shapes=shapes)
    with _whole(path) as temporary:
        torch.export.save(quantized, temporary)


def choice_path(path: Path) -> Path:
    """Where it stands which settings were best for the file ``path``."""
    return path.with_suffix(".json")


def _keep_best(
    names: list[str], make: Callable[[str, Path], None], source: Path, path: Path
) -> None:
    """Make a file of each name, and keep the one that is closest to the float network.

    Args:
        names: Of the settings.
        make: Writes the file of a name to a path.
        source: The network in float, an ONNX file.
        path: The file to write.
    """
    images = calibration_arrays()[:SCORED]
    start = STARTS["OpenVINO" if path.suffix == ".xml" else "ONNX Runtime"]
    reference = STARTS["ONNX Runtime"](source, 0)
    expected = [torch.from_numpy(reference(image)) for image in images]
    with TemporaryDirectory() as folder:
        candidates = {}
        scores = {}
        for index, name in enumerate(names):
            candidates[name] = Path(folder) / f"{index}{path.suffix}"
            make(name, candidates[name])
            run = start(candidates[name], 0)
            found = []
            for image, output in zip(images, expected, strict=True):
                found.append(pixel_psnr(torch.from_numpy(run(image)), output))
            scores[name] = mean(found)
        best = max(names, key=lambda name: scores[name])
        _move(candidates[best], path)
    choice_path(path).write_text(json.dumps({"chosen": best, "self-PSNR": scores}, indent=1))


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Give a path to write a model to, which is moved to ``path`` once it is whole."""
    with TemporaryDirectory() as folder:
        temporary = Path(folder) / path.name
        yield temporary
        _move(temporary, path)


def _move(source: Path, path: Path) -> None:
    """Move a model to where it is kept, with the weights that OpenVINO has beside it."""
    if path.suffix == ".xml":
        _move(source.with_suffix(".bin"), path.with_suffix(".bin"))
    with atomic_path(path) as temporary:
        temporary.write_bytes(source.read_bytes())


def _reader(images: list[np.ndarray]) -> object:
    """The images as ONNX Runtime's quantizer asks for them, some at a time or all."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(images)

        def __len__(self) -> int:
            return len(images)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.rest = iter(images[start_index:end_index])

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.rest, None)
            return None if image is None else {"image": image}

    return Reader()
