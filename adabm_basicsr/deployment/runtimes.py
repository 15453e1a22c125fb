"""Runs exported graphs in OpenVINO or ONNX Runtime, each image at its own level.

A graph is compiled once for each level that occurs: with the level as a constant everything folds, which is what the
runtimes need to run integers. A small graph of its own chooses the level.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from adabm_basicsr.errors import AdaBMError, did_you_mean, first_line, not_found
from adabm_basicsr.quantization.checkpoint import DESCRIPTION_KEY
from adabm_basicsr.quantization.checks import check_images
from adabm_basicsr.quantization.structure.sizes import run_padded

DEFAULT_RUNTIME = "openvino"
OPENVINO_PLACES = ("Exception from",)  # begins the lines that name a place in OpenVINO's own code
# Of ONNX Runtime's: the first rounds biases to integers, which lets no more layers run as integers in these graphs and
# costs accuracy, the other moves the scales of sums of integers to the weights.
KEPT_OUT = ["WeightBiasQuantization", "ConvMulFusion"]
Run = Callable[[np.ndarray], np.ndarray]


class Compiled(NamedTuple):
    """A graph in a runtime.

    Attributes:
        run: Maps ``(B, C, H, W)`` in 0..1 to the graph's output, float32.
        release: Gives back the memory of the latest run, if the runtime can.
    """

    run: Run
    release: Callable[[], None]


class OnnxNetwork:
    """A quantized network in a runtime; call it like the network itself.

    Args:
        path: A file that `save_onnx` wrote, for all image levels.
        runtime: A key of `RUNTIMES`.
        threads: Of the runtime; 0 leaves it to the runtime.

    Attributes:
        description: What the file says of the network and its quantization.
        in_channels: Channels of the images that the network takes.
        size_multiple: Images are mirrored up to multiples of this many pixels.

    Raises:
        AdaBMError: The file is missing, corrupt, not ours or of another version; the runtime is unknown, not installed
            or can't compile the graph; or the file is for one level alone.
    """

    def __init__(
        self, path: str | os.PathLike, runtime: str = DEFAULT_RUNTIME, threads: int = 0
    ) -> None:
        if runtime not in RUNTIMES:
            raise AdaBMError(f"runtime: {runtime!r} is unknown; {did_you_mean(runtime, RUNTIMES)}")
        self.path, self.runtime, self.threads = path, runtime, threads
        self._model, self.description = read_onnx(path)
        self.in_channels = self._model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
        self.size_multiple = self.description["size_multiple"]
        self._graphs: dict[int | None, Compiled] = {}
        self._latest: int | None = None

    def level(self, image: Tensor) -> int:
        """Which of the image levels 0, 1, 2 the complexity of ``image``, ``(1, C, H, W)``, chooses."""
        return int(self._graph_of(None).run(image.numpy()))

    def compiled(self, level: int) -> Run:
        """The network at one image level: ``(B, C, H, W)`` in 0..1 to ``(B, C, sH, sW)``, float32."""
        graph = self._graph_of(level)
        if self._latest not in (None, level):
            self._graphs[
                self._latest
            ].release()  # together, the three levels would take three times the memory
        self._latest = level
        return graph.run

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Super-resolve ``image``, ``(B, C, H, W)`` in 0..1, each sample at its own bits.

        Raises:
            AdaBMError: The image is of another kind or shape.
        """
        check_images(image, self.in_channels)
        image = image.float().cpu()
        levels = [self.level(sample) for sample in image.split(1)]
        if len(set(levels)) == 1:
            return self.at_level(image, levels[0])
        outputs: list[Tensor | None] = [None] * len(levels)
        for level in sorted(set(levels)):
            chosen = [index for index, found in enumerate(levels) if found == level]
            for index, output in zip(chosen, self.at_level(image[chosen], level)):
                outputs[index] = output
        return torch.stack(outputs)

    def at_level(self, image: Tensor, level: int) -> Tensor:
        """Super-resolve ``image``, ``(B, C, H, W)`` in 0..1 and float32, at a given image level."""
        run = self.compiled(level)
        return run_padded(
            lambda x: torch.from_numpy(run(x.contiguous().numpy())), image, self.size_multiple
        )

    def graph_at(self, level: int):
        """The graph of one image level as the runtime is given it, an ``onnx.ModelProto``."""
        from adabm_basicsr.deployment.onnx.fusion import fuse
        from adabm_basicsr.deployment.onnx.level import at_level, avoid_overflow, take_batches

        model = take_batches(fuse(at_level(self._model, level), self.runtime))
        return model if has_exact_int8() else avoid_overflow(model)

    def _graph_of(self, level: int | None) -> Compiled:
        if level not in self._graphs:
            self._graphs[level] = (
                self._chooser() if level is None else self._compile(self.graph_at(level))
            )
        return self._graphs[level]

    def _chooser(self) -> Compiled:
        from adabm_basicsr.deployment.onnx.level import MIDDLE, chooser, is_adaptive

        if not is_adaptive(self._model):
            return Compiled(lambda image: np.array(MIDDLE), _nothing)
        return self._compile(chooser(self._model))

    def _compile(self, model) -> Compiled:
        return RUNTIMES[self.runtime](model.SerializeToString(), self.threads)


