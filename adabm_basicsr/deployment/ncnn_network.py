"""``NcnnNetwork``: an exported network in ncnn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from adabm_basicsr.deployment.ncnn.files import (
    BIN_SUFFIX,
    JSON_SUFFIX,
    Description,
    checksum,
    without_winograd,
)
from adabm_basicsr.deployment.runtimes import import_runtime
from adabm_basicsr.errors import CheckpointError, ExportError, not_found
from adabm_basicsr.files import is_file
from adabm_basicsr.quantization.checks import check_images
from adabm_basicsr.quantization.structure.clips import Clips
from adabm_basicsr.quantization.structure.sizes import run_one_by_one

SUCCESS = 0
# Its wheels of 2023 and 2024 take up to 1.7 times as long without Winograd's algorithm, the one of
# October 2026 less time; see docs/engines.md.
FIRST_WITHOUT_WINOGRAD = 20261020


class NcnnNetwork:
    """A quantized network in ncnn; call it like the network itself. Several threads may.

    Args:
        path: The ``.param`` of a network that `save_ncnn` wrote; ``.bin`` and ``.json`` beside it.
        threads: Of ncnn; 0 leaves it to ncnn.

    Attributes:
        description: What the files say of the network and its quantization.
        in_channels: Channels of the images that the network takes.
        clips: None, as it takes images.
        size_multiple: Images are mirrored up to multiples of this many pixels.

    Raises:
        AdaBMError: A file is missing, damaged or not ours, or ncnn isn't installed or can't read
            them.
    """

    clips: Clips | None = None

    def __init__(self, path: str | os.PathLike, threads: int = 0) -> None:
        self.path = Path(path)
        self.description = read_description(path)
        self.in_channels = self.description.in_channels
        self.size_multiple = self.description.size_multiple
        self._ncnn: Any = import_runtime("ncnn")
        net = self._ncnn.Net()
        if threads:
            net.opt.num_threads = threads
        # What isn't quantized keeps its precision.
        net.opt.use_fp16_packed = False
        net.opt.use_fp16_storage = False
        net.opt.use_fp16_arithmetic = False
        net.opt.use_bf16_storage = False
        param = self.path.read_text(encoding="utf-8")
        if _date(self._ncnn.__version__) >= FIRST_WITHOUT_WINOGRAD:
            param = without_winograd(param)
        weights = self.path.with_suffix(BIN_SUFFIX)
        if net.load_param_mem(param) != SUCCESS or net.load_model(str(weights)) != SUCCESS:
            raise CheckpointError(f"{path}: ncnn can't read it")
        self._net = net

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Super-resolve images.

        Args:
            image: ``(B, C, H, W)`` in 0..1.

        Returns:
            ``(B, C, sH, sW)``, float32.

        Raises:
            AdaBMError: The image is of another kind or shape, or ncnn can't run the network on it.
        """
        check_images(image, self.in_channels)
        return run_one_by_one(self._run, image.float().cpu(), self.size_multiple)

    def _run(self, image: Tensor) -> Tensor:
        """One image, ``(1, C, H, W)``."""
        pixels = np.ascontiguousarray(image[0].numpy())
        extractor = self._net.create_extractor()
        extractor.input(self.description.input, self._ncnn.Mat(pixels))
        status, output = extractor.extract(self.description.output)
        if status != SUCCESS:
            size = "x".join(str(side) for side in reversed(pixels.shape[1:]))
            raise ExportError(f"ncnn can't run {self.path} on an image of {size} pixels")
        # A copy: the memory is ncnn's.
        return torch.from_numpy(np.array(output)).unsqueeze(0)


def _date(version: str) -> int:
    """When a version of ncnn was made, as in ``1.0.20240820``; 0 where it doesn't say so."""
    last = version.rpartition(".")[2]
    return int(last) if last.isdigit() else 0


def read_description(path: str | os.PathLike) -> Description:
    """What the ``.json`` beside a ``.param`` says; the files are as they were written.

    Raises:
        CheckpointError: A file is missing, damaged or not ours.
    """
    path = Path(path)
    for suffix in (path.suffix, BIN_SUFFIX, JSON_SUFFIX):
        part = path.with_suffix(suffix)
        if not is_file(part):
            raise not_found("ncnn file", part, CheckpointError)
    part = path.with_suffix(JSON_SUFFIX)
    try:
        description = Description.model_validate_json(part.read_bytes())
    except ValidationError as error:
        raise CheckpointError(
            f"{part} is no description of an ncnn network that this version of adabm-basicsr wrote"
        ) from error
    for suffix in (path.suffix, BIN_SUFFIX):
        part = path.with_suffix(suffix)
        if description.sha256.get(suffix) != checksum(part.read_bytes()):
            raise CheckpointError(f"{part} is damaged, or of another network than its .json")
    return description
