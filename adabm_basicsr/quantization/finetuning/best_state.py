"""Keeps the best of the states that fine-tuning goes through, the calibrated one included.

At 8 bits calibration leaves little to learn, and the last iteration may be worse than the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

CHECKS = 20  # of a long run
MIN_INTERVAL = 4  # iterations between two checks of a short one
PATCHES = 4  # that a loss is measured on


class BestState:
    """The values of what is trained, as they were when the loss was smallest.

    Args:
        parameters: What is trained.
        total_iterations: Length of the run.

    Attributes:
        iteration: Iteration after which the loss was smallest, 0 for the calibrated state; None
            before the first offer.
        loss: The smallest loss.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], total_iterations: int) -> None:
        self.parameters = parameters
        self.interval = max(total_iterations // CHECKS, MIN_INTERVAL)
        self.iteration: int | None = None
        self.loss = float("inf")
        self._values: list[Tensor] = []

    def is_due(self, iteration: int) -> bool:
        """Whether the loss is to be measured after an iteration."""
        return iteration % self.interval == 0

    @torch.no_grad()
    def offer(self, iteration: int, loss: float) -> None:
        """Keep the values as they are after an iteration, if the loss has never been as small."""
        if loss < self.loss:
            self.iteration = iteration
            self.loss = loss
            self._values = [parameter.clone() for parameter in self.parameters]

    @torch.no_grad()
    def restore(self) -> None:
        """Set what is trained to the best values."""
        for parameter, value in zip(self.parameters, self._values, strict=False):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on from here needs."""
        return {"iteration": self.iteration, "loss": self.loss, "values": self._values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.iteration = state["iteration"]
        self.loss = state["loss"]
        self._values = []
        for value, parameter in zip(state["values"], self.parameters, strict=True):
            self._values.append(value.to(parameter))
