"""A checksum at the end of an ONNX file, in its metadata.

To protobuf, messages one after the other are one message, so a checksum of all that stands before
it can simply be appended.
"""

from __future__ import annotations

import hashlib

import onnx
from onnx import helper

KEY = "adabm_basicsr_sha256"


def sealed(content: bytes) -> bytes:
    """The bytes of an ``onnx.ModelProto``, followed by their checksum; any reader takes them."""
    return content + _seal(content)


def is_whole(content: bytes) -> bool:
    """Whether ``content`` is what `sealed` made."""
    size = len(_seal(b""))
    return content[-size:] == _seal(content[:-size])


def _seal(content: bytes) -> bytes:
    """The checksum of ``content`` as a message of metadata alone; all seals have one length."""
    model = onnx.ModelProto()
    helper.set_model_props(model, {KEY: hashlib.sha256(content).hexdigest()})
    return model.SerializeToString()
