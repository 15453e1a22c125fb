"""``AdaBMNetwork`` wraps any architecture of BasicSR's registry, by name and options.

It quantizes what it wraps. `build_base` builds an architecture, `build_described` rebuilds a
quantized network from what its file says of it.
"""

from __future__ import annotations

import importlib
import inspect
import os
import reprlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from adabm_basicsr.archs.catalogue import REFUSED
from adabm_basicsr.archs.limits import Held, Limits
from adabm_basicsr.archs.spandrel_arch import Spandrel, check_stands_alone
from adabm_basicsr.errors import (
    AdaBMError,
    CheckpointError,
    NotRegisteredError,
    OptionError,
    check_keys,
    check_range,
    did_you_mean,
    near_paths,
    one_line,
)
from adabm_basicsr.quantization.api import make_config
from adabm_basicsr.quantization.checkpoint import BLUEPRINT_KEY, is_quantized
from adabm_basicsr.quantization.config import (
    MAX_CHANNELS,
    MAX_FRAMES,
    QuantizationConfig,
    describe_config,
)
from adabm_basicsr.quantization.network import OTHER_OPTIONS, QuantizedNetwork
from adabm_basicsr.quantization.structure.blueprint import Blueprint, read_blueprint
from adabm_basicsr.quantization.structure.clips import clip_of
from adabm_basicsr.quantization.structure.image_channels import example_of, find_example
from adabm_basicsr.quantization.structure.preparation import uncompiled
from adabm_basicsr.quantization.user_code import failure
from adabm_basicsr.version import __version__

CHANNEL_OPTIONS = ("num_in_ch", "in_channels", "in_chans")
FRAME_OPTIONS = ("num_frame", "num_frames", "num_input_frame")
# BasicSR registers some of its architectures, such as SRVGGNetCompact, with this ending.
OWN_ENDING = "_basicsr"
# Ingredients that neither keys nor shapes of a state show.
UNSEEN_INGREDIENTS = ("image_bits", "bit_range")


