"""Networks that give more than an image: the first image is taken."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from adabm_basicsr.quantization.layers.join import is_clip, is_image
from adabm_basicsr.quantization.log import LOGGER


class FirstImage:
    """Forward hook that takes the first image of a tuple or list, and says so once.

    Attributes:
        said: Whether it has been said.
    """

    def __init__(self) -> None:
        self.said = False

    def __call__(self, network: nn.Module, args: tuple, output: Any) -> Tensor | None:
        """The first image of what ``network`` gives; None where that isn't a tuple or list of any.

        None leaves the output as it is.
        """
        if not isinstance(output, (tuple, list)):
            return None
        takes_clips = bool(args) and is_clip(args[0])
        for value in output:
            if is_image(value) or (takes_clips and is_clip(value)):
                self._say(network, output, value)
                image: Tensor = value
                return image
        return None

    def _say(self, network: nn.Module, output: tuple | list, image: Tensor) -> None:
        if self.said:
            return
        self.said = True
        LOGGER.warning(
            f"{type(network).__name__} gives {len(output)} values; the first image among them, of "
            f"shape {tuple(image.shape)}, is taken"
        )


def take_first_image(network: nn.Module) -> None:
    """Make a network give the first image of a tuple or list alone; changed in place."""
    for hook in network._forward_hooks.values():
        if isinstance(hook, FirstImage):
            return
    network.register_forward_hook(FirstImage())
