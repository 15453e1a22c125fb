"""Names, endings and checksums of the files of an ncnn network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, PositiveInt

PARAM_SUFFIX = ".param"
BIN_SUFFIX = ".bin"
JSON_SUFFIX = ".json"


CONVOLUTIONS = (
    "Convolution",
    "ConvolutionDepthWise",
    "Deconvolution",
    "DeconvolutionDepthWise",
)
# Parameters: the kind of integers of a convolution, absent from those in float; and features that a
# layer is to do without, as bits.
OF_INTEGERS = "8="
WITHOUT_WINOGRAD = "31=64"


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


class StoredLayer(NamedTuple):
    """A layer of a ``.param`` that has weights of its own in the ``.bin``.

    Attributes:
        name: Its name.
        kind: Its type in ncnn.
        weights: Number of its weights.
        type: ``int8`` or ``float``.
    """

    name: str
    kind: str
    weights: int
    type: str


def stored_layers(param: str) -> list[StoredLayer]:
    """The convolutions of a ``.param``, in the order in which they run."""
    layers = []
    for line in param.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] not in CONVOLUTIONS:
            continue
        weights = next(int(word.removeprefix("6=")) for word in words if word.startswith("6="))
        kind = "int8" if _is_of_integers(words) else "float"
        layers.append(StoredLayer(words[1], words[0], weights, kind))
    return layers


def without_winograd(param: str) -> str:
    """A ``.param`` whose convolutions of integers multiply as they are."""
    lines = []
    for line in param.splitlines():
        words = line.split()
        if words and words[0] == "Convolution" and _is_of_integers(words):
            words.append(WITHOUT_WINOGRAD)
        lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def _is_of_integers(words: Iterable[str]) -> bool:
    return any(word.startswith(OF_INTEGERS) for word in words)
