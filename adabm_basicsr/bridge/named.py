"""Checks what options name: registered types, the network, its checkpoint and its scale.

Checks of the options themselves are in ``options/``. These need BasicSR's registries and a built
network; they too come before BasicSR moves earlier results aside.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.utils import registry

from adabm_basicsr.archs.adabm_arch import build_base, import_modules
from adabm_basicsr.data.frames import Size
from adabm_basicsr.errors import NotRegisteredError, OptionError, did_you_mean, within
from adabm_basicsr.models.adabm_model import AdaBMModel
from adabm_basicsr.models.setup import set_up_training
from adabm_basicsr.options.clips import CLIP_SETS, RECURRENT
from adabm_basicsr.options.datasets import ROOTS, check_datasets, check_metrics
from adabm_basicsr.quantization.checkpoint import load_checkpoint
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.structure.clips import FRAME_SIZE, Clips, clip_of

TRIED = 24  # pixels of the image that the network's scale is tried on
QUANTIZED = "AdaBMNetwork"


def check_what_is_named(opt: dict[str, Any], is_train: bool) -> None:
    """Check images, types, network, checkpoint and metrics.

    Args:
        opt: Options that `check_options` has passed, of a process that has joined the others.
        is_train: Whether to train.

    Raises:
        AdaBMError: The first that is missing, broken, unknown or doesn't fit.
    """
    sizes = check_datasets(opt)
    _check_registered(opt)
    if is_train and opt["network_g"]["type"] == QUANTIZED:
        _check_model(opt["model_type"])
    check_metrics(_metrics(opt), sizes)
    if opt["model_type"] == AdaBMModel.__name__:
        _check_network(opt, is_train, sizes)


def _metrics(opt: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return (opt.get("val") or {}).get("metrics") or {}


def _check_registered(opt: dict[str, Any]) -> None:
    network = opt["network_g"]
    import_modules(network.get("custom_imports") or ())
    if network["type"] != QUANTIZED:
        network.pop("custom_imports", None)  # a plain architecture doesn't take the key
    _check_type("model_type", opt["model_type"], registry.MODEL_REGISTRY)
    _check_type("network_g: type", network["type"], registry.ARCH_REGISTRY)
    for name, dataset in opt["datasets"].items():
        _check_type(f"datasets: {name}: type", dataset["type"], registry.DATASET_REGISTRY)
    for name, metric in _metrics(opt).items():
        _check_type(f"val: metrics: {name}: type", metric["type"], registry.METRIC_REGISTRY)
    for name, metric in _metrics(opt).items():
        if metric["type"] == "calculate_lpips" and not find_spec("lpips"):
            raise OptionError(
                f"val: metrics: {name}: {metric['type']} needs the package lpips: pip install lpips"
            )


def _check_type(key: str, value: str, known: registry.Registry) -> None:
    if value not in known and f"{value}_basicsr" not in known:
        raise NotRegisteredError(
            f"{key}: {value!r} is not registered; {did_you_mean(value, known.keys())}"
        )


def _check_model(model_type: str) -> None:
    """BasicSR's own models test a quantized network, but don't know how to make one."""
    if not issubclass(registry.MODEL_REGISTRY.get(model_type), AdaBMModel):
        raise OptionError(
            f"model_type: {model_type!r} doesn't quantize; AdaBMModel trains AdaBMNetwork"
        )


def _check_network(opt: dict[str, Any], is_train: bool, sizes: list[Size]) -> None:
    """Build the network, load its checkpoint, and read what training needs.

    Args:
        opt: The options.
        is_train: Whether to train.
        sizes: Heights and widths of what the network is going to make of validation sets.
    """
    paths = opt["path"]
    is_quantized = opt["network_g"]["type"] == QUANTIZED
    if is_quantized:
        with within("network_g"):
            net = build_network(opt["network_g"])
    else:
        net = build_base(opt["network_g"], "network_g")
    if is_quantized:
        _check_validation_sets(opt["datasets"], net)
        _check_small_frames(sizes, opt.get("scale") or 1, net)
    if paths.get("pretrain_network_g") and not paths.get("resume_state"):
        load_checkpoint(net, paths["pretrain_network_g"], paths.get("param_key_g"))
    if is_train:
        set_up_training(opt, net)
    elif is_quantized:
        net.check_calibrated()
    if is_quantized and opt.get("scale") is not None:
        _check_scale(opt["scale"], net)


def _check_validation_sets(datasets: dict[str, dict[str, Any]], net: QuantizedNetwork) -> None:
    """Check that validation sets give what the network takes; sets of a user's own aren't known."""
    name = type(net.network).__name__
    for key, dataset in datasets.items():
        kind = dataset["type"]
        if kind not in ROOTS and kind not in CLIP_SETS:
            continue
        where = f"datasets: {key}: type: {kind}"
        fitting = _fitting_sets(net.clips)
        choice = f"choose {', '.join(fitting[:-1])} or {fitting[-1]}"
        if net.clips is None:
            if kind in CLIP_SETS:
                raise OptionError(f"{where} gives clips, but {name} takes images; {choice}")
            continue
        if kind in ROOTS:
            raise OptionError(f"{where} gives images, but {name} takes clips; {choice}")
        if kind not in fitting:
            raise OptionError(
                f"{where} gives whole clips, but {name} takes windows of {net.clips.window} "
                f"frames; {choice}"
            )
        if net.clips.window not in (None, dataset["num_frame"]):
            raise OptionError(
                f"datasets: {key}: num_frame: {dataset['num_frame']}, but {name} takes "
                f"{net.clips.window} frames"
            )


def _check_small_frames(sizes: list[Size], scale: int, net: QuantizedNetwork) -> None:
    """Check that a network that takes clips runs on frames as small as those of validation sets."""
    if net.clips is None or not sizes:
        return
    height = min(size[0] for size in sizes) // scale
    width = min(size[1] for size in sizes) // scale
    if min(height, width) >= FRAME_SIZE:
        return  # it was found to run on frames of this size
    least = net.find_least(torch.zeros(1, net.clips.frames, net.in_channels, height, width))
    if least is not None:
        raise OptionError(
            f"datasets: frames to validate on are as small as {width}x{height} pixels, but "
            f"{type(net.network).__name__} takes {least}"
        )


def _fitting_sets(clips: Clips | None) -> list[str]:
    """Validation sets for a network that takes such clips, or images, the likeliest first."""
    if clips is None:
        return list(ROOTS)
    of_windows = [kind for kind in CLIP_SETS if kind != RECURRENT]
    if clips.window is not None:
        return of_windows
    # Of windows, a network that makes all frames is judged by the middle ones.
    return [RECURRENT, *of_windows]


def _check_scale(scale: int, net: QuantizedNetwork) -> None:
    """BasicSR cuts the ground truth to ``scale`` times the input, and reports name it."""
    image = torch.zeros(1, net.in_channels, TRIED, TRIED)
    if net.clips is not None:
        image = clip_of(image, net.clips.frames)
    with net.full_precision():
        height = net(image).shape[-2]
    made = height / image.shape[-2]
    if made != scale:
        raise OptionError(
            f"scale: {scale}: the network makes images {made:g} times as large; set scale: {made:g}"
        )
