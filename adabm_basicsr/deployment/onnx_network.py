"""``OnnxNetwork``: an exported graph in a runtime, each image at its own class.

A graph is compiled once for each image class that occurs: with the class as a constant everything
folds, which is what runtimes need to run integers. A small graph of its own chooses the class.

Graphs of one step of a recurrent network are run over clips: first backwards, then forwards.
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
from adabm_basicsr.quantization.checks import IMAGE_AXES, check_clips, check_images
from adabm_basicsr.quantization.structure.sizes import run_one_by_one

if TYPE_CHECKING:
    import onnx

    from adabm_basicsr.deployment.onnx.level import Part


class OnnxNetwork:
    """A quantized network in a runtime; call it like the network itself, clips included.

    Several threads may call one. In OpenVINO they take turns, as calls share their memory; a
    network of its own for each thread runs side by side.

    Args:
        path: An ONNX file that this package wrote.
        runtime: A key of `RUNTIMES`.
        threads: Of the runtime; 0 leaves it to the runtime.

    Attributes:
        description: What the file says of the network and its quantization.
        in_channels: Channels of the images that the network takes.
        clips: Clips that the network takes; None of one that takes images.
        size_multiple: Images are mirrored up to multiples of this many pixels.
        only_level: The image class that the file is for alone; None where each image has its own.

    Raises:
        AdaBMError: The file is missing, corrupt, not ours or of another version; or the runtime is
            unknown, not installed or can't compile the graph.
    """

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
        self._model, self.description, self.only_level, self.clips = read_own(path)
        shape = self._model.graph.input[0].type.tensor_type.shape
        self.in_channels = shape.dim[-3].dim_value
        self.size_multiple = self.description["size_multiple"]
        self._chooser: Compiled | None = None
        self._compiled: dict[tuple[int, Part | None], Compiled] = {}
        self._latest: tuple[int, Part | None] | None = None
        self._lock = threading.Lock()  # graphs are compiled once, whichever thread comes first

    def level(self, image: Tensor) -> int:
        """The class of an image, by its complexity.

        Args:
            image: ``(1, C, H, W)`` in 0..1.

        Returns:
            0 for simple images, 1 for middle ones, 2 for complex ones, 3 for those in full
            precision. ("Level" is what files, flags and methods call the index of an image class.)
        """
        if self.only_level is not None:
            return self.only_level
        with self._lock:
            if self._chooser is None:
                self._chooser = self._compile_chooser()
        from adabm_basicsr.deployment.onnx.level import FULL, LEVELS

        level = self._chooser.run(image.numpy())
        if level.shape != () or level not in (*LEVELS, FULL):
            raise self._damaged(
                f"its graph chooses {reprlib.repr(level.tolist())}, which is no class"
            )
        return int(level)

    def compiled(self, level: int) -> Run:
        """The network at one image class.

        Args:
            level: 0, 1 or 2, or 3 where images run in full precision.

        Returns:
            A function of arrays, ``(1, C, H, W)`` in 0..1 to ``(1, C, sH, sW)``, float32.
        """
        return self._compiled_at(level).run

    def _compiled_at(self, level: int, part: Part | None = None) -> Compiled:
        """The network, or a part of a step, at one image class."""
        key = (level, part)
        with self._lock:
            if key not in self._compiled:
                self._compiled[key] = self._compile(self.graph_at(level, part))
            if self._latest is not None and self._latest != key:
                # Together, the three classes would take three times the memory.
                self._compiled[self._latest].release()
            self._latest = key
            return self._compiled[key]

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Super-resolve images, each at its own bits.

        Args:
            image: ``(B, C, H, W)`` in 0..1; of a network that takes clips ``(B, T, C, H, W)``.

        Returns:
            ``(B, C, sH, sW)``, or a frame for each of the clip's, ``(B, T, C, sH, sW)``; float32.

        Raises:
            AdaBMError: The image is of another kind or shape.
        """
        if self.clips is None:
            check_images(image, self.in_channels)
        else:
            check_clips(image, self.in_channels, self.clips.window)
        image = image.float().cpu()
        if self.clips is not None and self.clips.any_length:
            return run_one_by_one(self._run_steps, image, self.size_multiple)
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
            level: 0, 1 or 2, or 3 where images run in full precision.

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

    def _run_steps(self, clip: Tensor) -> Tensor:
        """Super-resolve a clip by a graph of one step, each frame at its own bits.

        Args:
            clip: ``(1, T, C, H, W)`` in 0..1, float32.

        Returns:
            ``(1, T, C, sH, sW)``.
        """
        from adabm_basicsr.deployment.onnx.level import IMAGE
        from adabm_basicsr.deployment.onnx.steps import (
            BACKWARD,
            BACKWARD_STATE,
            FORWARD,
            NEXT,
            NEXT_STATE,
            PREVIOUS,
            PREVIOUS_STATE,
        )

        frames = [frame.contiguous().numpy() for frame in clip.unbind(1)]
        levels = [self.level(frame) for frame in clip.unbind(1)]
        last = len(frames) - 1
        state = self._no_state(clip)
        states: list[np.ndarray] = []
        for number in reversed(range(len(frames))):
            (state,) = self._compiled_at(levels[number], BACKWARD).run_all(
                {
                    IMAGE: frames[number],
                    NEXT: frames[min(number + 1, last)],
                    NEXT_STATE: state,
                }
            )
            states.insert(0, state)
        state = self._no_state(clip)
        made = []
        for number, frame in enumerate(frames):
            output, state = self._compiled_at(levels[number], FORWARD).run_all(
                {
                    IMAGE: frame,
                    PREVIOUS: frames[max(number - 1, 0)],
                    PREVIOUS_STATE: state,
                    BACKWARD_STATE: states[number],
                }
            )
            self._check_output(clip[:, number], output)
            made.append(torch.from_numpy(output))
        return torch.stack(made, dim=1)

    def _no_state(self, clip: Tensor) -> np.ndarray:
        """The state of a frame that isn't there, ``(1, C, H, W)``."""
        from adabm_basicsr.deployment.onnx.steps import NEXT_STATE

        (value,) = [value for value in self._model.graph.input if value.name == NEXT_STATE]
        channels = value.type.tensor_type.shape.dim[1].dim_value
        return np.zeros((1, channels, *clip.shape[-2:]), np.float32)

    def graph_at(self, level: int, part: Part | None = None) -> onnx.ModelProto:
        """The graph of one image class as the runtime is given it.

        Args:
            level: 0, 1 or 2, or 3 where images run in full precision.
            part: Of a graph of one step, what it does in one direction; None for other graphs.
        """
        from adabm_basicsr.deployment.onnx.editing import check_grids
        from adabm_basicsr.deployment.onnx.fusion import fuse
        from adabm_basicsr.deployment.onnx.overflow import avoid_overflow
        from adabm_basicsr.deployment.onnx.reading import check_shapes

        if self.only_level not in (None, level):
            raise OptionError(f"level: {level}: {self.path} is for class {self.only_level} alone")
        try:
            model = fuse(self._at_level(level, part), self._form())
            check_grids(model)
            check_shapes(model, self.size_multiple)
            if not has_exact_int8():
                model = avoid_overflow(model)
        except Exception as error:  # of onnx, NumPy or a rewrite: it depends on the damage
            raise self._damaged(f"its graph can't be rewritten: {first_line(error)}") from error
        return model

    def _at_level(self, level: int, part: Part | None) -> onnx.ModelProto:
        """A copy of the graph, or of a part of it, with the level as a constant."""
        from adabm_basicsr.deployment.onnx.level import WHOLE, at_level, part_of

        if self.only_level is None:
            return at_level(self._model, level, part or WHOLE)
        if part is not None:
            return part_of(self._model, part)
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
        """Reject what is no image or clip for each, which only a damaged graph makes."""
        has_axes = output.ndim in (IMAGE_AXES, image.dim())
        is_image = has_axes and output.dtype == np.float32
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
        return Compiled(lambda inputs: [np.array(MIDDLE)], release_nothing)

    def _compile(self, model: onnx.ModelProto) -> Compiled:
        return RUNTIMES[self.runtime].compile(model.SerializeToString(), self.threads)
