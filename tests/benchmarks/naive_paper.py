"""The recipe ``paper`` written plainly, formula by formula: what the optimised package is measured and checked against.

Every step is a chain of torch operations, gradients reach whatever they can, the teacher is a second network and
searches loop over their candidates. Only the choice of layers is the package's own.
"""

from __future__ import annotations

import copy

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
    return soft - soft.detach() + hard.detach()


def quantize(x: Tensor, lower: Tensor, upper: Tensor, bits: Tensor | int) -> Tensor:
    levels = 2**bits - 1
    clamped = torch.max(torch.min(x, upper), lower)
    scaled = (clamped - lower) / (upper - lower) * levels
    rounded = straight_through(scaled, scaled.round())
    return rounded / levels * (upper - lower) + lower


def complexity(image: Tensor) -> Tensor:
    grey = (image * image.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    sobel = image.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    responses = [
        F.conv2d(padded, kernel.view(1, 1, 3, 3)).abs().mean((1, 2, 3))
        for kernel in (sobel, sobel.t())
    ]
    return 1000 * torch.stack(responses).mean(0)


class NaiveConv2d(nn.Module):
    """A convolution with fake-quantized input and weight."""

    def __init__(
        self, conv: nn.Conv2d, w_bits: int, a_bits: int, adaptive: bool, fixed: bool
    ) -> None:
        super().__init__()
        self.conv, self.w_bits, self.a_bits, self.adaptive, self.fixed = (
            conv,
            w_bits,
            a_bits,
            adaptive,
            fixed,
        )
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
        if not self.adaptive:
            return self.lower.new_full((1,), float(self.a_bits))
        factor = straight_through(torch.tanh(self.factor), self.factor.clamp(-1, 1).round())
        return self.a_bits + factor + (self.image_factor if of_image else 0)

    def _observe(self, x: Tensor) -> None:
        found = torch.stack([x.min(), x.max()])
        self.ranges = found if self.ranges is None else 0.9 * self.ranges + 0.1 * found
        self.deviations.append(x.flatten(1).std(1).mean())

    def _clip(self, x: Tensor) -> None:
        with torch.no_grad():
            bits, errors = self._bits(of_image=False), []
            for i in range(100):
                shrink = 1 - 0.01 * i
                errors.append(
                    (quantize(x, self.lower * shrink, self.upper * shrink, bits) - x)
                    .square()
                    .mean()
                )
            best = 1 - 0.01 * int(torch.stack(errors).argmin())
            self.lower.mul_(0.5 + 0.5 * best)
            self.upper.mul_(0.5 + 0.5 * best)

    def search_weight_range(self, bits: int) -> None:
        with torch.no_grad():
            weight, errors = self.conv.weight, []
            candidates = [weight.max().view(1) * (1 - 0.01 * i) for i in range(50)]
            for upper in candidates:
                errors.append((quantize(weight, -upper, upper, bits) - weight).square().mean())
            self.weight_upper.copy_(candidates[int(torch.stack(errors).argmin())])


class NaivePaper:
    """Calibrates, clips and fine-tunes a copy of a network; takes its layers and blocks from ``planned``."""

    def __init__(self, network: nn.Module, planned: QuantizedNetwork) -> None:
        self.base = planned.config
        self.teacher, self.student = copy.deepcopy(network).eval(), copy.deepcopy(network).eval()
        self.layers: list[NaiveConv2d] = []
        for name, plan in planned.plan.layers.items():
            parent, _, child = name.rpartition(".")
            layer = NaiveConv2d(
                self.student.get_submodule(name),
                plan.w_bits,
                plan.a_bits,
                plan.adaptive,
                plan.fixed,
            )
            setattr(self.student.get_submodule(parent), child, layer)
            self.layers.append(layer)
        self.thresholds = nn.ParameterList(
            [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
        )
        self.features: list[Tensor] = []
        for net in (self.teacher, self.student):
            for name in planned.structure.blocks:
                net.get_submodule(name).register_forward_hook(
                    lambda m, args, out: self.features.append(out)
                )
        device = next(network.parameters()).device
        self.student.to(device)
        self.thresholds.to(device)
        self.optimizers = self._optimizers()

    def _optimizers(self) -> list[torch.optim.Adam]:
        factors = [layer.factor for layer in self.layers if layer.adaptive]
        groups = [
            [
                {
                    "params": [layer.weight_upper for layer in self.layers],
                    "lr": RATES["weight_range"],
                }
            ],
            [
                {
                    "params": [p for q in self.layers for p in (q.lower, q.upper)],
                    "lr": RATES["activation_range"],
                }
            ],
            [
                {"params": factors, "lr": RATES["layer_factor"]},
                {"params": list(self.thresholds), "lr": RATES["image_threshold"]},
            ],
        ]
        return [torch.optim.Adam(group) for group in groups]

    def forward(self, image: Tensor) -> Tensor:
        lower, upper = self.thresholds
        value = complexity(image)
        hard = (value > upper).float() - (value < lower).float()
        factor = straight_through(
            torch.tanh((value - (upper + lower) / 2) * 2 / (upper - lower)), hard
        )
        for layer in self.layers:
            layer.image_factor = factor
        return self.student(image)

    def _set_mode(self, mode: str) -> None:
        for layer in self.layers:
            layer.mode = mode

    @torch.no_grad()
    def calibrate(self, batches: list[Tensor]) -> None:
        self._set_mode("calibrate")
        thresholds = None
        for batch in batches:
            self.student(batch)
            found = torch.quantile(complexity(batch), batch.new_tensor([0.1, 0.9]))
            thresholds = found if thresholds is None else 0.9 * thresholds + 0.1 * found
        self._set_mode("quantize")
        deviations = torch.stack([torch.stack(layer.deviations).mean() for layer in self.layers])
        adaptive = deviations.new_tensor(
            [layer.adaptive for layer in self.layers], dtype=torch.bool
        )
        low, high = torch.quantile(deviations[adaptive], deviations.new_tensor([0.3, 0.7]))
        for layer, deviation in zip(self.layers, deviations):
            layer.lower.copy_(layer.ranges[:1])
            layer.upper.copy_(layer.ranges[1:])
            layer.factor.fill_(
                float(deviation > high) - float(deviation < low) if layer.adaptive else 0
            )
            layer.search_weight_range(self.base.w_bits if layer.fixed else layer.w_bits)
        for threshold, value in zip(self.thresholds, thresholds):
            threshold.fill_(value)

    @torch.no_grad()
    def clip(self, batch: Tensor) -> None:
        self._set_mode("clip")
        self.forward(batch)
        self._set_mode("quantize")

    def step(self, batch: Tensor, epoch: int) -> dict[str, float]:
        with torch.no_grad():
            self.features = []
            target, target_features = self.teacher(batch), self.features
        self.features = []
        output, features = self.forward(batch), self.features
        losses = {"l_pix": 255 * (output - target).abs().mean()}
        distances = [
            (s / s.norm() - t / t.norm()).flatten(1).norm(dim=1).mean() / len(batch)
            for s, t in zip(features, target_features)
        ]
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
        return {
            **{name: float(loss.detach()) for name, loss in losses.items()},
            "fab": float(fab.detach()),
        }
