"""Runs one network in one engine, in a process of its own that takes turns with others.

    python engine_process.py START FILE THREADS

The process compiles the network and then waits: each line that it reads is a request in JSON, with
the ``.npy`` of an image, how often to run the network on it, and where to write the result. Each is
answered by a line with the seconds of every run and the peak memory of the process. So several
engines are measured in turns, while each has threads and memory of its own. Only what an engine
needs is imported: torch is no part of the memory of ONNX Runtime.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import peak_bytes

# From an image, ``(1, 3, H, W)`` float32 in 0..1, to what a network makes of it.
Run = Callable[[np.ndarray], np.ndarray]


def _pytorch(path: Path, threads: int) -> Run:
    """A pickled module."""
    import torch
    from networks import make_example_project_importable

    import adabm_basicsr  # noqa: F401 - makes basicsr importable

    make_example_project_importable()
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    net = torch.load(path, weights_only=False)
    return lambda x: net(torch.from_numpy(x)).float().numpy()


def _pytorch_bfloat16(path: Path, threads: int) -> Run:
    """The same in bfloat16."""
    run = _pytorch(path, threads)
    import torch

    def run_rounded(x: np.ndarray) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return run(x)

    return run_rounded


def _torchao(path: Path, threads: int) -> Run:
    """An exported program that torchao quantized, compiled."""
    import torch
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401 - registers the operators

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    net = torch.compile(torch.export.load(path).module(), dynamic=True)
    return lambda x: net(torch.from_numpy(x)).float().numpy()


def _onnxruntime(path: Path, threads: int) -> Run:
    """An ONNX file as it is."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def _openvino(precision: str | None) -> Callable[[Path, int], Run]:
    """An ONNX file or a model of OpenVINO's own, compiled for the size of the images that come.

    That is how OpenVINO runs any network fastest. ``precision`` is what floats are computed in;
    None leaves that to OpenVINO.
    """

    def start(path: Path, threads: int) -> Run:
        import openvino

        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        if precision:
            options["INFERENCE_PRECISION_HINT"] = precision
        core = openvino.Core()
        network = core.read_model(path)
        compiled = {}

        def run(x: np.ndarray) -> np.ndarray:
            if x.shape not in compiled:
                compiled.clear()
                network.reshape(x.shape)
                compiled[x.shape] = core.compile_model(network, "CPU", options)
            return compiled[x.shape](x)[0]

        return run

    return start


def _our_class(module: str, name: str) -> Callable[[Path, int], Run]:
    """A file of ours in the class of the package that runs it."""

    def start(path: Path, threads: int) -> Run:
        import torch

        torch.set_num_threads(threads)
        found = importlib.import_module(f"adabm_basicsr.deployment.{module}")
        network = getattr(found, name)(path, threads=threads)
        return lambda x: network(torch.from_numpy(x)).numpy()

    return start


STARTS: dict[str, Callable[[Path, int], Run]] = {
    "PyTorch, float32": _pytorch,
    "PyTorch, bfloat16": _pytorch_bfloat16,
    "torch.compile": _torchao,
    "ONNX Runtime": _onnxruntime,
    "OpenVINO": _openvino(None),
    "OpenVINO, float32": _openvino("f32"),
    "OpenVINO, bfloat16": _openvino("bf16"),
    "OnnxNetwork": _our_class("onnx_network", "OnnxNetwork"),
    "NcnnNetwork": _our_class("ncnn_network", "NcnnNetwork"),
}


class EngineError(Exception):
    """An engine's process ended; the text is the last line that it wrote."""


class EngineProcess:
    """A network in an engine, in a process that runs until the end of a ``with`` block.

    Args:
        start: A key of `STARTS`.
        path: The network's file.
        threads: Of the engine.
    """

    def __init__(self, start: str, path: Path, threads: int) -> None:
        self.command = [sys.executable, __file__, start, str(path), str(threads)]
        self.peak = 0

    def __enter__(self) -> EngineProcess:
        self._folder = tempfile.TemporaryDirectory()
        self._errors = (Path(self._folder.name) / "errors.txt").open("w+")
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the end of its requests ends it
        self._errors.close()
        self._folder.cleanup()

    def seconds(self, image: np.ndarray, repeats: int) -> list[float]:
        """Times of ``repeats`` runs, after one that doesn't count.

        Raises:
            EngineError: The engine can't load the network or can't run it.
        """
        return self._request(image, 1 + repeats)["seconds"][1:]

    def output(self, image: np.ndarray) -> np.ndarray:
        """What the network makes of an image; errors as those of `seconds`."""
        self._request(image, 1)
        return np.load(self._path("output.npy"))

    def _request(self, image: np.ndarray, repeats: int) -> dict[str, Any]:
        np.save(self._path("image.npy"), image)
        request = {
            "image": str(self._path("image.npy")),
            "repeats": repeats,
            "output": str(self._path("output.npy")),
        }
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; reading says so
        answer = self._process.stdout.readline()
        if not answer:
            self._errors.seek(0)
            written = self._errors.read().strip().splitlines()
            raise EngineError(written[-1] if written else "it ended without a word")
        found = json.loads(answer)
        self.peak = found["peak"]
        return found

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / name


def serve(run: Run, requests: Any, answers: Any) -> None:
    """Do what each line of ``requests`` asks for, and answer with a line."""
    for line in requests:
        request = json.loads(line)
        image = np.load(request["image"])
        seconds = []
        for _ in range(request["repeats"]):
            start = time.perf_counter()
            output = run(image)
            seconds.append(time.perf_counter() - start)
        np.save(request["output"], output)
        answers.write(json.dumps({"seconds": seconds, "peak": peak_bytes()}) + "\n")
        answers.flush()


def main() -> None:
    """Load the network that the command line names, and serve."""
    start, path, threads = sys.argv[1:]
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(STARTS[start](Path(path), int(threads)), sys.stdin, answers)


if __name__ == "__main__":
    main()
