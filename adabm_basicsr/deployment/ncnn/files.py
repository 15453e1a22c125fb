"""Names, endings and checksums of the files of an ncnn network."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt

PARAM_SUFFIX = ".param"
BIN_SUFFIX = ".bin"
JSON_SUFFIX = ".json"


class Description(BaseModel):
    """What the ``.json`` says of the other two.

    Attributes:
        format: Version of this description.
        engine: What the network was quantized for.
        in_channels: Channels of the images that it takes.
        size_multiple: Their sides are multiples of this many pixels; mirror them up to it.
        input: Name of the blob that takes the image.
        output: Name of the blob that holds the result.
        pixels: What they hold.
        sha256: Checksum of each file, by its ending.
        description: How the network was built and quantized, where it was built from options.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    format: Literal[1] = 1
    engine: Literal["ncnn"] = "ncnn"
    in_channels: PositiveInt
    size_multiple: PositiveInt
    input: Literal["data"] = "data"
    output: Literal["output"] = "output"
    pixels: Literal["RGB in 0..1"] = "RGB in 0..1"
    sha256: dict[str, str]
    description: dict[str, Any] | None


def checksum(content: bytes) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(content).hexdigest()
