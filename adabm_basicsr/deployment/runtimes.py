"""Programs that run ONNX graphs: one table, `RUNTIMES`.

A runtime compiles the bytes of a graph into a function from an image to an image, or from several
values to several. To add one, write
its compiling function and give it an entry; `OnnxNetwork`, ``upscale`` and the tests of agreement
take it from there. It is imported within the function, by `import_runtime`, as all are optional.
"""

from __future__ import annotations

import functools
import importlib
import os
import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from adabm_basicsr.errors import ExportError, first_line

if TYPE_CHECKING:
    import openvino

DEFAULT_RUNTIME = "openvino"
OPENVINO_PLACES = ("Exception from",)  # begins the lines that name a place in OpenVINO's own code
# Rewrites of ONNX Runtime's own that are switched off. The first rounds biases to integers, which
# lets no more layers run as integers in these graphs and costs accuracy; the other moves the scales
# of sums of integers to the weights.
KEPT_OUT = ["WeightBiasQuantization", "ConvMulFusion"]
X86 = ("x86_64", "amd64", "i386", "i686")
# In oneDNN's names, what `ONEDNN_MAX_CPU_ISA` may limit OpenVINO's kernels to that has no VNNI.
WITHOUT_VNNI = ("SSE41", "AVX", "AVX2", "AVX512_CORE")

# What to install for a package, where it doesn't do alone: in the clone, with what export takes.
PACKAGES = {"ncnn": '".[ncnn]"'}

Run = Callable[[np.ndarray], np.ndarray]


class Compiled(NamedTuple):
    """A graph in a runtime.

    Attributes:
        run_all: Maps the graph's inputs by name, float32, to its outputs in their order.
        release: Gives back the memory of the latest run, if the runtime can.
    """

    run_all: Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]
    release: Callable[[], None]

    def run(self, image: np.ndarray) -> np.ndarray:
        """The first output for an image, ``(1, C, H, W)`` in 0..1, float32."""
        return self.run_all({"image": image})[0]


class Runtime(NamedTuple):
    """A program that runs ONNX graphs.

    Attributes:
        compile: Maps a serialized graph and a number of threads, 0 for its own choice, to a
            `Compiled`. It raises `ExportError` if it can't.
        form: Which form of a graph it runs best, a key of `deployment.onnx.fusion.FORMS`.
    """

    compile: Callable[[bytes, int], Compiled]
    form: str


@functools.cache
def openvino_core() -> openvino.Core:
    """OpenVINO's core, the only one of this process.

    Each core gives its thread another stack for signals, and frees that with itself: if another
    thread does so, such as one in which the garbage collector happens to run, the next signal ends
    the process.
    """
    return import_runtime("openvino").Core()


def _compile_openvino(model: bytes, threads: int) -> Compiled:
    core = openvino_core()
    options = {
        # What isn't quantized keeps its precision; CPUs with BF16 units would round it.
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    try:
        compiled = core.compile_model(core.read_model(model), "CPU", options)
    except Exception as error:
        reason = first_line(error, OPENVINO_PLACES)
        raise ExportError(f"OpenVINO can't compile the graph: {reason}") from error

    # All calls of a compiled graph share one request, and with it the memory of inputs and outputs:
    # a second thread would get the first one's picture.
    lock = threading.Lock()

    def run_all(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        try:
            with lock:
                outputs = compiled(inputs, share_inputs=True, share_outputs=False)
        except Exception as error:
            shape = inputs["image"].shape
            reason = first_line(error, OPENVINO_PLACES)
            raise ExportError(f"OpenVINO can't run the graph on {shape}: {reason}") from error
        return [outputs[place] for place in range(len(outputs))]

    def release() -> None:
        with lock:
            compiled.release_memory()

    return Compiled(run_all, release)


def _compile_onnxruntime(model: bytes, threads: int) -> Compiled:
    onnxruntime = import_runtime("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # It would keep memory for each size of tile, a third more in all.
    options.enable_mem_pattern = False
    try:
        session = onnxruntime.InferenceSession(
            model,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=KEPT_OUT,
        )
    except Exception as error:  # its exceptions have no common base
        raise ExportError(f"ONNX Runtime can't run the graph: {first_line(error)}") from error

    def run_all(inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        try:
            return session.run(None, inputs)
        except Exception as error:
            shape = inputs["image"].shape
            raise ExportError(
                f"ONNX Runtime can't run the graph on {shape}: {first_line(error)}"
            ) from error

    return Compiled(run_all, release_nothing)


def release_nothing() -> None:
    """For what has no memory to give back."""


RUNTIMES: dict[str, Runtime] = {
    "openvino": Runtime(_compile_openvino, form="openvino"),
    "onnxruntime": Runtime(_compile_onnxruntime, form="onnxruntime"),
}


def import_runtime(name: str) -> ModuleType:
    """Import an optional package.

    Raises:
        ExportError: It isn't installed; the message says how to do that.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        packages = PACKAGES.get(name, name)
        raise ExportError(f"{name} is not installed: pip install {packages}") from error


def has_exact_int8() -> bool:
    """Whether the CPU adds up products of 8-bit numbers in 32 bits.

    x86 without VNNI saturates pairs of them at 16 bits; see `avoid_overflow`.
    """
    if platform.machine().lower() not in X86:
        return True
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in WITHOUT_VNNI:
        return False
    read_capabilities = getattr(torch.cpu, "get_capabilities", None)
    if read_capabilities is None:
        return False
    capabilities = read_capabilities()
    return bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"))
