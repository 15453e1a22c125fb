"""``Spandrel``: whatever the package spandrel recognises, as one registered architecture."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from adabm_basicsr.environment import own_unpickler
from adabm_basicsr.errors import CheckpointError, OptionError, not_found
from adabm_basicsr.files import is_file
from adabm_basicsr.quantization.checks import check_finite

if TYPE_CHECKING:
    from types import ModuleType

    from spandrel import ImageModelDescriptor

WHERE = "network_g: network"
PURPOSES = ("SR", "Restoration")
MAX_REASON = 200  # characters


@ARCH_REGISTRY.register()
class Spandrel(nn.Module):
    """The network of a checkpoint, its architecture and options read off the weights.

    The weights come with it.

    Args:
        path: Checkpoint of a super-resolution or restoration network: ``.pth``, ``.pt``, ``.ckpt``
            or ``.safetensors``. A quantized checkpoint of the network needs it too, as nothing else
            says what the network looks like.

    Attributes:
        model: The recognised network in float32; its keys get the prefix ``model.``.
        in_channels: Channels of the images that it takes.
        scale: Factor of height and width.
        has_weights: True: no checkpoint needs to be loaded.

    Raises:
        AdaBMError: The package spandrel isn't installed, or the file is missing, unreadable, not
            recognised, of another kind of network, or holds a weight that isn't finite.
    """

    has_weights = True

    def __init__(self, path: str) -> None:
        super().__init__()
        descriptor = _recognise(import_spandrel(), path)
        self.model = descriptor.model.float()
        self.in_channels = descriptor.input_channels
        self.scale = descriptor.scale
        # Not the descriptor's own call: it runs in inference mode, clamps its output and pads on
        # its own. What remains is `model(image)` for most; some networks take a noise level
        # besides, or return several outputs.
        self._call = descriptor._call_fn
        for name, weight in self.model.named_parameters():
            check_finite(weight, f"{WHERE}: path: checkpoint {path}: {name}")

    def forward(self, image: Tensor) -> Tensor:
        """Super-resolve or restore.

        Args:
            image: ``(B, in_channels, H, W)`` in 0..1.

        Returns:
            ``(B, C, scale * H, scale * W)``, not clamped to 0..1.
        """
        return self._call(self.model, image)


def import_spandrel() -> ModuleType:
    """The package spandrel, imported only when it is used.

    Raises:
        OptionError: It is not installed.
    """
    try:
        import spandrel
    except ImportError as error:
        raise OptionError(
            f"{WHERE}: type: Spandrel needs the package spandrel: pip install spandrel"
        ) from error
    return spandrel


def _recognise(spandrel: ModuleType, path: str) -> ImageModelDescriptor:
    if not isinstance(path, str):
        raise OptionError(f"{WHERE}: path: {path!r} is not the path of a checkpoint")
    file = Path(path).expanduser()
    if not is_file(file):
        raise not_found(f"{WHERE}: path: checkpoint", path, CheckpointError)
    try:
        with own_unpickler():
            descriptor = spandrel.ModelLoader("cpu").load_from_file(file)
    except spandrel.UnsupportedModelError as error:
        raise CheckpointError(
            f"{WHERE}: path: spandrel doesn't recognise the architecture of {path}"
        ) from error
    # From unpickling, from tensors that don't fit, or from whatever a recogniser stumbles over.
    except Exception as error:
        reason = shorten(str(error), MAX_REASON, placeholder=" ...") or type(error).__name__
        raise CheckpointError(f"{WHERE}: path: spandrel cannot load {path}: {reason}") from error
    is_of_images = isinstance(descriptor, spandrel.ImageModelDescriptor)
    if not is_of_images or descriptor.purpose not in PURPOSES:
        raise CheckpointError(
            f"{WHERE}: path: {path} is a network for {descriptor.purpose} "
            f"({descriptor.architecture.name}); "
            f"only super-resolution and restoration networks can be quantized"
        )
    return descriptor
