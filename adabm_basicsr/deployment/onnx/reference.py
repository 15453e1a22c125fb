"""ONNX's own program that runs graphs as they are defined."""

from __future__ import annotations

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

FIRST_DEQUANTIZE = 19  # opset of the first ``DequantizeLinear`` that it has


class DequantizeLinear(OpRun):
    """The operator of before opset 19, which computes the same."""

    op_domain = ""

    def _run(
        self,
        x: np.ndarray,
        scale: np.ndarray,
        zero: np.ndarray | None = None,
        axis: int = 1,
        **_: object,  # attributes of later opsets
    ) -> tuple[np.ndarray]:
        view = [1] * x.ndim
        if scale.ndim:
            view[axis] = -1
        difference = x.astype(np.float32)
        if zero is not None:
            difference = difference - zero.reshape(view).astype(np.float32)
        return (difference * scale.reshape(view),)


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """A program that runs a model."""
    opset = max(opset.version for opset in model.opset_import if not opset.domain)
    own: list[type[OpRun]] = [DequantizeLinear] if opset < FIRST_DEQUANTIZE else []
    return ReferenceEvaluator(model, new_ops=own)
