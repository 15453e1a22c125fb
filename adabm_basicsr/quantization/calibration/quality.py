"""Quality that was asked for: how much of it is missing, and what to keep in float for it.

A `Goal` says what is missing. A target of self-PSNR is met where the squared error of a set of
images, pooled, is small enough and no image lies far below it. It is measured on images that
nothing is fitted to, see `hold_back`, and on those that calibration is fitted to; other images are
others, so that it is met with a margin, which is smaller the more images there are.

Where 8 bits don't do, layers are kept in float: those whose quantizers cost most of the image for
each MAC. What each of them costs is measured (`noise`); squared errors of independent roundings add
up, nearly, so what is left is the sum of what the others cost. Whether that was right is measured
after the next calibration, and corrected. Or the most complex images are (`complex_images`), where
that costs less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adabm_basicsr.errors import AdaBMError
from adabm_basicsr.quantization.calibration.noise import measure_errors, measure_gains
from adabm_basicsr.quantization.config import FIXED_BITS, FLOAT_BITS
from adabm_basicsr.quantization.layers import QuantizedLayer
from adabm_basicsr.quantization.measures.cost import cost_of, size_bytes
from adabm_basicsr.quantization.measures.psnr import pixel_psnr, psnr_of_errors, self_errors
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.quantization.structure.clips import middle_frame

HELD_EVERY = 4  # of so many images one is held back
STANDARD_ERRORS = 3.0  # of a mean over images, that other images may be worse by
LOWEST = 2.0  # dB that a single image may lie below the target
LEAST_DROP = 1e-4  # dB of PSNR; below it losses are chance, or gains
MARGIN = 0.1  # dB above the target that layers are chosen for


@dataclass
class KeptInFloat:
    """What layers or images in float cost, and what they bought.

    Attributes:
        layers: Names of the layers, in execution order; none where images are kept in float.
        images_share: Share of the images that were looked at, the most complex ones, 0..1; 0 where
            layers are.
        macs_share: Their share of the network's MACs, over layers and images, 0..1.
        bitops_share: What they add to BitOPs, as a share of full precision.
        bytes: What they add to the size.
        before: Self-PSNR in dB without them: that of the pooled squared error of the images that
            were held back.
        after: The same with them.
    """

    layers: list[str]
    images_share: float
    macs_share: float
    bitops_share: float
    bytes: int
    before: float
    after: float

    def __str__(self) -> str:
        what = f"{len(self.layers)} layers"
        if self.images_share:
            what = f"the most complex {100 * self.images_share:.1f} % of the images"
        return (
            f"{what} kept in float, {100 * self.macs_share:.1f} % of the MACs: "
            f"self-PSNR {self.after:.2f} dB instead of {self.before:.2f} dB, for "
            f"{100 * self.bitops_share:.1f} % of full BitOPs and {self.bytes / 1e6:.3f} MB"
        )


def hold_back(batches: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Batches to fit to, and batches to verify on: one of `HELD_EVERY` images.

    Fewer images than that serve for both.

    Args:
        batches: Batches of LR images, each ``(B, C, H, W)``.
    """
    fitted: list[Tensor] = []
    held: list[Tensor] = []
    start = 0
    for batch in batches:
        places = torch.arange(start, start + len(batch)) % HELD_EVERY
        start += len(batch)
        is_held = (places == HELD_EVERY - 1).to(batch.device)
        for images, chosen in ((batch[is_held], held), (batch[~is_held], fitted)):
            if len(images):
                chosen.append(images)
    return fitted, held or list(batches)


def pooled_psnr(net: QuantizedNetwork, images: Tensor) -> float:
    """Self-PSNR in dB of the squared error over all images together."""
    return float(psnr_of_errors(self_errors(net, images).mean()))


class Goal:
    """A quality that was asked for, and what a network falls short of it."""

    def missing(self, net: QuantizedNetwork) -> float:
        """What a calibrated network falls short of the goal, in dB of self-PSNR; at most 0 if met.

        A squared error that is smaller by so many dB would meet it.
        """
        raise NotImplementedError

    def self_psnr(self, net: QuantizedNetwork) -> float:
        """Self-PSNR in dB that about meets the goal."""
        raise NotImplementedError

    def images(self) -> list[Tensor]:
        """LR images that it is measured on, each batch ``(B, C, H, W)``."""
        raise NotImplementedError

    def out_of_reach(self, net: QuantizedNetwork) -> AdaBMError:
        """The error for a network that not even layers in float bring there."""
        raise NotImplementedError


