"""Follows fine-tuning phase by phase: a bar and a line for each, with the loss before and after."""

from __future__ import annotations

import time

from basicsr.utils import get_root_logger
from torch import Tensor, nn

from adabm_basicsr.quantization.finetuning.finetune import Finetuner
from adabm_basicsr.quantization.progress import Bar, progress
from adabm_basicsr.runs.record import RunRecord

DIVERGED = 2.0  # factor on the first loss; runs that are too short stay below it
PHASE_NAMES = {
    "weight_range": "weight ranges",
    "activation_range": "activation ranges",
    "bit_mapping": "bit mappings",
    "distillation": "rounding, biases and ranges",
}


class Phases:
    """Watches the iterations of a run.

    Args:
        tuner: What is run in each iteration.
        total: Iteration that the run ends at.
        patches: LR patches, ``(B, C, H, W)`` in 0..1, that losses are measured on: the same before
            and after.
        record: Where phases are noted.
    """

    def __init__(self, tuner: Finetuner, total: int, patches: Tensor, record: RunRecord) -> None:
        self.tuner = tuner
        self.total = total
        self.patches = patches
        self.record = record
        self.loss: float | None = None
        # Loss before the first iteration of this process.
        self.first_loss: float | None = None
        # Of the phase at work: its first iteration, its bar, and the seconds that its iterations
        # took, without validation and saving between them.
        self.first: int | None = None
        self.bar: Bar | None = None
        self.seconds = 0.0
        # When the iteration at work began.
        self.started = 0.0

    def name(self, iteration: int) -> str:
        """What an iteration trains, in words."""
        return PHASE_NAMES[self.tuner.phases[self.tuner.phase_index(iteration)]]

    def note_calibration(self, seconds: float, forward: nn.Module) -> None:
        """Note the calibration that came first.

        Before it there is no quantized network to measure a loss of.
        """
        self.loss = self.tuner.check(self.patches, 0, forward)
        self.record.note_phase("Calibration", 0, seconds, after=self.loss)

    def before_iteration(self, iteration: int, images: Tensor, forward: nn.Module) -> None:
        """Clip on the first batch, if that is due, and begin a phase, if one begins.

        Args:
            iteration: Counted from 1.
            images: LR patches of its batch, ``(B, C, H, W)`` in 0..1.
            forward: What runs the network.
        """
        if self.loss is None:
            self.loss = self._loss_before(iteration, forward)
        if self.first_loss is None:
            self.first_loss = self.loss
        if self.tuner.needs_clipping:
            start = time.perf_counter()
            self.tuner.clip(images)
            self._note("Clipping search", iteration, time.perf_counter() - start, forward)
        if self.first is None:
            count = self._last_of_phase(iteration) - iteration + 1
            self.bar = progress(f"Fine-tuning {self.name(iteration)}", count)
            self.first = iteration
            self.seconds = 0.0
        self.started = time.perf_counter()

    def after_iteration(self, iteration: int, forward: nn.Module) -> None:
        """Keep the best state, and end a phase, if its last iteration is done."""
        ends = self._ends(iteration)
        if self.tuner.is_check_due(iteration) and not ends:
            self.tuner.check(self.patches, iteration, forward)
        self.seconds += time.perf_counter() - self.started
        if self.bar is not None:
            self.bar.update(1)
        if ends:
            if self.bar is not None:
                self.bar.close()
            name = f"Fine-tuning {self.name(iteration)}, iterations {self.first} to {iteration}"
            self._note(name, iteration, self.seconds, forward)
            self.first = None
        if iteration == self.total:
            self._take_best()
            self._warn_of_harm()

    def _loss_before(self, iteration: int, forward: nn.Module) -> float:
        """Loss before the first iteration of this process.

        A resumed run keeps the states that an uninterrupted one keeps, and no other.
        """
        if iteration == 1:
            return self.tuner.check(self.patches, 0, forward)
        return self.tuner.loss(self.patches, forward)

    def _take_best(self) -> None:
        """Take the best state, of recipes that keep it."""
        best = self.tuner.best
        if best is None or best.iteration is None or best.iteration == self.total:
            return
        best.restore()
        name = f"Back to the best state, of iteration {best.iteration}"
        if best.iteration == 0:
            name = "Back to the calibrated state, as fine-tuning gained nothing"
        self.record.note_phase(name, self.total, 0.0, self.loss, best.loss)
        self.loss = best.loss

    def _warn_of_harm(self) -> None:
        if self.loss is None or self.first_loss is None:
            return
        if self.loss <= self.first_loss:
            return
        advice = "train longer (train: total_iter), or keep what calibration gave (total_iter: 0)"
        if self.loss > DIVERGED * self.first_loss:
            advice = "it diverged; lower the rates (train: finetune: learning_rates)"
        get_root_logger().warning(
            f"Fine-tuning took the loss from {self.first_loss:.4g} to {self.loss:.4g}: {advice}"
        )

    def _last_of_phase(self, iteration: int) -> int:
        while not self._ends(iteration):
            iteration += 1
        return iteration

    def _ends(self, iteration: int) -> bool:
        """Whether a phase, or the run, ends with an iteration."""
        if iteration == self.total:
            return True
        return self.tuner.phase_index(iteration + 1) != self.tuner.phase_index(iteration)

    def _note(self, name: str, iteration: int, seconds: float, forward: nn.Module) -> None:
        before = self.loss
        self.loss = self.tuner.check(self.patches, iteration, forward)
        self.record.note_phase(name, iteration, seconds, before, self.loss)
