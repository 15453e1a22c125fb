"""Adaptive quantization of super-resolution networks, a plugin for BasicSR.

Importing this package is cheap: torch is imported when something is used, and the plugin (architecture, model, dataset)
is registered when ``basicsr`` is imported, at once if it already is.
"""

from __future__ import annotations

import importlib

from adabm_basicsr.bridge.hook import install_hook
from adabm_basicsr.version import __version__

_EXPORTS = {
    "AdaBMError": "adabm_basicsr.errors",
    "FinetuneSettings": "adabm_basicsr.quantization.finetuning.finetune",
    "OnnxNetwork": "adabm_basicsr.deployment.onnx_network",
    "QuantizationConfig": "adabm_basicsr.quantization.config",
    "QuantizedNetwork": "adabm_basicsr.quantization.network",
    "calibrate": "adabm_basicsr.quantization.calibration.calibrate",
    "finetune": "adabm_basicsr.quantization.finetuning.finetune",
    "load_checkpoint": "adabm_basicsr.quantization.checkpoint",
    "load_network": "adabm_basicsr.deployment.load",
    "quantize": "adabm_basicsr.quantization.api",
    "save_checkpoint": "adabm_basicsr.quantization.checkpoint",
    "save_onnx": "adabm_basicsr.deployment.onnx.export",
    "save_packed": "adabm_basicsr.deployment.packed",
    "summarize": "adabm_basicsr.quantization.measures.summary",
}
__all__ = [*sorted(_EXPORTS), "__version__"]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


install_hook()
