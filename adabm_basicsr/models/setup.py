"""What training needs besides the network: checked before a run begins, used by the model."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from basicsr.data import build_dataset
from basicsr.utils.registry import DATASET_REGISTRY
from torch import nn

from adabm_basicsr.data.calibration_dataset import CalibrationDataset
from adabm_basicsr.data.clip_dataset import ClipCalibrationDataset
from adabm_basicsr.data.patches import PatchDataset
from adabm_basicsr.errors import OptionError, check_keys, check_positive, counted
from adabm_basicsr.options.table import Train
from adabm_basicsr.quantization.finetuning.finetune import FinetuneSettings
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.structure.clips import Clips

TRAIN_OPTIONS = tuple(Train.model_fields)


class TrainingSetup(NamedTuple):
    """Data and settings of calibration and fine-tuning."""

    dataset: PatchDataset
    calibration_batch_size: int
    iterations_per_epoch: int
    finetune: FinetuneSettings


def set_up_training(opt: Mapping[str, Any], net: nn.Module) -> TrainingSetup:
    """Read the calibration images and settings.

    Args:
        opt: BasicSR's options, of a process that has joined the others. BasicSR's own entry points
            don't check them first.
        net: What the options' ``network_g`` builds.

    Raises:
        OptionError: An option is unknown or out of range, or there is nothing to train.
        ImageError: An image is broken.
    """
    train = opt["train"]
    check_keys("train", train, TRAIN_OPTIONS)
    if not isinstance(net, QuantizedNetwork):
        raise OptionError(
            "network_g: AdaBMModel trains type AdaBMNetwork, with your architecture under network"
        )
    if not opt["path"].get("pretrain_network_g") and not getattr(net.network, "has_weights", False):
        raise OptionError("path: pretrain_network_g is missing: there are no weights to quantize")
    batch_size = train.get("calibration_batch_size")
    if batch_size is None:
        batch_size = Train.model_fields["calibration_batch_size"].default
    check_positive("train: calibration_batch_size", batch_size)
    settings = FinetuneSettings.from_options(train.get("finetune") or {})
    if train["total_iter"] and not _is_trainable(net):
        raise OptionError(
            f"recipe {net.config.recipe!r} has nothing to fine-tune; set train: total_iter: 0"
        )
    options = opt["datasets"]["train"]
    dataset = _read_dataset(options, net)
    batch = options["batch_size_per_gpu"] * gpus_per_process(opt)
    iterations = dataset.items_per_process(opt["world_size"]) // batch
    if not iterations:
        raise OptionError(
            f"datasets: train: {counted(len(dataset), dataset.unit)} can't fill a batch; raise "
            f"dataset_enlarge_ratio ({dataset.rounds}) or lower batch_size_per_gpu "
            f"({options['batch_size_per_gpu']})"
        )
    return TrainingSetup(dataset, batch_size, iterations, settings)


def _is_trainable(net: QuantizedNetwork) -> bool:
    if not net.config.finetuning.phases:
        return False
    return bool(net.weight_quantizers() or net.activation_quantizers())


def _read_dataset(options: dict[str, Any], net: QuantizedNetwork) -> PatchDataset:
    kind = DATASET_REGISTRY.get(options["type"])
    if not issubclass(kind, PatchDataset):
        raise OptionError(
            "datasets: train: type must be CalibrationDataset or ClipCalibrationDataset"
        )
    taken = "images"
    fitting: type[PatchDataset] = CalibrationDataset
    if net.clips is not None:
        taken = "clips"
        fitting = ClipCalibrationDataset
    if not issubclass(kind, fitting):
        raise OptionError(
            f"datasets: train: type: {options['type']}, but {type(net.network).__name__} takes "
            f"{taken}; choose {fitting.__name__}"
        )
    dataset = kind(options)
    if dataset.channels != net.in_channels:
        raise OptionError(
            f"datasets: train: channels: {dataset.channels}, but the network takes "
            f"{net.in_channels} channels"
        )
    if isinstance(dataset, ClipCalibrationDataset) and net.clips is not None:
        _check_stretches(dataset, net, net.clips)
    return dataset


def _check_stretches(dataset: ClipCalibrationDataset, net: QuantizedNetwork, clips: Clips) -> None:
    """Check that a network runs on stretches as long and as small as those of a dataset."""
    name = type(net.network).__name__
    if clips.window is not None and dataset.frames != clips.window:
        raise OptionError(
            f"datasets: train: num_frame: {dataset.frames}, but {name} takes {clips.window} frames"
        )
    # More frames than it was found to run on would tell no more, and take their time.
    frames = min(dataset.frames, clips.frames)
    frame = torch.zeros(1, net.in_channels, dataset.size, dataset.size, device=net.stage.device)
    least = net.find_least(frame.unsqueeze(1).expand(-1, frames, -1, -1, -1))
    if least is None:
        return
    given = f"lq_size: {dataset.size}"
    if least.frames is not None:
        given = f"num_frame: {dataset.frames}"
    raise OptionError(f"datasets: train: {given}, but {name} takes {least}")


def read_pairs(
    datasets: Mapping[str, Any], device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """LR images and ground truth of all validation sets that have any.

    Args:
        datasets: BasicSR's options of them.
        device: Where to put the images.

    Returns:
        Pairs of ``(1, C, H, W)`` and ``(1, C, sH, sW)`` in 0..1; of sets of clips those of
        ``(1, T, C, H, W)`` and the truth of all their frames or of the middle one.
    """
    pairs = []
    for phase, options in datasets.items():
        if phase.split("_")[0] != "val" or not options.get("dataroot_gt"):
            continue
        for item in build_dataset(deepcopy(options)):
            low = item["lq"].unsqueeze(0).to(device)
            pairs.append((low, item["gt"].unsqueeze(0).to(device)))
    return pairs


def gpus_per_process(opt: Mapping[str, Any]) -> int:
    """GPUs that one process drives (at least 1, for a CPU); BasicSR multiplies the batch by it."""
    if opt["dist"]:
        return 1
    return max(opt["num_gpu"], 1)
