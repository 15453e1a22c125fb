"""Analyses what an option file would quantize, without a run of its own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adabm_basicsr.bridge.pipeline import close_logger, log_to_console
from adabm_basicsr.bridge.run_options import parse_options
from adabm_basicsr.environment import weights_only
from adabm_basicsr.errors import CheckpointError

if TYPE_CHECKING:
    from adabm_basicsr.quantization.calibration.analysis import Analysis


def analyse_options(args: argparse.Namespace) -> tuple[dict[str, Any], Analysis]:
    """Analyse the network of an option file on its calibration images.

    Args:
        args: Flags of `run_options.make_parser`, and ``quiet``.

    Returns:
        The options of the file, and what was found.

    Raises:
        AdaBMError: A mistake in the options or in what they name, or the network is quantized
            already.
    """
    close_logger()  # one that something opened earlier in this process
    log_to_console(args.quiet)
    try:
        with weights_only():
            opt = parse_options(args, Path.cwd(), is_train=True)
            return opt, _analyse(opt)
    finally:
        close_logger()


def _analyse(opt: dict[str, Any]) -> Analysis:
    # These import BasicSR and torch, which flags and --help don't need.
    import torch
    from basicsr.archs import build_network

    from adabm_basicsr.models.setup import set_up_training
    from adabm_basicsr.quantization.calibration.analysis import analyse_network
    from adabm_basicsr.quantization.checkpoint import load_checkpoint
    from adabm_basicsr.quantization.network import Stage

    net = build_network(opt["network_g"])
    weights = opt["path"].get("pretrain_network_g")
    if weights:
        load_checkpoint(net, weights, opt["path"].get("param_key_g"))
    setup = set_up_training(opt, net)
    if net.reached != Stage.FRESH:
        raise CheckpointError(
            f"path: pretrain_network_g: {weights} is quantized already; analyse takes weights in "
            "full precision"
        )
    device = torch.device("cuda" if opt["num_gpu"] else "cpu")
    batches = setup.dataset.calibration_batches(setup.calibration_batch_size)
    return analyse_network(net.to(device), [batch.to(device) for batch in batches])
