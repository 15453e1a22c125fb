"""Adaptive quantization of super-resolution networks, a plugin for BasicSR.

Importing this package is cheap: torch is imported when something is used. The plugin (architecture,
model, dataset) is registered when ``basicsr`` is imported, at once if it already is.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from adabm_basicsr.bridge.hook import install_hook
from adabm_basicsr.version import __version__

if TYPE_CHECKING:  # for editors and type checkers; at run time, `__getattr__` imports them
    from adabm_basicsr.deployment.load import load_network
    from adabm_basicsr.deployment.onnx.export import save_onnx
    from adabm_basicsr.deployment.onnx_network import OnnxNetwork
    from adabm_basicsr.deployment.packed import save_packed
    from adabm_basicsr.errors import AdaBMError
    from adabm_basicsr.quantization.api import analyse, quantize
    from adabm_basicsr.quantization.calibration.calibrate import calibrate
    from adabm_basicsr.quantization.checkpoint import load_checkpoint, save_checkpoint
    from adabm_basicsr.quantization.config import QuantizationConfig
    from adabm_basicsr.quantization.finetuning.finetune import FinetuneSettings, finetune
    from adabm_basicsr.quantization.measures.summary import summarize
    from adabm_basicsr.quantization.network import QuantizedNetwork

__all__ = [
    "AdaBMError",
    "FinetuneSettings",
    "OnnxNetwork",
    "QuantizationConfig",
    "QuantizedNetwork",
    "__version__",
    "analyse",
    "calibrate",
    "finetune",
    "load_checkpoint",
    "load_network",
    "quantize",
    "save_checkpoint",
    "save_onnx",
    "save_packed",
    "summarize",
]

_MODULES = {
    "AdaBMError": "adabm_basicsr.errors",
    "FinetuneSettings": "adabm_basicsr.quantization.finetuning.finetune",
    "OnnxNetwork": "adabm_basicsr.deployment.onnx_network",
    "QuantizationConfig": "adabm_basicsr.quantization.config",
    "QuantizedNetwork": "adabm_basicsr.quantization.network",
    "analyse": "adabm_basicsr.quantization.api",
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

if not TYPE_CHECKING:  # where a type checker would take any name for a public one

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(_MODULES[name])
        return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


install_hook()