class SelfPsnrGoal(Goal):
    """A self-PSNR on sets of images.

    Args:
        wanted: Self-PSNR in dB: of the pooled squared error of each set, with a margin of
            `STANDARD_ERRORS` of that error. A single image may lie `LOWEST` below it.
        sets: Sets of LR images, each ``(B, C, H, W)`` in 0..1.
    """

    def __init__(self, wanted: float, sets: Sequence[Tensor]) -> None:
        self.wanted = wanted
        self.sets = sets

    def missing(self, net: QuantizedNetwork) -> float:
        """See `Goal`."""
        missing = -math.inf
        for images in self.sets:
            errors = self_errors(net, images)
            pooled = float(
                psnr_of_errors(errors.mean() + STANDARD_ERRORS * _standard_error(errors))
            )
            worst = float(psnr_of_errors(errors.max()))
            missing = max(missing, self.wanted - pooled, self.wanted - LOWEST - worst)
        return missing

    def self_psnr(self, net: QuantizedNetwork) -> float:
        """See `Goal`."""
        return self.wanted

    def images(self) -> list[Tensor]:
        """See `Goal`."""
        return list(self.sets)

    def out_of_reach(self, net: QuantizedNetwork) -> AdaBMError:
        """See `Goal`."""
        nearest = self.wanted - self.missing(net)
        return AdaBMError(
            f"target: self_psnr: {self.wanted:g} is out of reach: with all layers but one in float "
            f"it is {nearest:.2f} dB"
        )


def _standard_error(errors: Tensor) -> Tensor:
    """Standard error of the mean of values ``(B,)``, a scalar; 0 of a single one."""
    if len(errors) == 1:
        return errors.new_zeros(())
    return errors.std() / len(errors) ** 0.5


