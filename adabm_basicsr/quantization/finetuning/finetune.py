"""Step 3, fine-tuning: ranges and bit mappings learn to give the teacher's output.

The teacher is the network in full precision. `Finetuner.step` is one iteration: clip the first
time, choose what is trained, run student and teacher, add up the losses, find gradients, move.
docs/paper.md has the equations of recipe ``paper``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from adabm_basicsr.errors import AdaBMError, OptionError, check_keys
from adabm_basicsr.quantization.calibration.calibrate import representative
from adabm_basicsr.quantization.calibration.clipping import clip
from adabm_basicsr.quantization.distributed import mean_over_processes, set_mean_gradients
from adabm_basicsr.quantization.fields import option
from adabm_basicsr.quantization.finetuning.best_state import PATCHES, BestState
from adabm_basicsr.quantization.finetuning.losses import PIXEL_LOSSES, feature_loss
from adabm_basicsr.quantization.finetuning.optimizer import (
    BIT_MAPPING,
    RelativeAdam,
    parameter_groups,
)
from adabm_basicsr.quantization.finetuning.parts import gradients_of, join, run_in_parts
from adabm_basicsr.quantization.finetuning.teacher import Teacher
from adabm_basicsr.quantization.finetuning.trial import can_finetune
from adabm_basicsr.quantization.gradients import gradients_of_overwritten
from adabm_basicsr.quantization.network import Details, QuantizedNetwork, Stage
from adabm_basicsr.quantization.precision import full_float32
from adabm_basicsr.quantization.recipes import RELATIVE_RATES
from adabm_basicsr.quantization.user_code import users_code

# The paper's constants are for pixels in 0..255, the networks' output is in 0..1.
PIXEL_RANGE = 255.0
WARM_UP = 0.1  # share of a run in which learning rates rise
BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass
class FinetuneSettings:
    """Constants of fine-tuning; each field's metadata says in a sentence what it does.

    The defaults are the recipe's own, of ``paper`` the paper's.
    """

    learning_rates: dict[str, float] = option(
        "Learning rates that differ from the recipe's own, of weight_range, activation_range, "
        "layer_factor, image_threshold, weight_correction and bias; 0 keeps what was calibrated.",
        {},
        keys=tuple(RELATIVE_RATES),
        minimum=0,
    )
    lr_decay: float | None = option(
        "Factor on a phase's learning rates after each of its own epochs; the recipe's own by "
        "default.",
        None,
        minimum=0,
    )
    feature_weight: float | None = option(
        "Weight of the feature loss; the recipe's own by default.",
        None,
        minimum=0,
    )
    bit_weight: float = option(
        "Weight of the bit loss, of recipes that train bit mappings.",
        50.0,
        minimum=0,
    )

    @classmethod
    def from_options(cls, options: dict) -> FinetuneSettings:
        """Settings from a mapping, ``train: finetune:`` in YAML.

        Learning rates that are not given are the recipe's.

        Raises:
            OptionError: A key is unknown, or a value is no number or below 0.
        """
        settings = cls()
        check_keys("train: finetune", options, [f.name for f in fields(cls)])
        given = {key: value for key, value in options.items() if value is not None}
        rates = given.pop("learning_rates", {})
        if not isinstance(rates, Mapping):
            raise OptionError(
                f"train: finetune: learning_rates: {rates!r} is not a section of keys"
            )
        check_keys("train: finetune: learning_rates", rates, RELATIVE_RATES)
        for key, value in [*given.items(), *rates.items()]:
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not 0 <= value < math.inf:
                raise OptionError(
                    f"train: finetune: {key}: {value!r} is not a number of at least 0"
                )
        settings.learning_rates.update(rates)
        for key, value in given.items():
            setattr(settings, key, float(value))
        return settings


class Finetuner:
    """Trains ranges and bit mappings, a phase per epoch in turn.

    Args:
        net: A calibrated network.
        settings: Learning rates and loss weights.
        iterations_per_epoch: Length of an epoch; phases and learning rates follow from the
            iteration alone, so a resumed run continues as if it had not been interrupted.
        total_iterations: Length of the run, over which learning rates fade out where no
            ``lr_decay`` is set.

    Attributes:
        phases: Names of the phases that have something to train.
        optimizers: One Adam per phase.
        best: The best state so far; None of recipes that keep the last one.
    """

    def __init__(
        self,
        net: QuantizedNetwork,
        settings: FinetuneSettings,
        iterations_per_epoch: int,
        total_iterations: int = 400,
    ) -> None:
        recipe = net.config.finetuning
        self.net = net
        self.settings = settings
        self.iterations_per_epoch = iterations_per_epoch
        self.total_iterations = total_iterations
        self.teacher = Teacher(net)
        self.pixel_loss = PIXEL_LOSSES[recipe.pixel_loss]
        self.feature_weight = recipe.feature_weight
        if settings.feature_weight is not None:
            self.feature_weight = settings.feature_weight
        self.lr_decay = recipe.lr_decay
        if settings.lr_decay is not None:
            self.lr_decay = settings.lr_decay
        rates = dict(recipe.learning_rates)
        rates.update(settings.learning_rates)
        optimizer_type = RelativeAdam if recipe.relative_steps else torch.optim.Adam
        self.phases: list[str] = []
        self.optimizers: list[torch.optim.Adam] = []
        for phase in recipe.phases:
            groups = parameter_groups(net, phase, rates)
            if groups:
                self.phases.append(phase)
                self.optimizers.append(optimizer_type(groups, betas=BETAS, eps=EPSILON))
        self.best: BestState | None = None
        if recipe.keep_best:
            self.best = BestState(self._trained(), total_iterations)

    def _trained(self) -> list[nn.Parameter]:
        """What the phases train, each parameter once."""
        trained: dict[nn.Parameter, None] = {}
        for optimizer in self.optimizers:
            trained.update(dict.fromkeys(_parameters_of(optimizer)))
        return list(trained)

    # What is trained when

    def phase_index(self, iteration: int) -> int:
        """Index of the phase of an iteration, counted from 1."""
        epoch = (iteration - 1) // self.iterations_per_epoch
        return epoch % len(self.phases)

    def optimizer(self, iteration: int) -> torch.optim.Adam:
        """The optimizer of an iteration's phase, its learning rates set for that iteration."""
        optimizer = self.optimizers[self.phase_index(iteration)]
        for group in optimizer.param_groups:
            group["lr"] = group["first_lr"] * self._rate(iteration)
        return optimizer

    def _rate(self, iteration: int) -> float:
        """Factor on the first learning rates.

        With ``lr_decay`` it is multiplied by that after each epoch of the phase; without, it
        follows half a cosine over the run.
        """
        if self.lr_decay is None:
            done = min((iteration - 1) / self.total_iterations, 1)
            # Adam's first moves follow signs alone.
            warm = min(iteration / (WARM_UP * self.total_iterations), 1)
            return warm * (1 + math.cos(math.pi * done)) / 2
        epoch = (iteration - 1) // self.iterations_per_epoch
        epochs_of_phase = epoch // len(self.phases)
        return self.lr_decay**epochs_of_phase

    def _train_only(self, parameters: Sequence[nn.Parameter]) -> None:
        trained = set(parameters)
        for parameter in self.net.parameters():
            parameter.requires_grad_(parameter in trained)

    # Clipping

    @property
    def needs_clipping(self) -> bool:
        """Whether the recipe clips ranges before it trains them, and they aren't clipped yet."""
        return self.net.config.calibration.clip and self.net.reached < Stage.CLIPPED

    def clip(self, images: Tensor) -> None:
        """Clip the ranges on a batch of LR patches, ``(B, C, H, W)`` in 0..1, for all processes."""
        clip(self.net, images)

    # Iterations

    @full_float32()
    def can_train(self, images: Tensor) -> bool:
        """Whether gradients reach what is trained; a warning says why not.

        Where they don't, the network stays as it was calibrated, and is clipped all the same.

        Args:
            images: LR patches of the first batch, ``(B, C, H, W)`` in 0..1.
        """
        phases = [_parameters_of(optimizer) for optimizer in self.optimizers]
        if can_finetune(self.net, phases, images):
            return True
        if self.needs_clipping:
            self.clip(images)
        return False

    @full_float32()
    @torch.enable_grad()  # a network's module may switch them off for all code
    def step(
        self,
        images: Tensor,
        iteration: int,
        forward: nn.Module | None = None,
        keys: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """One iteration on a batch of LR patches.

        Args:
            images: ``(B, C, H, W)`` in 0..1. Several processes (torch.distributed) each take their
                own part of a batch, all of one size.
            iteration: Counted from 1; it decides what is trained.
            forward: What to call instead of the network itself, such as a ``DataParallel`` wrapper
                of it.
            keys: A key for each patch that comes back unchanged in later epochs; see `Teacher`.

        Returns:
            Losses and mean bits before the update, scalars; of all processes' images.

        Raises:
            AdaBMError: The loss is not finite.
        """
        with gradients_of_overwritten(self.net):
            return self._step(images, iteration, forward, keys)

    def _step(
        self,
        images: Tensor,
        iteration: int,
        forward: nn.Module | None,
        keys: Sequence[int] | None,
    ) -> dict[str, Tensor]:
        if forward is None:
            forward = self.net
        if self.needs_clipping:
            self.clip(images)

        optimizer = self.optimizer(iteration)
        parameters = _parameters_of(optimizer)
        self._train_only(parameters)

        parts = run_in_parts(forward, images)
        student = join(parts)
        teacher = self.teacher(images, forward, keys)
        losses = self._losses(student, teacher, len(parts))
        total = losses["l_pix"] + losses["l_feat"]
        if self.phases[self.phase_index(iteration)] == BIT_MAPPING:
            total = total + losses["l_bit"]
        loss = float(total.detach())
        if not math.isfinite(loss):
            raise AdaBMError(f"fine-tuning diverged: the loss of iteration {iteration} is {loss}")

        optimizer.zero_grad()
        network = self.net.network
        with users_code(network, f"fine-tuning can't find gradients of {type(network).__name__}"):
            total.backward()
            gradients = gradients_of(parts, student, parameters)
        set_mean_gradients(parameters, gradients)
        if isinstance(optimizer, RelativeAdam):
            optimizer.step(loss=loss)
        else:
            optimizer.step()
        return {name: value.detach().float() for name, value in losses.items()}

    @full_float32()
    @torch.no_grad()
    def loss(self, images: Tensor, forward: nn.Module | None = None) -> float:
        """How far the network is from full precision on some LR patches: pixels and features.

        Full precision is computed once: call it with the same patches each time.

        Args:
            images: ``(B, C, H, W)`` in 0..1.
            forward: What to call instead of the network itself.
        """
        if forward is None:
            forward = self.net
        # Below 0, where no patch of the training has its key.
        keys = range(-len(images), 0)
        teacher = self.teacher(images, forward, keys)
        student = forward(images, True)
        losses = self._losses(student, teacher, parts=1)
        return float(losses["l_pix"] + losses["l_feat"])

    def check(self, images: Tensor, iteration: int, forward: nn.Module | None = None) -> float:
        """`loss` after an iteration; the state is kept if it is the best so far.

        Args:
            images: ``(B, C, H, W)`` in 0..1, the same each time.
            iteration: Counted from 1; 0 for the calibrated state.
            forward: What to call instead of the network itself.
        """
        loss = self.loss(images, forward)
        if self.best is not None:
            self.best.offer(iteration, loss)
        return loss

    def is_check_due(self, iteration: int) -> bool:
        """Whether `check` is to be called after an iteration."""
        if self.best is None:
            return False
        return iteration == self.total_iterations or self.best.is_due(iteration)

    def _losses(self, student: Details, teacher: Details, parts: int) -> dict[str, Tensor]:
        """Losses and mean bits, scalars.

        l_pix = 255 * distance of the images;   l_feat = feature weight * distance of the features
        l_bit = bit weight * max(0, mean bits - base bits)
        """
        bits = mean_over_processes(student.bits.double().mean())
        features = feature_loss(student.features, teacher.features, parts, bits.device)
        features = mean_over_processes(features.to(bits.device))
        pixels = mean_over_processes(self.pixel_loss(student.output - teacher.output))
        excess = (bits - float(self.net.config.a_bits)).clamp(min=0)
        return {
            "l_pix": PIXEL_RANGE * pixels,
            "l_feat": self.feature_weight * features,
            "l_bit": self.settings.bit_weight * excess,
            "fab": bits,
        }


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    parameters = []
    for group in optimizer.param_groups:
        parameters.extend(group["params"])
    return parameters


def finetune(
    net: QuantizedNetwork,
    batches: Iterable[Tensor],
    settings: FinetuneSettings | None = None,
    iterations_per_epoch: int = 40,
    total_iterations: int | None = None,
) -> QuantizedNetwork:
    """Clip and fine-tune a calibrated network.

    Of recipes other than ``paper`` the state of smallest loss is kept, on a few of the patches; it
    may be the calibrated one.

    A network that gradients don't go through stays as it was calibrated; a warning says why.

    Args:
        net: The calibrated network; changed in place.
        batches: LR patches of all epochs one after the other, each ``(B, C, H, W)`` in 0..1.
            Several processes (torch.distributed) each take their own part of every batch, all of
            one size.
        settings: Learning rates and loss weights; the recipe's own by default.
        iterations_per_epoch: Batches that make an epoch, after which the next phase begins.
        total_iterations: Number of batches, if these aren't a sequence.

    Returns:
        ``net``.

    Raises:
        AdaBMError: The recipe has nothing to fine-tune, or the loss is not finite.
    """
    if not total_iterations:
        batches = list(batches)
        total_iterations = len(batches)
    if settings is None:
        settings = FinetuneSettings()
    tuner = Finetuner(net, settings, iterations_per_epoch, total_iterations)
    if not tuner.phases:
        raise AdaBMError(f"recipe {net.config.recipe!r} has nothing to fine-tune")
    batches = iter(batches)
    first = list(itertools.islice(batches, 2 * PATCHES))
    if not first or not tuner.can_train(first[0]):
        return net
    patches = representative(first, PATCHES)
    if tuner.is_check_due(0):
        tuner.check(patches, 0)
    for iteration, batch in enumerate(itertools.chain(first, batches), start=1):
        tuner.step(batch, iteration)
        if tuner.is_check_due(iteration):
            tuner.check(patches, iteration)
    if tuner.best is not None:
        tuner.best.restore()
    return net
