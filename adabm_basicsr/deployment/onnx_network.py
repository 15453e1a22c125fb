"""``OnnxNetwork``: an exported graph in a runtime, each image at its own class.

A graph is compiled once for each image class that occurs: with the class as a constant everything
folds, which is what runtimes need to run integers. A small graph of its own chooses the class.
"""

from __future__ import annotations

import os
import reprlib
import threading
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from adabm_basicsr.deployment.runtimes import (
    DEFAULT_RUNTIME,
    RUNTIMES,
    Compiled,
    Run,
    has_exact_int8,
    import_runtime,
    release_nothing,
)
from adabm_basicsr.errors import CheckpointError, OptionError, did_you_mean, first_line
from adabm_basicsr.quantization.checks import check_images
from adabm_basicsr.quantization.structure.clips import Clips
from adabm_basicsr.quantization.structure.sizes import run_one_by_one

if TYPE_CHECKING:
    import onnx


class OnnxNetwork:
    """A quantized network in a runtime; call it like the network itself.

    Several threads may call one. In OpenVINO they take turns, as calls share their memory; a
    network of its own for each thread runs side by side.

    Args:
        path: An ONNX file that this package wrote.
        runtime: A key of `RUNTIMES`.
        threads: Of the runtime; 0 leaves it to the runtime.

    Attributes:
        description: What the file says of the network and its quantization.
        in_channels: Channels of the images that the network takes.
        clips: None, as it takes images.
        size_multiple: Images are mirrored up to multiples of this many pixels.
        only_level: The image class that the file is for alone; None where each image has its own.

    Raises:
        AdaBMError: The file is missing, corrupt, not ours or of another version; or the runtime is
            unknown, not installed or can't compile the graph.
    """

    clips: Clips | None = None

    def __init__(
        self, path: str | os.PathLike, runtime: str = DEFAULT_RUNTIME, threads: int = 0
    ) -> None:
        if runtime not in RUNTIMES:
            raise OptionError(f"runtime: {runtime!r} is unknown; {did_you_mean(runtime, RUNTIMES)}")
        import_runtime("onnx")
        from adabm_basicsr.deployment.onnx.reading import read_own

        self.path = path
        self.runtime = runtime
        self.threads = threads
        self._model, self.description, self.only_level = read_own(path)
        shape = self._model.graph.input[0].type.tensor_type.shape
        self.in_channels = shape.dim[1].dim_value
        self.size_multiple = self.description["size_multiple"]
        self._chooser: Compiled | None = None
        self._compiled: dict[int, Compiled] = {}
        self._latest: int | None = None
        self._lock = threading.Lock()  # graphs are compiled once, whichever thread comes first

    def level(self, image: Tensor) -> int:
        """The class of an image, by its complexity.

        Args:
            image: ``(1, C, H, W)`` in 0..1.

        Returns:
            0 for simple images, 1 for middle ones, 2 for complex ones. ("Level" is what files,
            flags and methods call the index of an image class.)
        """
        if self.only_level is not None:
            return self.only_level
        with self._lock:
            if self._chooser is None:
                self._chooser = self._compile_chooser()
        from adabm_basicsr.deployment.onnx.level import LEVELS

        level = self._chooser.run(image.numpy())
        if level.shape != () or level not in LEVELS:
            raise self._damaged(
                f"its graph chooses {reprlib.repr(level.tolist())}, which is no class"
            )
        return int(level)

    def compiled(self, level: int) -> Run:
        """The network at one image class.

        Args:
            level: 0, 1 or 2.

        Returns:
            A function of arrays, ``(1, C, H, W)`` in 0..1 to ``(1, C, sH, sW)``, float32.
        """
        with self._lock:
            if level not in self._compiled:
                self._compiled[level] = self._compile(self.graph_at(level))
            if self._latest is not None and self._latest != level:
                # Together, the three classes would take three times the memory.
                self._compiled[self._latest].release()
            self._latest = level
            return self._compiled[level].run

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Super-resolve images, each at its own bits.

        Args:
            image: ``(B, C, H, W)`` in 0..1.

        Returns:
            ``(B, C, sH, sW)``, float32.

        Raises:
            AdaBMError: The image is of another kind or shape.
        """
        check_images(image, self.in_channels)
        image = image.float().cpu()
        levels = [self.level(sample) for sample in image.split(1)]
        if len(set(levels)) == 1:
            return self.at_level(image, levels[0])
        outputs: dict[int, Tensor] = {}
        for level in sorted(set(levels)):
            chosen = [index for index, found in enumerate(levels) if found == level]
            results = self.at_level(image[chosen], level)
            for index, result in zip(chosen, results, strict=True):
                outputs[index] = result
        return torch.stack([outputs[index] for index in range(len(levels))])

    def at_level(self, image: Tensor, level: int) -> Tensor:
        """Super-resolve images at a given class.

        Args:
            image: ``(B, C, H, W)`` in 0..1, float32.
            level: 0, 1 or 2.

        Returns:
            ``(B, C, sH, sW)``, float32.
        """
        run = self.compiled(level)

        def run_tensor(x: Tensor) -> Tensor:
            output = run(x.contiguous().numpy())
            self._check_output(x, output)
            return torch.from_numpy(output)

        # One by one: where the size of a batch is open, OpenVINO 2026.4 makes other pictures of
        # networks with shapes that follow the image.
        return run_one_by_one(run_tensor, image, self.size_multiple)

    def graph_at(self, level: int) -> onnx.ModelProto:
        """The graph of one image class as the runtime is given it.

        Args:
            level: 0, 1 or 2.
        """
        from adabm_basicsr.deployment.onnx.editing import check_grids
        from adabm_basicsr.deployment.onnx.fusion import fuse
        from adabm_basicsr.deployment.onnx.overflow import avoid_overflow
        from adabm_basicsr.deployment.onnx.reading import check_shapes

        if self.only_level not in (None, level):
            raise OptionError(f"level: {level}: {self.path} is for class {self.only_level} alone")
        try:
            model = fuse(self._at_level(level), self._form())
            check_grids(model)
            check_shapes(model, self.size_multiple)
            if not has_exact_int8():
                model = avoid_overflow(model)
        except Exception as error:  # of onnx, NumPy or a rewrite: it depends on the damage
            raise self._damaged(f"its graph can't be rewritten: {first_line(error)}") from error
        return model

    def _at_level(self, level: int) -> onnx.ModelProto:
        """A copy of the graph with the level as a constant."""
        from adabm_basicsr.deployment.onnx.level import at_level

        if self.only_level is None:
            return at_level(self._model, level)
        model = type(self._model)()
        model.CopyFrom(self._model)
        return model

    def _form(self) -> str:
        """The form that the runtime is given: its own, or what the file names for OpenVINO."""
        form = self.description.get("form")
        if form is not None and self.runtime == "openvino":
            return str(form)
        return RUNTIMES[self.runtime].form

    def _check_output(self, image: Tensor, output: np.ndarray) -> None:
        """Reject what is no image for each image, which only a damaged graph makes."""
        is_image = output.ndim == image.dim() and output.dtype == np.float32
        if not is_image or len(output) != len(image) or output.size == 0:
            raise self._damaged(f"its graph makes {output.shape} of an image {tuple(image.shape)}")

    def _damaged(self, reason: str) -> CheckpointError:
        from adabm_basicsr.deployment.onnx.reading import damaged

        return damaged(self.path, reason)

    def _compile_chooser(self) -> Compiled:
        from adabm_basicsr.deployment.onnx.level import MIDDLE, chooser, is_adaptive

        try:
            adaptive = is_adaptive(self._model)
        except Exception as error:  # of onnx: it depends on the damage
            raise self._damaged(f"its graph chooses no class: {first_line(error)}") from error
        if adaptive:
            return self._compile(chooser(self._model))
        return Compiled(lambda image: np.array(MIDDLE), release_nothing)

    def _compile(self, model: onnx.ModelProto) -> Compiled:
        return RUNTIMES[self.runtime].compile(model.SerializeToString(), self.threads)