class PsnrDropGoal(Goal):
    """A loss of PSNR against ground truth, in the mean over pairs.

    Where quantization errs independently of what full precision gets wrong, both squared errors add
    up: a loss of ``d`` dB is an error of ``10 ** (d / 10) - 1`` times that of full precision.

    Args:
        allowed: Loss in dB, above 0.
        pairs: LR image and ground truth, ``(1, C, H, W)`` and ``(1, C, sH, sW)`` in 0..1; or a
            clip and its truth, that of all frames or of the middle one.
    """

    def __init__(self, allowed: float, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.allowed = allowed
        self.pairs = pairs

    def missing(self, net: QuantizedNetwork) -> float:
        """See `Goal`."""
        drop = self.drop(net)
        return self._decibels(max(drop, LEAST_DROP)) - self._decibels(self.allowed)

    def self_psnr(self, net: QuantizedNetwork) -> float:
        """See `Goal`."""
        with net.full_precision():
            of_full = self._psnr(net)
        return of_full - self._decibels(self.allowed)

    def images(self) -> list[Tensor]:
        """See `Goal`."""
        return [low for low, _ in self.pairs]

    def out_of_reach(self, net: QuantizedNetwork) -> AdaBMError:
        """See `Goal`."""
        return AdaBMError(
            f"target: psnr_drop: {self.allowed:g} is out of reach: with all layers but one in "
            f"float it is {self.drop(net):.3f} dB"
        )

    def drop(self, net: QuantizedNetwork) -> float:
        """Loss of PSNR in dB against full precision, below 0 where quantization gains."""
        with net.full_precision():
            of_full = self._psnr(net)
        return of_full - self._psnr(net)

    @torch.no_grad()
    def _psnr(self, net: QuantizedNetwork) -> float:
        """Mean PSNR in dB against ground truth."""
        of_pairs = []
        for low, truth in self.pairs:
            output = net(low)
            if output.dim() > truth.dim():
                output = middle_frame(output)
            of_pairs.append(pixel_psnr(output, truth))
        return sum(of_pairs) / len(of_pairs)

    @staticmethod
    def _decibels(drop: float) -> float:
        """The error that a loss allows, in dB of the error of full precision."""
        return 10 * math.log10(10 ** (drop / 10) - 1)


def worst_images(net: QuantizedNetwork, images: Tensor, count: int) -> Tensor:
    """At most ``count`` of the images, those whose errors are largest.

    Values that were not seen when ranges were found are clipped there, if anywhere: which layers do
    it shows in no other images.
    """
    order = self_errors(net, images).argsort(descending=True, stable=True)
    return images[order[:count]]


def choose_for_float(net: QuantizedNetwork, images: Tensor, missing: float) -> list[str]:
    """Layers to keep in float, so that a network gains what is missing, for the fewest MACs.

    Args:
        net: A calibrated network.
        images: LR images that errors are measured on, ``(B, C, H, W)`` in 0..1.
        missing: What it falls short of, in dB.

    Returns:
        Their names in execution order; never all that are quantized.
    """
    errors = measure_errors(net, images, measure_gains(net, images))
    sums = {quantizer: sum(of_images) for quantizer, of_images in errors.items()}
    total = sum(sums.values())
    left = total
    enough = total * 10 ** (-(missing + MARGIN) / 10)
    costs = {name: max(net.structure.macs[name], 1) for name in net.plan.layers}
    gains = _gains(net, sums)
    order = sorted(costs, key=lambda name: gains[name] / costs[name], reverse=True)
    chosen = []
    for name in order[:-1]:
        if left <= enough:
            break
        chosen.append(name)
        left -= gains[name]
    # What was taken early may no longer be needed.
    for name in sorted(chosen, key=lambda name: costs[name], reverse=True):
        if left + gains[name] <= enough:
            chosen.remove(name)
            left += gains[name]
    return [name for name in net.plan.layers if name in chosen]


def _gains(net: QuantizedNetwork, errors: dict[nn.Module, float]) -> dict[str, float]:
    """Squared error that goes with each layer or product, once it is in float.

    An input's quantizer that several layers share stays for the others.
    """
    places: dict[nn.Module, int] = {}
    for name, layer in net.layers().items():
        for quantizer in layer.inputs(name).values():
            places[quantizer] = places.get(quantizer, 0) + 1
    gains = {}
    for name, layer in net.layers().items():
        gain = 0.0
        for quantizer in layer.inputs(name).values():
            if places[quantizer] == 1:
                gain += errors.get(quantizer, 0.0)
        if isinstance(layer, QuantizedLayer):
            gain += errors.get(layer.weight_quantizer, 0.0)
        gains[name] = gain
    return gains


def describe_kept(net: QuantizedNetwork, before: float, after: float) -> KeptInFloat:
    """What the layers that are kept in float cost and bought; see `KeptInFloat`."""
    structure = net.structure
    macs = 0
    size = 0
    for name in net.kept_in_float:
        macs += structure.macs[name]
        if name not in structure.products:
            weight = net.network.get_submodule(name).get_parameter("weight")
            size += weight.numel() * (FLOAT_BITS - FIXED_BITS) // 8
    share = macs / structure.total_macs
    return KeptInFloat(
        layers=net.kept_in_float,
        images_share=0.0,
        macs_share=share,
        bitops_share=share * (1 - (FIXED_BITS / FLOAT_BITS) ** 2),
        bytes=size,
        before=before,
        after=after,
    )


def describe_kept_images(
    net: QuantizedNetwork, share: float, images: Tensor, before: float
) -> KeptInFloat:
    """What images that are kept in float cost and bought; see `KeptInFloat`.

    Args:
        net: The calibrated network, with which they are.
        share: Their share of all images, 0..1.
        images: LR images that it is measured on, ``(B, C, H, W)`` in 0..1.
        before: Self-PSNR in dB on these where all were quantized.
    """
    after = pooled_psnr(net, images)
    size = size_bytes(net)
    above = net.full_precision_above
    net.full_precision_above = None
    quantized_size = size_bytes(net)
    cost = cost_of(net, images)
    net.full_precision_above = above
    structure = net.structure
    macs = sum(structure.macs[name] for name in net.plan.layers)
    return KeptInFloat(
        layers=[],
        images_share=share,
        macs_share=share * macs / structure.total_macs,
        bitops_share=share * (1 - cost.bitops / cost.float_bitops),
        bytes=size - quantized_size,
        before=before,
        after=after,
    )
