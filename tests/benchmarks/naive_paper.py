"""The recipe ``paper`` written plainly, formula by formula, to measure and check the package with.

Every step is a chain of torch operations, gradients reach whatever they can, the teacher is a
second network and searches loop over their candidates. Only the choice of layers is the package's
own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adabm_basicsr.quantization.network import QuantizedNetwork

RATES = {
    "weight_range": 0.01,
    "activation_range": 0.01,
    "layer_factor": 0.01,
    "image_threshold": 0.1,
}


def straight_through(soft: Tensor, hard: Tensor) -> Tensor:
    """The value of ``hard`` with the gradient of ``soft``."""
    return soft - soft.detach() + hard.detach()


def quantize(x: Tensor, lower: Tensor, upper: Tensor, bits: Tensor | int) -> Tensor:
    """``x`` rounded to ``2**bits`` grid points between ``lower`` and ``upper``."""
    levels = 2**bits - 1
    clamped = torch.max(torch.min(x, upper), lower)
    scaled = (clamped - lower) / (upper - lower) * levels
    rounded = straight_through(scaled, scaled.round())
    return rounded / levels * (upper - lower) + lower


def complexity(image: Tensor) -> Tensor:
    """Mean gradient of each image, ``(B, 3, H, W)`` to ``(B,)``."""
    grey = (image * image.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    sobel = image.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    responses = []
    for kernel in (sobel, sobel.t()):
        response = F.conv2d(padded, kernel.view(1, 1, 3, 3))
        responses.append(response.abs().mean((1, 2, 3)))
    return 1000 * torch.stack(responses).mean(0)


class NaiveConv2d(nn.Module):
    """A convolution with fake-quantized input and weight.

    Args:
        conv: The convolution in full precision.
        w_bits: Bits of its weight.
        a_bits: Bits of its input, before both mappings.
        adaptive: Whether layer and image change the bits of its input.
        fixed: Whether it is of the head or tail, whose bits don't count in the average.
    """

    def __init__(
        self, conv: nn.Conv2d, w_bits: int, a_bits: int, adaptive: bool, fixed: bool
    ) -> None:
        super().__init__()
        self.conv = conv
        self.w_bits = w_bits
        self.a_bits = a_bits
        self.adaptive = adaptive
        self.fixed = fixed
        self.weight_upper = nn.Parameter(torch.ones(1))
        self.lower = nn.Parameter(torch.zeros(1))
        self.upper = nn.Parameter(torch.ones(1))
        self.factor = nn.Parameter(torch.zeros(1))
        self.image_factor: Tensor | None = None
        self.mode = "quantize"
        self.deviations: list[Tensor] = []
        self.ranges: Tensor | None = None
        self.bits: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C', H, W)``; what is learned from ``x`` depends on the mode."""
        if self.mode == "calibrate":
            self._observe(x)
            return self.conv(x)
        if self.mode == "clip" and self.a_bits < 8:
            self._clip(x)
        self.bits = self._bits().expand(len(x))
        weight = quantize(self.conv.weight, -self.weight_upper, self.weight_upper, self.w_bits)
        x = quantize(x, self.lower, self.upper, self.bits.view(-1, 1, 1, 1))
        return F.conv2d(
            x,
            weight,
            self.conv.bias,
            self.conv.stride,
            self.conv.padding,
            self.conv.dilation,
            self.conv.groups,
        )

    def _bits(self, of_image: bool = True) -> Tensor:
        """Bit-width of each image, or with ``of_image=False`` that of an image of the middle."""
        if not self.adaptive:
            return self.lower.new_full((1,), float(self.a_bits))
        factor = straight_through(torch.tanh(self.factor), self.factor.clamp(-1, 1).round())
        bits = self.a_bits + factor
        if of_image:
            bits = bits + self.image_factor
        return bits

    def _observe(self, x: Tensor) -> None:
        """Moving averages of the ends of ``x``, and its deviations."""
        found = torch.stack([x.min(), x.max()])
        if self.ranges is None:
            self.ranges = found
        else:
            self.ranges = 0.9 * self.ranges + 0.1 * found
        self.deviations.append(x.flatten(1).std(1).mean())

    @torch.no_grad()
    def _clip(self, x: Tensor) -> None:
        """Move the range halfway to the one, of 100, that quantizes ``x`` with the least error."""
        bits = self._bits(of_image=False)
        errors = []
        for i in range(100):
            shrink = 1 - 0.01 * i
            quantized = quantize(x, self.lower * shrink, self.upper * shrink, bits)
            errors.append((quantized - x).square().mean())
        best = 1 - 0.01 * int(torch.stack(errors).argmin())
        self.lower.mul_(0.5 + 0.5 * best)
        self.upper.mul_(0.5 + 0.5 * best)

    @torch.no_grad()
    def search_weight_range(self, bits: int) -> None:
        """Take the range, of 50, that quantizes the weight with the least error."""
        weight = self.conv.weight
        candidates = [weight.max().view(1) * (1 - 0.01 * i) for i in range(50)]
        errors = []
        for upper in candidates:
            errors.append((quantize(weight, -upper, upper, bits) - weight).square().mean())
        self.weight_upper.copy_(candidates[int(torch.stack(errors).argmin())])


