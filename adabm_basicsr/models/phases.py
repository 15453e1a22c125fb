"""Follows fine-tuning phase by phase: a bar and a line for each, with the loss before and after it."""

from __future__ import annotations

import time

from basicsr.utils import get_root_logger
from torch import Tensor, nn

from adabm_basicsr.quantization.finetuning.finetune import Finetuner
from adabm_basicsr.quantization.progress import Bar, progress
from adabm_basicsr.runs.record import RunRecord

PHASE_NAMES = {
    "weight_range": "weight ranges",
    "activation_range": "activation ranges",
    "bit_mapping": "bit mappings",
    "distillation": "rounding, biases and ranges",
}


class Phases:
    """Watches the steps of a run.

    Args:
        tuner: What makes the steps.
        total: Iteration that the run ends at.
        patches: LR patches, ``(B, C, H, W)`` in 0..1, that losses are measured on: the same before and after.
        record: Where phases are noted.
    """

    def __init__(self, tuner: Finetuner, total: int, patches: Tensor, record: RunRecord) -> None:
        self.tuner, self.total, self.patches, self.record = tuner, total, patches, record
        self.loss: float | None = None
        self.began_at: float | None = None  # loss before the first step of this process
        self.first: int | None = None  # iteration of the phase at work
        self.started = 0.0  # of the step at work
        self.seconds = (
            0.0  # that the steps of the phase took, without validation and saving between them
        )
        self.bar: Bar | None = None

    def name(self, iteration: int) -> str:
        """What an iteration trains, in words."""
        return PHASE_NAMES[self.tuner.phases[self.tuner.phase_index(iteration)]]

    def note_calibration(self, seconds: float, forward: nn.Module) -> None:
        """Note the calibration that came first; before it there is no quantized network to measure a loss of."""
        self.loss = self.tuner.loss(self.patches, forward)
        self.record.note_phase("Calibration", 0, seconds, after=self.loss)

    def before_step(self, iteration: int, images: Tensor, forward: nn.Module) -> None:
        """Clip, if that is due on the first batch of ``images``, and begin a phase, if one begins."""
        if self.loss is None:
            self.loss = self.tuner.loss(self.patches, forward)
        if self.began_at is None:
            self.began_at = self.loss
        if self.tuner.needs_clipping:
            start = time.perf_counter()
            self.tuner.clip(images)
            self._note("Clipping search", iteration, time.perf_counter() - start, forward)
        if self.first is None:
            last = next(later for later in range(iteration, self.total + 1) if self._ends(later))
            self.bar = progress(f"Fine-tuning {self.name(iteration)}", last - iteration + 1)
            self.first, self.seconds = iteration, 0.0
        self.started = time.perf_counter()

    def after_step(self, iteration: int, forward: nn.Module) -> None:
        """End a phase, if its last step is done."""
        self.seconds += time.perf_counter() - self.started
        self.bar.update(1)
        if self._ends(iteration):
            self.bar.close()
            name = f"Fine-tuning {self.name(iteration)}, iterations {self.first} to {iteration}"
            self._note(name, iteration, self.seconds, forward)
            self.first = None
        if iteration == self.total and self.loss > self.began_at:
            get_root_logger().warning(
                f"Fine-tuning took the loss from {self.began_at:.4g} to {self.loss:.4g}: train longer (train: "
                "total_iter), or keep what calibration gave (total_iter: 0)"
            )

    def _ends(self, iteration: int) -> bool:
        return iteration == self.total or self.tuner.phase_index(
            iteration + 1
        ) != self.tuner.phase_index(iteration)

    def _note(self, name: str, iteration: int, seconds: float, forward: nn.Module) -> None:
        before, self.loss = self.loss, self.tuner.loss(self.patches, forward)
        self.record.note_phase(name, iteration, seconds, before, self.loss)
