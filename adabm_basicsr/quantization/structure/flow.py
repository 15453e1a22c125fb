"""Modules that estimate the flow between frames, which stay in full precision.

Flow is what features are moved by. An error of it moves all that comes after, from frame to frame.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Kind = TypeVar("Kind", bound=type[nn.Module])
FLOW_ESTIMATION = "flow estimation"  # what its multiply-accumulates are counted as

_KINDS: set[type[nn.Module]] = set()


def register_flow_estimation(kind: Kind) -> Kind:
    """Leave all layers in modules of type ``kind`` in full precision; also a class decorator."""
    _KINDS.add(kind)
    return kind


def estimates_flow(module: nn.Module) -> bool:
    """Whether a module is of a registered type, or of one that inherits from it."""
    return isinstance(module, tuple(_KINDS))
