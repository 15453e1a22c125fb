"""``AdaBMNetwork``: wraps any architecture of BasicSR's registry, by name and options, and quantizes it."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence

import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn

from adabm_basicsr.archs.catalogue import REFUSED
from adabm_basicsr.archs.spandrel_arch import Spandrel
from adabm_basicsr.errors import AdaBMError, check_keys, did_you_mean, near_paths
from adabm_basicsr.quantization.api import make_config
from adabm_basicsr.quantization.config import describe_config
from adabm_basicsr.quantization.network import QuantizedNetwork
from adabm_basicsr.version import __version__

EXAMPLE_SIZE = 48
CHANNEL_OPTIONS = ("num_in_ch", "in_channels", "in_chans")


@ARCH_REGISTRY.register()
class AdaBMNetwork(QuantizedNetwork):
    """An adaptively quantized network, as ``network_g`` of an option file names it.

    An architecture may carry options of its own as a class attribute ``quantization_defaults``, a dictionary of fields
    of `QuantizationConfig`; the option file overrides them.

    Args:
        network: ``type`` and options of a registered architecture, as in ``network_g`` without quantization.
        custom_imports: Modules to import first, which register in-house architectures. This runs their code; the
            working directory is importable.
        **options: Fields of `QuantizationConfig`: ``w_bits``, ``a_bits``, ``recipe``, ``fully_quantized``, ...

    Raises:
        AdaBMError: The architecture isn't registered, or an option is unknown or out of range.
    """

    def __init__(
        self, network: dict | None = None, custom_imports: Sequence[str] | None = (), **options
    ) -> None:
        make_config(options)  # mistakes in these are told before the network is built
        import_modules(custom_imports or ())
        base = build_base(network)
        config = make_config({**getattr(base, "quantization_defaults", {}), **options})
        super().__init__(base, config, example_input(base, network))
        self.network_options = dict(network)
        self.custom_imports = (
            [custom_imports] if isinstance(custom_imports, str) else list(custom_imports or ())
        )

    @property
    def description(self) -> dict:
        """All that rebuilds the network without its weights, in JSON's types; see `build_described`."""
        options = describe_config(self.config)
        return {
            "version": __version__,
            "network": self.network_options,
            "custom_imports": self.custom_imports,
            "options": {**options, "size_multiple": self.size_multiple},
        }


def build_described(description: Mapping, custom_imports: Sequence[str] = ()) -> AdaBMNetwork:
    """A network without weights as the one that `AdaBMNetwork.description` came from.

    Args:
        description: From a checkpoint or packed file. It may come from anyone, so the modules that it names aren't
            imported.
        custom_imports: Modules to import, which register in-house architectures; this runs their code.

    Raises:
        AdaBMError: Something in it is missing, unknown or out of range, or the architecture isn't registered.
    """
    network, options = description.get("network"), description.get("options")
    if not isinstance(network, dict) or not isinstance(options, dict):
        raise AdaBMError(
            "the description of the network is damaged: network or options are missing"
        )
    try:
        return AdaBMNetwork(network, custom_imports, **options)
    except AdaBMError as error:
        needed = [
            name for name in description.get("custom_imports") or () if name not in custom_imports
        ]
        if needed and "is not registered" in str(error):
            raise AdaBMError(
                f"the network {network.get('type')!r} is registered by {', '.join(map(str, needed))}: name what "
                "you trust as custom_imports (--custom-imports)"
            ) from error
        raise


def import_modules(names: Sequence[str]) -> None:
    """Import modules by name, those below the working directory too.

    Raises:
        AdaBMError: A module is missing, or fails.
    """
    if isinstance(names, str):
        names = [names]
    if names and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever its own code raises
            reason = _import_problem(name, error)
            raise AdaBMError(
                f"network_g: custom_imports: cannot import {name!r}: {reason}"
            ) from error


def _import_problem(name: str, error: Exception) -> str:
    if not isinstance(error, ImportError):
        return f"{type(error).__name__}: {error}"
    is_missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
    if not is_missing:
        return str(error)
    return f"{error}{near_paths(error.name.replace('.', os.sep)).replace('.py', '').replace(os.sep, '.')}"


def build_base(options: dict, where: str = "network_g: network") -> nn.Module:
    """Build a registered architecture from ``type`` and options; ``where`` names their section.

    Raises:
        AdaBMError: The type is missing or not registered, or doesn't take one of the options.
    """
    if not isinstance(options, dict) or "type" not in options:
        raise AdaBMError(
            f"{where}: type is missing; give a registered architecture and its options"
        )
    name = str(options["type"])
    if name == AdaBMNetwork.__name__:
        raise AdaBMError(
            f"{where}: type: {name} quantizes another network; name the architecture of that one"
        )
    if reason := REFUSED.get(name.removesuffix("_basicsr")):
        raise AdaBMError(f"{where}: type: {name} can't be quantized here: {reason}")
    registered = [key for key in (name, f"{name}_basicsr") if key in ARCH_REGISTRY]
    if not registered:
        names = {key.removesuffix("_basicsr") for key, _ in ARCH_REGISTRY}
        names = sorted(names - {*REFUSED, AdaBMNetwork.__name__})
        raise AdaBMError(
            f"{where}: type: {name!r} is not registered (custom_imports registers your own); "
            f"{did_you_mean(name, names)}"
        )
    arch = ARCH_REGISTRY.get(registered[0])
    given = [key for key in options if key != "type"]
    _check_arch_options(f"{where}: {name}", arch, given)
    try:
        return build_network({**options, "type": registered[0]})
    except AdaBMError:
        raise
    except Exception as error:  # whatever its own code raises
        reason = " ".join(str(error).split())
        raise AdaBMError(f"{where}: {name} cannot be built from {given}: {reason}") from error


def _check_arch_options(where: str, arch: type, given: list[str]) -> None:
    parameters = inspect.signature(arch.__init__).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    names = [key for key in parameters if key != "self"]
    check_keys(where, given, names)
    missing = [
        key
        for key in names
        if parameters[key].default is inspect.Parameter.empty and key not in given
    ]
    if missing:
        raise AdaBMError(f"{where} needs {', '.join(missing)}")


def example_input(network: nn.Module, options: dict) -> torch.Tensor:
    """A grey image that the network takes, ``(1, C, H, W)``, on the network's device."""
    if isinstance(network, Spandrel):
        told = network.in_channels
    else:
        told = next((options[key] for key in CHANNEL_OPTIONS if key in options), None)
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    channels = told or (first.in_channels if first is not None else 3)
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    return torch.full((1, channels, EXAMPLE_SIZE, EXAMPLE_SIZE), 0.5, device=device)