def read_onnx(path: str | os.PathLike):
    """Graph, an ``onnx.ModelProto``, and description of an exported file.

    Raises:
        AdaBMError: The file is missing, corrupt, not ours, of another version, or for one level alone.
    """
    onnx = import_runtime("onnx")
    from adabm_basicsr.deployment.onnx.export import FORMAT
    from adabm_basicsr.deployment.onnx.level import LEVEL
    from adabm_basicsr.deployment.onnx.seal import is_whole

    if not os.path.isfile(path):
        raise not_found("ONNX file", path)
    try:
        content = Path(path).read_bytes()
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model)
        described = {entry.key: entry.value for entry in model.metadata_props}
        description = json.loads(described.get(DESCRIPTION_KEY, "null"))
    except (
        Exception
    ) as error:  # protobuf's own, the checker's, json's: which one depends on the damage
        raise AdaBMError(
            f"ONNX file {path} cannot be read (truncated or corrupt): {first_line(error)}"
        ) from error
    if not isinstance(description, dict):
        raise AdaBMError(f"{path} was not written by adabm-basicsr: its description is missing")
    if description.get("format") != FORMAT:
        raise AdaBMError(
            f"ONNX file {path} has format {description.get('format')!r}; this version reads {FORMAT}"
        )
    if LEVEL not in (output.name for output in model.graph.output):
        raise AdaBMError(
            f"ONNX file {path} is for one image level alone; export it without --level"
        )
    if not is_whole(content):
        raise AdaBMError(
            f"ONNX file {path} is damaged, or was changed after the export: its checksum is wrong"
        )
    return model, description


def has_exact_int8() -> bool:
    """Whether the CPU adds up products of 8-bit numbers in 32 bits; x86 without VNNI saturates pairs at 16 bits."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686"):
        return True
    told = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told.get("avx512_vnni") or told.get("avx_vnni"))


@functools.cache
def openvino_core():
    """OpenVINO's core, the only one of this process.

    Each core gives its thread another stack for signals, and frees that with itself: if another thread does so, such as
    one in which the garbage collector happens to run, the next signal ends the process.
    """
    return import_runtime("openvino").Core()


def _openvino(model: bytes, threads: int) -> Compiled:
    core = openvino_core()
    # What isn't quantized keeps its precision; CPUs with BF16 units would round it.
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    try:
        compiled = core.compile_model(core.read_model(model), "CPU", options)
    except Exception as error:
        raise AdaBMError(
            f"OpenVINO can't compile the graph: {first_line(error, OPENVINO_PLACES)}"
        ) from error

    def run(image: np.ndarray) -> np.ndarray:
        try:
            return compiled(image, share_inputs=True, share_outputs=False)[0]
        except Exception as error:
            reason = first_line(error, OPENVINO_PLACES)
            raise AdaBMError(f"OpenVINO can't run the graph on {image.shape}: {reason}") from error

    return Compiled(run, compiled.release_memory)


def _onnxruntime(model: bytes, threads: int) -> Compiled:
    onnxruntime = import_runtime("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # it keeps memory for each size of tile, a third more in all
    providers = ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(
            model, options, providers=providers, disabled_optimizers=KEPT_OUT
        )
    except Exception as error:  # its exceptions have no common base
        raise AdaBMError(f"ONNX Runtime can't run the graph: {first_line(error)}") from error

    def run(image: np.ndarray) -> np.ndarray:
        try:
            return session.run(None, {"image": image})[0]
        except Exception as error:
            raise AdaBMError(
                f"ONNX Runtime can't run the graph on {image.shape}: {first_line(error)}"
            ) from error

    return Compiled(run, _nothing)


def _nothing() -> None:
    """Release no memory."""


RUNTIMES: dict[str, Callable[[bytes, int], Compiled]] = {
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
}


def import_runtime(name: str):
    """Import an optional package, or raise `AdaBMError` that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise AdaBMError(f"{name} is not installed: pip install {name}") from error