class NaivePaper:
    """Calibrates, clips and fine-tunes a copy of a network.

    Args:
        network: The network in full precision.
        planned: The package's quantized network, whose layers and blocks are taken.
    """

    def __init__(self, network: nn.Module, planned: QuantizedNetwork) -> None:
        self.base = planned.config
        self.teacher = copy.deepcopy(network).eval()
        self.student = copy.deepcopy(network).eval()
        self.layers: list[NaiveConv2d] = []
        for name, plan in planned.plan.layers.items():
            conv = self.student.get_submodule(name)
            layer = NaiveConv2d(conv, plan.w_bits, plan.a_bits, plan.adaptive, plan.fixed)
            parent, _, child = name.rpartition(".")
            setattr(self.student.get_submodule(parent), child, layer)
            self.layers.append(layer)
        lower = nn.Parameter(torch.zeros(1))
        upper = nn.Parameter(torch.zeros(1))
        self.thresholds = nn.ParameterList([lower, upper])
        self.features: list[Tensor] = []
        for net in (self.teacher, self.student):
            for name in planned.structure.blocks:
                net.get_submodule(name).register_forward_hook(self._keep_features)
        device = next(network.parameters()).device
        self.student.to(device)
        self.thresholds.to(device)
        self.optimizers = self._optimizers()

    def _keep_features(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.features.append(output)

    def _optimizers(self) -> list[torch.optim.Adam]:
        """One for each phase: ranges of weights, ranges of activations, bits."""
        weight_ranges = [layer.weight_upper for layer in self.layers]
        activation_ranges = []
        for layer in self.layers:
            activation_ranges += [layer.lower, layer.upper]
        factors = [layer.factor for layer in self.layers if layer.adaptive]
        phases = [
            [{"params": weight_ranges, "lr": RATES["weight_range"]}],
            [{"params": activation_ranges, "lr": RATES["activation_range"]}],
            [
                {"params": factors, "lr": RATES["layer_factor"]},
                {"params": list(self.thresholds), "lr": RATES["image_threshold"]},
            ],
        ]
        return [torch.optim.Adam(groups) for groups in phases]

    def forward(self, image: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in 0..1 to ``(B, 3, sH, sW)``, each image with its own bits."""
        lower, upper = self.thresholds
        value = complexity(image)
        hard = (value > upper).float() - (value < lower).float()
        soft = torch.tanh((value - (upper + lower) / 2) * 2 / (upper - lower))
        factor = straight_through(soft, hard)
        for layer in self.layers:
            layer.image_factor = factor
        return self.student(image)

    def _set_mode(self, mode: str) -> None:
        for layer in self.layers:
            layer.mode = mode

    @torch.no_grad()
    def calibrate(self, batches: list[Tensor]) -> None:
        """Find ranges, layer factors and thresholds."""
        self._set_mode("calibrate")
        thresholds = None
        for batch in batches:
            self.student(batch)
            found = torch.quantile(complexity(batch), batch.new_tensor([0.1, 0.9]))
            if thresholds is None:
                thresholds = found
            else:
                thresholds = 0.9 * thresholds + 0.1 * found
        self._set_mode("quantize")

        deviations = torch.stack([torch.stack(layer.deviations).mean() for layer in self.layers])
        adaptive = [layer.adaptive for layer in self.layers]
        adaptive = deviations.new_tensor(adaptive, dtype=torch.bool)
        low, high = torch.quantile(deviations[adaptive], deviations.new_tensor([0.3, 0.7]))
        for layer, deviation in zip(self.layers, deviations, strict=True):
            layer.lower.copy_(layer.ranges[:1])
            layer.upper.copy_(layer.ranges[1:])
            factor = 0.0
            if layer.adaptive:
                factor = float(deviation > high) - float(deviation < low)
            layer.factor.fill_(factor)
            layer.search_weight_range(self.base.w_bits if layer.fixed else layer.w_bits)
        for threshold, value in zip(self.thresholds, thresholds, strict=True):
            threshold.fill_(value)

    @torch.no_grad()
    def clip(self, batch: Tensor) -> None:
        """Narrow the ranges of activations to what quantizes this batch best."""
        self._set_mode("clip")
        self.forward(batch)
        self._set_mode("quantize")

    def step(self, batch: Tensor, epoch: int) -> dict[str, float]:
        """One iteration of fine-tuning, of an epoch from 0; its losses and average bits."""
        with torch.no_grad():
            target, target_features = self._run(self.teacher, batch)
        output, features = self._run(self.forward, batch)
        losses = {"l_pix": 255 * (output - target).abs().mean()}
        distances = []
        for ours, theirs in zip(features, target_features, strict=True):
            apart = ours / ours.norm() - theirs / theirs.norm()
            distances.append(apart.flatten(1).norm(dim=1).mean() / len(batch))
        losses["l_feat"] = 10 * torch.stack(distances).mean()
        fab = torch.stack([layer.bits for layer in self.layers if not layer.fixed]).mean()
        if epoch % 3 == 2:
            losses["l_bit"] = 50 * (fab - self.base.a_bits).clamp(min=0)

        optimizer = self.optimizers[epoch % 3]
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("first_lr", group["lr"]) * 0.9 ** (epoch // 3)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

        figures = {name: float(loss.detach()) for name, loss in losses.items()}
        figures["fab"] = float(fab.detach())
        return figures

    def _run(
        self, network: Callable[[Tensor], Tensor], batch: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Output of a network, and features of its blocks."""
        self.features = []
        output = network(batch)
        return output, self.features
