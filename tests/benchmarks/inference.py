"""Speed, memory, size and accuracy of inference: ours against what a user would pick today.

    python tests/benchmarks/inference.py [--networks EDSR] [--sizes 256x256] [--bits 8 4] [--recipe fast] [--accuracy]

Float in PyTorch and in both runtimes, ONNX Runtime's own static quantizer, NNCF's post-training quantization, and our
graphs. Each runs in a process of its own, in turns, in several rounds; the fastest round counts. Quantized files are
kept in ``--out``. Prints a table and writes ``inference.json``. Needs ../shared and ``pip install ".[benchmark]"``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
import yaml
from networks import NETWORKS, SHARED, WEIGHTS, make_example_project_importable, option_file
from tabulate import tabulate

from adabm_basicsr import OnnxNetwork, load_checkpoint, load_network, save_onnx
from adabm_basicsr.data.images import list_images, read_image, to_unit_range

SCALE, MIDDLE = 4, 1
SETS = ("Set5", "Set14")
BODY_ALONE = ("SRVGGNetCompact", "RRDBNet")
CALIBRATION_IMAGES = 80
INTEGER_KERNELS = {"QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "QGemm", "MatMulIntegerToFloat"}
LAYER_KERNELS = {"Conv", "FusedConv", "MatMul", "Gemm", "FusedMatMul"} | INTEGER_KERNELS
Run = Callable[[np.ndarray], np.ndarray]


def full_precision(kind: str) -> torch.nn.Module:
    """The network before quantization."""
    from adabm_basicsr.archs.adabm_arch import AdaBMNetwork

    net = AdaBMNetwork(network={"type": kind, **NETWORKS[kind]}, custom_imports=["inhouse.archs"])
    return load_checkpoint(net, SHARED / "weights" / WEIGHTS[kind]).network_in_full_precision()
