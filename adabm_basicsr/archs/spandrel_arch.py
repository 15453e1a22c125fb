"""``Spandrel``: whatever the package spandrel recognises, as one registered architecture."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from adabm_basicsr.environment import own_unpickler
from adabm_basicsr.errors import (
    AdaBMError,
    CheckpointError,
    OptionError,
    did_you_mean,
    not_found,
)
from adabm_basicsr.files import is_file
from adabm_basicsr.quantization.checks import check_finite

if TYPE_CHECKING:
    from types import ModuleType

    from spandrel import Architecture, ImageModelDescriptor

WHERE = "network_g: network"
PURPOSES = ("SR", "Restoration")
MAX_REASON = 200  # characters


@ARCH_REGISTRY.register()
class Spandrel(nn.Module):
    """The network of a checkpoint, its architecture and options read off the weights.

    The weights come with it. Files of the quantized network name the architecture and its options
    instead of the checkpoint, so that it is rebuilt without: a file must not say which other file
    is opened.

    Args:
        path: Checkpoint of a super-resolution or restoration network: ``.pth``, ``.pt``, ``.ckpt``
            or ``.safetensors``.
        architecture: Instead of ``path``: spandrel's name of the architecture.
        variant: Name of its network class, as some architectures have several.
        hyperparameters: Arguments of that class.

    Attributes:
        model: The recognised network in float32; its keys get the prefix ``model.``.
        in_channels: Channels of the images that it takes.
        scale: Factor of height and width.
        options: Type and options that give the network again, without the checkpoint and its
            weights; in JSON's types.
        has_weights: Whether it came with weights: no checkpoint needs to be loaded.

    Raises:
        AdaBMError: The package spandrel isn't installed, or the file is missing, unreadable, not
            recognised, of another kind of network, or holds a weight that isn't finite; or there
            is no such architecture, or it doesn't take these arguments.
    """

    def __init__(
        self,
        path: str | None = None,
        architecture: str | None = None,
        variant: str | None = None,
        hyperparameters: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        spandrel = import_spandrel()
        self.has_weights = architecture is None
        if architecture is None:
            descriptor = _recognise(spandrel, path)
        else:
            if path is not None:
                raise OptionError(f"{WHERE}: path and architecture are given; give one of them")
            descriptor = _rebuild(spandrel, architecture, variant, hyperparameters)
        self.model = descriptor.model.float()
        self.in_channels = descriptor.input_channels
        self.scale = descriptor.scale
        self.options = {
            "type": type(self).__name__,
            "architecture": str(descriptor.architecture.id),
            "variant": type(self.model).__name__,
            "hyperparameters": _in_json(self.model.hyperparameters),
        }
        # Not the descriptor's own call: it runs in inference mode, clamps its output and pads on
        # its own. What remains is `model(image)` for most; some networks take a noise level
        # besides, or return several outputs.
        self._call = descriptor._call_fn
        if self.has_weights:
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


def check_stands_alone(network: Mapping[str, Any]) -> None:
    """Reject what a file says of its network if that is the path of another file.

    Args:
        network: Type and options of an architecture.

    Raises:
        CheckpointError: It is.
    """
    if network.get("type") == Spandrel.__name__ and "path" in network:
        raise CheckpointError(
            f"its network is that of another checkpoint, {str(network['path'])!r}, which isn't "
            "opened because a file says so: give it in network_g: network of an option file, as "
            "{type: Spandrel, path: ...}; files that are written now don't need it"
        )


def _in_json(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a network in JSON's types.

    Those without such a form, as the type of a layer, are left out: spandrel doesn't read them off
    weights, but knows them.
    """
    found = {}
    for key, value in hyperparameters.items():
        try:
            found[key] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            continue
    return found


def _rebuild(
    spandrel: ModuleType,
    architecture: object,
    variant: object,
    hyperparameters: Mapping[str, Any] | None,
) -> ImageModelDescriptor:
    """The network of an architecture and its options, with weights of no meaning."""
    names = [entry.architecture.id for entry in spandrel.MAIN_REGISTRY]
    if not isinstance(architecture, str) or architecture not in names:
        raise OptionError(
            f"{WHERE}: architecture: {architecture!r} is none of spandrel's; "
            f"{did_you_mean(architecture, names)}"
        )
    found = spandrel.MAIN_REGISTRY[architecture].architecture
    kinds = network_classes(found)
    if not isinstance(variant, str) or variant not in kinds:
        raise OptionError(
            f"{WHERE}: variant: {variant!r} is no network of {architecture}; "
            f"{did_you_mean(variant, kinds)}"
        )
    kind = kinds[variant]
    if not isinstance(hyperparameters, dict):
        raise OptionError(f"{WHERE}: hyperparameters: {hyperparameters!r} is no section of keys")
    try:
        model = kind(**hyperparameters)
        # What spandrel reads off weights, it reads off these too.
        descriptor = found.load(model.state_dict())
    except AdaBMError:
        raise
    except Exception as error:  # whatever the network's own code raises
        raise OptionError(
            f"{WHERE}: {architecture} cannot be built from hyperparameters "
            f"{list(hyperparameters)}: {shorten(str(error), MAX_REASON, placeholder=' ...')}"
        ) from error
    _check_purpose(spandrel, descriptor, architecture)
    rebuilt = _in_json(descriptor.model.hyperparameters)
    if type(descriptor.model) is not kind or rebuilt != _in_json(model.hyperparameters):
        raise OptionError(
            f"{WHERE}: spandrel {spandrel.__version__} takes the weights of {architecture} for "
            "those of another network"
        )
    return descriptor


def network_classes(architecture: Architecture) -> dict[str, Any]:
    """Classes of networks that an architecture of spandrel's has, by name."""
    module = sys.modules[type(architecture).__module__]
    found = {}
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, nn.Module):
            found[value.__name__] = value
    return found


def _recognise(spandrel: ModuleType, path: str | None) -> ImageModelDescriptor:
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
    _check_purpose(spandrel, descriptor, path)
    return descriptor


def _check_purpose(spandrel: ModuleType, descriptor: Any, name: str) -> None:
    """Reject networks that are for other images; ``name`` is that of the network."""
    is_of_images = isinstance(descriptor, spandrel.ImageModelDescriptor)
    if not is_of_images or descriptor.purpose not in PURPOSES:
        raise CheckpointError(
            f"{WHERE}: path: {name} is a network for {descriptor.purpose} "
            f"({descriptor.architecture.name}); "
            f"only super-resolution and restoration networks can be quantized"
        )