@ARCH_REGISTRY.register()
class AdaBMNetwork(QuantizedNetwork):
    """An adaptively quantized network, as ``network_g`` of an option file names it.

    An architecture may carry options of its own as a class attribute ``quantization_defaults``, a
    dictionary of fields of `QuantizationConfig`; the option file overrides them.

    Args:
        network: ``type`` and options of a registered architecture, as in ``network_g`` without
            quantization.
        custom_imports: Modules to import first, which register in-house architectures. This runs
            their code; the working directory is importable.
        blueprint: What an earlier run of the network showed, which isn't run then; option files
            have none.
        **options: Fields of `QuantizationConfig`: ``w_bits``, ``a_bits``, ``recipe``, ...

    Raises:
        AdaBMError: The architecture isn't registered, or an option is unknown or out of range.
    """

    def __init__(
        self,
        network: dict[str, Any] | None = None,
        custom_imports: Sequence[str] | str | None = (),
        blueprint: Blueprint | None = None,
        **options: Any,
    ) -> None:
        make_config(options)  # mistakes in these are reported before the network is built
        modules = _names_of(custom_imports)
        import_modules(modules)
        network = _with_type(network, "network_g: network")
        base = build_base(network)
        chosen = dict(getattr(base, "quantization_defaults", {}))
        chosen.update(options)
        config = make_config(chosen)
        if blueprint is None:
            example = example_input(base, network, config.size_multiple, config.in_channels)
        else:
            example = example_of(base, config.in_channels or blueprint.in_channels)
            if blueprint.clips is not None:
                example = clip_of(example, blueprint.clips.frames)
        super().__init__(base, config, example, blueprint)
        self.network_options = dict(network)
        if isinstance(base, Spandrel):
            self.network_options = base.options
        self.custom_imports = modules

    @property
    def description(self) -> dict[str, Any]:
        """All that rebuilds the network without its weights, in JSON's types.

        See `build_described`.
        """
        options = describe_config(self.config)
        options["size_multiple"] = self.size_multiple
        description = {
            "version": __version__,
            "network": self.network_options,
            "custom_imports": self.custom_imports,
            "options": options,
        }
        description.update(super().description)
        return description

    def load_saved(self, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
        """As `QuantizedNetwork.load_saved`; rejects a state whose images use other bits, too.

        A later version of a recipe may have other ingredients than the one that was quantized by.
        """
        super().load_saved(state, description)
        if not is_quantized(state):
            return
        saved = description.get("options")
        if not isinstance(saved, Mapping) or not isinstance(saved.get("ingredients"), Mapping):
            return  # files that were written earlier lack them
        own = describe_config(self.config)["ingredients"]
        for name in UNSEEN_INGREDIENTS:
            value = saved["ingredients"].get(name, own[name])
            if value != own[name]:
                raise CheckpointError(
                    f"{OTHER_OPTIONS}: it has {name} {value!r}, the options {own[name]}; write "
                    f"ingredients: {{{name}: {value!r}}} under network_g to take it as it is"
                )


def build_described(
    description: Mapping, held: Held, custom_imports: Sequence[str] = ()
) -> AdaBMNetwork:
    """A network without weights as the one that `AdaBMNetwork.description` came from.

    Args:
        description: From a checkpoint or packed file. It may come from anyone, so the modules that
            it names aren't imported, no file that it names is opened, and the network can't be
            larger than what the file holds.
        held: What the file holds.
        custom_imports: Modules to import, which register in-house architectures; this runs their
            code.

    Raises:
        AdaBMError: Something in it is missing, unknown or out of range, or the architecture isn't
            registered.
    """
    network = description.get("network")
    options = description.get("options")
    if not isinstance(network, dict) or not isinstance(options, dict):
        raise CheckpointError(
            "the description of the network is damaged: network or options are missing"
        )
    check_stands_alone(network)
    blueprint = None
    if description.get(BLUEPRINT_KEY) is not None:
        blueprint = read_blueprint(description[BLUEPRINT_KEY])
    check_keys("options", options, [field.name for field in fields(QuantizationConfig)])
    import_modules(custom_imports)
    try:
        _check_fits(network, held)
        with Limits(held):
            return AdaBMNetwork(network, custom_imports, blueprint, **options)
    except NotRegisteredError as error:
        named = description.get("custom_imports")
        if not isinstance(named, list):
            named = []
        needed = [str(name) for name in named if name not in custom_imports]
        if not needed:
            raise
        raise NotRegisteredError(
            f"the network {network.get('type')!r} is registered by {', '.join(needed)}: name what "
            f"you trust as custom_imports (--custom-imports)"
        ) from error
    except AdaBMError:
        raise
    except Exception as error:  # a network without channels, say, can't be quantized
        raise CheckpointError(
            f"the network that it describes cannot be built: {one_line(error)}"
        ) from error


def _check_fits(network: dict[str, Any], held: Held) -> None:
    """Build the base network without memory, and see whether it is larger than what a file holds.

    Raises:
        CheckpointError: It is.
    """
    try:
        with torch.device("meta"), Limits(held):
            build_base(network)
    except (CheckpointError, NotRegisteredError):
        raise
    except Exception:
        # Networks that compute values while they are built can't be built in this way. Mistakes
        # of other kinds come up again.
        return


def import_modules(names: Sequence[str] | str) -> None:
    """Import modules by name, those below the working directory too.

    Raises:
        OptionError: A module is missing, or fails.
    """
    names = _names_of(names)
    here = str(Path.cwd())
    if names and here not in sys.path:
        sys.path.insert(0, here)
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever its own code raises
            reason = _import_problem(name, error)
            raise OptionError(
                f"network_g: custom_imports: cannot import {name!r}: {reason}"
            ) from error


def _names_of(modules: Sequence[str] | str | None) -> list[str]:
    if isinstance(modules, str):
        return [modules]
    return list(modules or ())


def _import_problem(name: str, error: Exception) -> str:
    if not isinstance(error, ImportError):
        return f"{type(error).__name__}: {error}"
    missing = error.name or ""
    is_on_the_way = f"{name}.".startswith(f"{missing}.")
    if not isinstance(error, ModuleNotFoundError) or not is_on_the_way:
        return str(error)
    near = near_paths(missing.replace(".", os.sep))
    return f"{error}{near.replace('.py', '').replace(os.sep, '.')}"


def _with_type(options: object, where: str) -> dict[str, Any]:
    """The options of an architecture, which name its type; ``where`` names their section."""
    if not isinstance(options, dict) or "type" not in options:
        raise OptionError(
            f"{where}: type is missing; give a registered architecture and its options"
        )
    return options


def build_base(options: dict[str, Any], where: str = "network_g: network") -> nn.Module:
    """Build a registered architecture from ``type`` and options; ``where`` names their section.

    Raises:
        NotRegisteredError: The type is not registered.
        AdaBMError: The type is missing, can't be quantized or doesn't take one of the options.
    """
    name = str(_with_type(options, where)["type"])
    if name == AdaBMNetwork.__name__:
        raise OptionError(
            f"{where}: type: {name} quantizes another network; name the architecture of that one"
        )
    if reason := REFUSED.get(name.removesuffix(OWN_ENDING)):
        raise OptionError(f"{where}: type: {name} can't be quantized here: {reason}")
    registered = _registered_name(name, where)
    arch = ARCH_REGISTRY.get(registered)
    given = {key: value for key, value in options.items() if key != "type"}
    _check_arch_options(f"{where}: {name}", arch, list(given))
    asked = dict(options)
    asked["type"] = registered
    try:
        return build_network(asked)
    except AdaBMError:
        raise
    except Exception as error:  # whatever its own code raises
        _check_kinds(f"{where}: {name}", arch, given)
        shown = ", ".join(f"{key}: {reprlib.repr(value)}" for key, value in given.items())
        raise OptionError(
            f"{where}: {name} cannot be built from {{{shown}}}: {failure(error)}"
        ) from error


def _registered_name(name: str, where: str) -> str:
    """The key of the registry for an architecture's name."""
    for key in (name, f"{name}{OWN_ENDING}"):
        if key in ARCH_REGISTRY:
            return key
    names = {key.removesuffix(OWN_ENDING) for key, _ in ARCH_REGISTRY}
    names -= {*REFUSED, AdaBMNetwork.__name__}
    raise NotRegisteredError(
        f"{where}: type: {name!r} is not registered (custom_imports registers your own); "
        f"{did_you_mean(name, sorted(names))}"
    )


def _check_arch_options(where: str, arch: type[nn.Module], given: list[str]) -> None:
    """Check that an architecture takes the options that are given, and needs no others."""
    named = []
    missing = []
    takes_any = False
    for key, parameter in inspect.signature(arch).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_any = True
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        is_needed = parameter.default is parameter.empty
        if parameter.kind is parameter.POSITIONAL_ONLY:
            if is_needed:
                raise OptionError(
                    f"{where}: its argument {key} can't be given by name, as options are; remove "
                    "the / behind it"
                )
            continue
        named.append(key)
        if is_needed and key not in given:
            missing.append(key)
    if takes_any:
        return
    check_keys(where, given, named)
    if missing:
        raise OptionError(f"{where} needs {', '.join(missing)}")


def _check_kinds(where: str, arch: type[nn.Module], given: Mapping[str, Any]) -> None:
    """Name an option of another kind than its default, as the likely reason of a failure.

    Raises:
        OptionError: There is one.
    """
    parameters = inspect.signature(arch).parameters
    for key, value in given.items():
        if key not in parameters:
            continue
        default = parameters[key].default
        if default is parameters[key].empty or default is None:
            continue
        if not _is_like(value, default):
            raise OptionError(
                f"{where}: {key}: {reprlib.repr(value)} is not of the kind of {default!r}, its "
                "default"
            )


def _is_like(value: object, default: object) -> bool:
    """Whether both are numbers, lists, texts, or true or false."""
    for kind in (bool, (int, float), (list, tuple), str):
        if isinstance(default, kind):
            return isinstance(value, kind) and isinstance(value, bool) == isinstance(default, bool)
    return True


def example_input(
    network: nn.Module,
    options: Mapping[str, Any],
    size_multiple: int | None = None,
    in_channels: int | None = None,
) -> torch.Tensor:
    """A grey image or clip that the network takes, on the network's device.

    Args:
        network: The network, in evaluation mode from now on.
        options: Those of its architecture.
        size_multiple: What the sizes of its images are multiples of, if that is known.
        in_channels: Channels of its images, if they are known.

    Returns:
        ``(1, C, H, W)``, or ``(1, T, C, H, W)`` for a network that takes clips.

    Raises:
        AdaBMError: Channels or frames are out of range, or the network runs with no number of them.
    """
    if isinstance(network, Spandrel):
        return example_of(network, in_channels or network.in_channels)
    likeliest = _numbers_of(options, CHANNEL_OPTIONS, MAX_CHANNELS)
    if in_channels is not None:
        likeliest.insert(0, in_channels)
    frames = _numbers_of(options, FRAME_OPTIONS, MAX_FRAMES)
    network = uncompiled(network).eval()
    return find_example(network, likeliest, size_multiple, frames)


def _numbers_of(options: Mapping[str, Any], keys: Sequence[str], highest: int) -> list[int]:
    """Those of an architecture's options that are given, each within 1 and ``highest``."""
    numbers = []
    for key in keys:
        if options.get(key):
            numbers.append(check_range(f"network_g: network: {key}", options[key], 1, highest))
    return numbers
