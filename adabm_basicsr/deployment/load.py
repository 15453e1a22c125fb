"""Loads a quantized network from any of our files, with nothing but the file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from adabm_basicsr.deployment.ncnn.files import PARAM_SUFFIX
from adabm_basicsr.deployment.ncnn_network import NcnnNetwork
from adabm_basicsr.deployment.onnx_network import OnnxNetwork
from adabm_basicsr.deployment.packed import load_packed
from adabm_basicsr.deployment.runtimes import DEFAULT_RUNTIME
from adabm_basicsr.errors import AdaBMError, CheckpointError, one_line
from adabm_basicsr.quantization.checkpoint import is_quantized, read_described
from adabm_basicsr.quantization.network import QuantizedNetwork

PACKED_SUFFIX = ".safetensors"
ONNX_SUFFIX = ".onnx"
NCNN_SUFFIX = PARAM_SUFFIX


def load_network(
    path: str | os.PathLike,
    custom_imports: Sequence[str] = (),
    runtime: str = DEFAULT_RUNTIME,
    threads: int = 0,
) -> QuantizedNetwork | OnnxNetwork | NcnnNetwork:
    """The quantized network of a file, ready to infer.

    Args:
        path: Checkpoint (``.pth``), packed (``.safetensors``), ONNX file, or ``.param`` of ncnn.
        custom_imports: Modules that register an in-house architecture; importing them runs their
            code. ONNX files need none.
        runtime: What runs an ONNX file, see `OnnxNetwork`.
        threads: Of the runtime, see `OnnxNetwork` and `NcnnNetwork`.

    Raises:
        AdaBMError: The file can't be read, or doesn't say how its network is built.
    """
    suffix = Path(path).suffix
    if suffix == ONNX_SUFFIX:
        return OnnxNetwork(path, runtime, threads)
    if suffix == NCNN_SUFFIX:
        return NcnnNetwork(path, threads)
    if suffix == PACKED_SUFFIX:
        return load_packed(path, custom_imports)
    return _load_quantized_checkpoint(path, custom_imports)


def _load_quantized_checkpoint(
    path: str | os.PathLike, custom_imports: Sequence[str]
) -> QuantizedNetwork:
    from adabm_basicsr.archs.adabm_arch import build_described
    from adabm_basicsr.archs.limits import held_by

    description, state = read_described(path)
    if description is None or "network" not in description:
        raise CheckpointError(
            f"{path} doesn't say how its network is built: it is no quantized checkpoint of a "
            "network that was built from options, such as net_g_latest.pth in the models folder of "
            "an experiment"
        )
    if not is_quantized(state):
        raise CheckpointError(f"{path} holds no weights of a quantized network")
    try:
        net = build_described(description, held_by(state.values()), custom_imports)
        net.load_state_dict(state)
    except AdaBMError as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from error
    return net
