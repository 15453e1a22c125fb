"""Step 1, calibration: ranges, bits and rounding of a quantized network from LR images alone.

`calibrate` reads as the steps of the method:

1. Observe what the quantizers of activations see of the images in full precision. Where an engine
   has one scale for a whole tensor, those of its channels are folded into the weights before.
2. Layer factors: from how sensitive each layer is to rounding.
3. Ranges: of activations and weights, and a scale for each channel where the recipe has them.
4. Image thresholds: from how complex the images are.
5. Recipes that allocate: bits of layers and weights follow from what their errors do to the image.
   Recipes that reconstruct: each layer is fitted to the output that it has in full precision.

Recipe ``paper`` ends with 4; docs/paper.md has its equations.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.bit_mapping import frames_of, image_complexity
from adabm_basicsr.quantization.calibration.allocation import (
    assign,
    base_bits,
    equal_sensitivities,
    measure_sensitivities,
)
from adabm_basicsr.quantization.calibration.budget import budgets
from adabm_basicsr.quantization.calibration.complex_images import fewest_images, share_of_images
from adabm_basicsr.quantization.calibration.contents import warn_of_empty_images
from adabm_basicsr.quantization.calibration.equalisation import equalise, keep_pixels
from adabm_basicsr.quantization.calibration.folding import fold_channel_scales
from adabm_basicsr.quantization.calibration.observers import moving_average, search_weight_range
from adabm_basicsr.quantization.calibration.quality import (
    Goal,
    PsnrDropGoal,
    SelfPsnrGoal,
    choose_for_float,
    describe_kept,
    describe_kept_images,
    hold_back,
    pooled_psnr,
    worst_images,
)
from adabm_basicsr.quantization.calibration.reconstruction import reconstruct
from adabm_basicsr.quantization.calibration.statistics import Statistics, observe, read_batches
from adabm_basicsr.quantization.calibration.visits import layers_with_weights
from adabm_basicsr.quantization.checks import CLIP_AXES
from adabm_basicsr.quantization.config import FIXED_BITS
from adabm_basicsr.quantization.distributed import copy_from_first, from_first
from adabm_basicsr.quantization.layers import QuantizedLayer
from adabm_basicsr.quantization.log import LOGGER
from adabm_basicsr.quantization.measures.memory import within_memory
from adabm_basicsr.quantization.network import QuantizedNetwork, Stage
from adabm_basicsr.quantization.precision import full_float32
from adabm_basicsr.quantization.quantizers.fake_quantize import MIN_WIDTH, range_width

LAYER_PERCENTILES = (0.3, 0.7)
SHOWN = 16  # images that layers are reconstructed on
VERIFIED = 64  # images that a quality is verified on, of those that nothing is fitted to
PROBED = 8  # images that sensitivities are measured on
LEAST_CLIPS = 2  # a simple and a complex one, however long they are
# What quantizers have before calibration, of all that calibration and fine-tuning may change.
STARTS = {
    "lower": 0,
    "upper": 1,
    "layer_factor": 0,
    "level_ranges": 1,
    "channel_scale": 1,
    "channel_shift": 0,
    "correction": 0,
    "bias_correction": 0,
}


@full_float32()
@torch.no_grad()
def calibrate(
    net: QuantizedNetwork,
    batches: Iterable[Tensor],
    pairs: Sequence[tuple[Tensor, Tensor]] = (),
) -> QuantizedNetwork:
    """Set every range, layer factor and image threshold of ``net`` from low-resolution images.

    Several processes (torch.distributed) each take the same batches. They share what is done image
    by image; each reconstructs all layers, as rounding depends on the last digit of what they see.

    Args:
        net: The quantized network; changed in place.
        batches: Batches of LR images, each ``(B, C, H, W)`` in 0..1; the paper takes 16 patches of
            96x96 for x4.
        pairs: LR images and their ground truth, ``(1, C, H, W)`` and ``(1, C, sH, sW)`` in 0..1,
            which a target of ``psnr_drop`` is measured on; nothing else needs them.

    Returns:
        ``net``, ready to infer and to be fine-tuned.

    Raises:
        AdaBMError: There is no batch, or one holds values that are not finite, or a target is out
            of reach, or no image is more complex than the others where ``full_precision_images``
            asks for such.
    """
    with net.lock:
        images = read_batches(batches)
        for batch in images:
            net.check_input(batch)
        warn_of_empty_images(images)
        net.quantize_kept()
        target = net.config.target
        if "self_psnr" in target:
            fitted, held = hold_back(images)
            sets = [_shown(net, held, VERIFIED), _shown(net, fitted)]
            _calibrate_to_quality(net, fitted, SelfPsnrGoal(target["self_psnr"], sets), sets[0])
        elif "psnr_drop" in target:
            if not pairs:
                raise AdaBMError(
                    "target: psnr_drop needs images with ground truth: calibrate(net, batches, "
                    "pairs)"
                )
            goal = PsnrDropGoal(target["psnr_drop"], pairs)
            _calibrate_to_quality(net, images, goal, _shown(net, images))
        elif net.config.full_precision_images:
            # First, as images that can't be chosen from are rejected.
            chosen = from_first(share_of_images(images, net.config.full_precision_images))
            _calibrate(net, images)
            shown = _shown(net, images, VERIFIED)
            before = pooled_psnr(net, shown)
            net.keep_images_in_float(chosen.above)
            net.kept = describe_kept_images(net, chosen.share, shown, before)
        else:
            _calibrate(net, images)
    return net


def _calibrate_to_quality(
    net: QuantizedNetwork, images: list[Tensor], goal: Goal, judged: Tensor
) -> None:
    """Calibrate until a quality is met.

    First with as few bits as reach it. Where 8 bits don't, layers are kept in float until it holds,
    or the most complex images, where fewer MACs are in float then.

    Args:
        net: The network.
        images: Batches of LR images to fit to.
        goal: The quality.
        judged: LR images by whose errors layers are chosen, and on which what was bought is
            measured, ``(B, C, H, W)``.

    Raises:
        AdaBMError: It is out of reach.
    """
    _calibrate(net, images, goal)
    missing = goal.missing(net)
    if missing <= 0:
        return
    before = pooled_psnr(net, judged)
    complex_images = from_first(fewest_images(net, goal))
    at_eight_bits = copy.deepcopy(net.state_dict())
    while missing > 0:
        names = []
        if len(net.plan.layers) > 1:
            names = choose_for_float(net, worst_images(net, judged, PROBED), missing)
        share_of_layers = _share_of_macs(net, [*net.kept_in_float, *names])
        if complex_images is not None and (not names or complex_images.share < share_of_layers):
            net.quantize_kept()
            net.load_state_dict(at_eight_bits)
            net.keep_images_in_float(complex_images.above)
            net.kept = describe_kept_images(net, complex_images.share, judged, before)
            return
        if not names:
            raise goal.out_of_reach(net)
        LOGGER.info(f"Kept in float, as {missing:.2f} dB are missing: {', '.join(names)}")
        net.keep_in_float(names)
        _calibrate(net, images, goal)
        missing = goal.missing(net)
    net.kept = describe_kept(net, before, pooled_psnr(net, judged))


def _share_of_macs(net: QuantizedNetwork, names: Sequence[str]) -> float:
    """Share of layers in the MACs of all that are quantized or kept in float, 0..1."""
    macs = net.structure.macs
    total = sum(macs[name] for name in {*net.plan.layers, *net.kept_in_float})
    return sum(macs[name] for name in names) / total


def _calibrate(net: QuantizedNetwork, images: list[Tensor], goal: Goal | None = None) -> None:
    """Calibrate on batches of images, towards a quality if one was asked for."""
    recipe = net.config.calibration
    if net.config.folds_channel_scales:
        fold_channel_scales(net, _shown(net, images))
        copy_from_first(net)
    statistics, _ = observe(net, images)
    _forget_earlier(net)
    # Before ranges: which form these take depends on the bits.
    _set_layer_factors(statistics)
    set_ranges(net, statistics)
    set_image_thresholds(net, images)
    net.reach(Stage.CALIBRATED)
    if recipe.allocate:
        _allocate(net, statistics, images, goal)
    elif recipe.reconstruct:
        reconstruct(net, _shown(net, images))
    copy_from_first(net)


def _forget_earlier(net: QuantizedNetwork) -> None:
    """Forget what an earlier calibration, and fine-tuning after it, found."""
    weight_quantizers = net.weight_quantizers().values()
    for quantizer in [*net.activation_quantizers().values(), *weight_quantizers]:
        for name, start in STARTS.items():
            value = getattr(quantizer, name, None)
            if value is not None:
                value.fill_(start)
    for quantizer in weight_quantizers:
        if quantizer.allocated is not None:
            quantizer.hold_own_bits()


# Layer factors


def _set_layer_factors(statistics: list[Statistics]) -> None:
    """The most sensitive layers get a bit more, the least sensitive ones a bit less.

    m = +1 above the 70th percentile of all layers' sensitivities, -1 below the 30th, else 0.
    """
    quantizers = []
    found = []
    for observed in statistics:
        sensitivity = observed.sensitivity()
        if sensitivity is not None:
            quantizers.append(observed.quantizer)
            found.append(sensitivity)
    if not found:
        return
    sensitivities = torch.stack(found)
    shares = sensitivities.new_tensor(LAYER_PERCENTILES)
    low, high = torch.quantile(sensitivities, shares)
    for quantizer, sensitivity in zip(quantizers, sensitivities, strict=True):
        # Where no layer can have more bits than the base, none has to give any away.
        if quantizer.bits < quantizer.bit_range[1]:
            factor = float(sensitivity > high) - float(sensitivity < low)
            quantizer.layer_factor.fill_(factor)


# Ranges


def set_ranges(net: QuantizedNetwork, statistics: list[Statistics]) -> None:
    """Ranges of activations, scales of their channels, and ranges of weights in these scales."""
    _set_activation_ranges(statistics)
    _equalise(net, statistics)
    _widen_empty_ranges(statistics)
    _set_weight_ranges(net)


def _set_activation_ranges(statistics: list[Statistics]) -> None:
    for observed in statistics:
        ends = observed.range()
        if ends is not None:
            observed.quantizer.lower.copy_(ends[:1])
            observed.quantizer.upper.copy_(ends[1:])


def _widen_empty_ranges(statistics: list[Statistics]) -> None:
    """Give what was zero in all images a range that engines take.

    OpenVINO compiles no scale that is 10 ** 10 times smaller than a bias, and what other images
    bring there would be clipped.
    """
    for observed in statistics:
        quantizer = observed.quantizer
        if range_width(quantizer.lower, quantizer.upper, integer=True) <= MIN_WIDTH:
            quantizer.upper.fill_(1)


def _equalise(net: QuantizedNetwork, statistics: list[Statistics]) -> None:
    observed_by: dict[nn.Module, Statistics] = {}
    for observed in statistics:
        observed_by[observed.quantizer] = observed
    for layer in net.layers().values():
        if not isinstance(layer, QuantizedLayer):
            continue
        observed_input = observed_by.get(layer.input_quantizer)
        if observed_input is None or observed_input.channels is None:
            continue
        has_all_bits = observed_input.quantizer.clamped_bits_of_layer() >= FIXED_BITS
        if observed_input.pixels and has_all_bits:
            keep_pixels(layer)
        else:
            equalise(layer, *observed_input.channels)


def _set_weight_ranges(net: QuantizedNetwork) -> None:
    """The symmetric range of smallest squared error of each weight (OMSE)."""
    at_base_bits = net.config.calibration.outer_ranges_at_base_bits
    for name, layer, quantizer in layers_with_weights(net):
        bits = quantizer.bits
        is_outer = net.plan.layers[name].fixed and bits == FIXED_BITS
        if at_base_bits and is_outer:
            # As published: head and tail are searched at the body's bits.
            bits = net.config.w_bits
        weight: Tensor = layer.weight
        if quantizer.channel_scale is not None:
            weight = weight * quantizer.channel_scale
        upper = search_weight_range(weight, quantizer, bits)
        if quantizer.integer:
            # Packed files keep two bytes of it, unless fine-tuning moves it.
            upper = upper.bfloat16()
        quantizer.upper.copy_(upper)


# Image thresholds


def set_image_thresholds(net: QuantizedNetwork, batches: list[Tensor]) -> None:
    """Thresholds at percentiles of the complexity of all images together.

    As published, where a recipe doesn't pool them: a moving average of each batch's percentiles.
    """
    mapping = net.image_mapping
    if mapping is None:
        return
    recipe = net.config.calibration
    shares = batches[0].new_tensor(recipe.image_percentiles)
    complexities = [image_complexity(frames_of(batch)) for batch in batches]
    if recipe.pooled_thresholds:
        complexities = [torch.cat(complexities)]
    thresholds = moving_average([torch.quantile(of_batch, shares) for of_batch in complexities])
    lower = thresholds[:1]
    upper = thresholds[1:]
    arithmetic = net.config.arithmetic
    has_most_bits = arithmetic.own_bits and base_bits(net) >= arithmetic.bit_range[1]
    spares_none = arithmetic.image_bits[0] == 0
    if has_most_bits or spares_none:
        # A class of simple images only serves to spare bits. None can be spared here, or none are
        # of use, as all layers have the most already.
        lower = torch.zeros_like(lower)
    mapping.lower.copy_(lower)
    mapping.upper.copy_(upper)


# Bits of layers and weights


def _allocate(
    net: QuantizedNetwork,
    statistics: list[Statistics],
    images: list[Tensor],
    goal: Goal | None,
) -> None:
    """Share bits out by sensitivity and fit everything to them, again until a target is met."""
    shown = _shown(net, images)
    probed = representative(images, PROBED)
    reconstructs = net.config.calibration.reconstruct
    added = 0.0
    if not net.config.target:
        # A target counts what is used.
        added = _added_bits(net, images)
    if net.kept_in_float:
        # All others have the most bits.
        sensitivities = equal_sensitivities(net)
    else:
        if reconstructs:
            reconstruct(net, _shown(net, images, PROBED), rounding=False)
        sensitivities = measure_sensitivities(net, probed)
    for a_mean, w_mean in budgets(net, sensitivities, shown, goal):
        assign(net, sensitivities, a_mean - added, w_mean)
        set_ranges(net, statistics)
        if reconstructs:
            reconstruct(net, shown)


def _added_bits(net: QuantizedNetwork, batches: list[Tensor]) -> float:
    """Bits that the image mapping adds to the calibration images on average, at least 0.

    What it takes off instead is left unused: sets with fewer simple images would use more bits than
    were asked for.
    """
    if net.image_mapping is None:
        return 0.0
    factors = torch.cat([net.image_mapping(frames_of(batch)) for batch in batches])
    bits = factors.clamp(*net.config.arithmetic.image_bits)
    return max(float(bits.mean()), 0.0)


def _shown(net: QuantizedNetwork, batches: Sequence[Tensor], count: int = SHOWN) -> Tensor:
    """Images that are run all at once, or their centres: see `representative`, `within_memory`."""
    images = representative(batches, count)
    with net.full_precision():
        return within_memory(net, images)


def representative(batches: Sequence[Tensor], count: int = SHOWN) -> Tensor:
    """Images that span what there is, evenly chosen from simple to complex.

    Args:
        batches: Batches of images, each ``(B, C, H, W)`` in 0..1, or of clips; those of another
            size than the first are left out.
        count: How many to choose, at most; of clips at most as many frames in all, or
            `LEAST_CLIPS`.

    Returns:
        The chosen images from simple to complex, ``(B, C, H, W)``, or clips.
    """
    size = batches[0].shape[1:]
    if batches[0].dim() == CLIP_AXES:
        count = max(count // size[0], LEAST_CLIPS)
    images = torch.cat([batch for batch in batches if batch.shape[1:] == size])
    # Stable, so that images of one complexity are in the same order on every device.
    order = image_complexity(images).argsort(stable=True)
    places = torch.linspace(0, len(order) - 1, min(count, len(order)))
    chosen = places.round().long().to(order.device)
    return images[order[chosen]]
