"""Takes ``network_g`` of a test from the checkpoint, where the option file leaves it out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY

from adabm_basicsr.archs.adabm_arch import (
    AdaBMNetwork,
    build_described,
    import_modules,
)
from adabm_basicsr.archs.limits import held_by
from adabm_basicsr.errors import (
    AdaBMError,
    CheckpointError,
    NotRegisteredError,
    OptionError,
    one_line,
)
from adabm_basicsr.options.checks import check_section
from adabm_basicsr.options.paths import existing_file
from adabm_basicsr.options.table import DescribedNetwork, Paths
from adabm_basicsr.quantization.checkpoint import BLUEPRINT_KEY, read_described

KEY = "pretrain_network_g"


def take_network(opt: dict[str, Any]) -> None:
    """Fill in ``network_g`` from what the checkpoint says of its network.

    Nothing changes where the options have a ``network_g``. One with ``custom_imports`` alone
    names the modules that register an in-house architecture; those that the checkpoint itself
    names aren't imported, as it may come from anyone.

    Args:
        opt: Options of a test, changed in place.

    Raises:
        OptionError: There is no such checkpoint.
        CheckpointError: It can't be read, or says nothing of its network.
        NotRegisteredError: It names an architecture that isn't registered.
    """
    given = opt.get("network_g")
    if given is None:
        given = {}
    if not isinstance(given, dict) or set(given) - {"custom_imports"}:
        return
    check_section("network_g", DescribedNetwork, given)
    path = _checkpoint(opt)
    description, state = read_described(path)
    description = _checked(path, description)
    modules = given.get("custom_imports") or []
    import_modules(modules)
    _check_registered(path, description)
    try:
        # Within the limits of what the file holds, which BasicSR doesn't know of.
        build_described(description, held_by(state.values()), modules)
    except AdaBMError as error:
        raise type(error)(f"path: {KEY}: checkpoint {path}: {one_line(error)}") from error
    network = dict(description["options"])
    # Last, so that no checkpoint names modules to import.
    network["type"] = AdaBMNetwork.__name__
    network["network"] = description["network"]
    network["custom_imports"] = modules
    opt["network_g"] = network


def _checkpoint(opt: Mapping[str, Any]) -> str:
    """Path of the checkpoint that the options name."""
    paths = opt.get("path")
    if paths is None:
        paths = {}
    check_section("path", Paths, paths, is_open=True)
    if paths.get(KEY) is None:
        raise OptionError(
            "network_g is missing from the option file, and there is no path: pretrain_network_g "
            "to take it from"
        )
    return existing_file(f"path: {KEY}: checkpoint", paths[KEY])


def _checked(path: str, description: dict[str, Any] | None) -> dict[str, Any]:
    """What a checkpoint says of its network, if it says it."""
    if description is None or description.keys() == {BLUEPRINT_KEY}:
        raise CheckpointError(
            f"network_g is missing from the option file, and checkpoint {path} doesn't describe "
            "its network; give network_g"
        )
    for key in ("network", "options"):
        if not isinstance(description.get(key), dict):
            raise CheckpointError(
                f"network_g is missing from the option file, and what checkpoint {path} says of "
                f"its network is damaged: {key} is missing; give network_g"
            )
    return description


def _check_registered(path: str, description: Mapping[str, Any]) -> None:
    """Name the modules that would register the architecture, if it isn't registered."""
    name = str(description["network"].get("type"))
    modules = description.get("custom_imports") or []
    if modules and name not in ARCH_REGISTRY and f"{name}_basicsr" not in ARCH_REGISTRY:
        named = ", ".join(map(str, modules))
        raise NotRegisteredError(
            f"network_g: the network {name!r} of checkpoint {path} is registered by {named}: name "
            "what you trust as network_g: custom_imports"
        )
