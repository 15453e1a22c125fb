"""Checks options against the table: unknown keys, missing ones, and values of another kind."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from adabm_basicsr.errors import OptionError, check_keys, did_you_mean, within
from adabm_basicsr.options.kinds import Kind, Range
from adabm_basicsr.options.table import (
    CALIBRATION_SETS,
    DATASETS,
    AdaBMNetwork,
    Dataset,
    IoBackend,
    OptionFile,
    PlainNetwork,
    Section,
)
from adabm_basicsr.quantization.api import make_config
from adabm_basicsr.quantization.config import QuantizationConfig

# Pydantic's words for a key that isn't in the table, and for one that isn't given.
UNKNOWN = "extra_forbidden"
MISSING = "missing"
SET_BY_BASICSR = ("phase", "scale")  # in each data set; a file may have them
SECTION = "a section of keys"


class Place(NamedTuple):
    """Where in the table an option stands.

    Attributes:
        section: Section that the option is in.
        option: What the table says of it; None for a key that the table doesn't have.
        keys: Keys that lead to it.
    """

    section: type[Section]
    option: FieldInfo | None
    keys: tuple[str, ...]


def check_table(opt: Mapping[str, Any]) -> None:
    """Check a whole option file against the table.

    Raises:
        OptionError: A key is unknown or missing, or a value is of another kind.
    """
    is_ours = opt["model_type"] == "AdaBMModel"
    check_section("", OptionFile, opt, is_open=not is_ours)
    for name, dataset in opt["datasets"].items():
        section = _dataset_section(dataset)
        is_open = section is Dataset or not is_ours
        if section in CALIBRATION_SETS.values():
            is_open = False  # whatever the model is
        check_section(f"datasets: {name}", section, dataset, is_open)
    network = opt["network_g"]
    if network.get("type") == AdaBMNetwork.__name__:
        check_section("network_g", AdaBMNetwork, network)
        # The method checks the values of its own options.
        with within("network_g"):
            make_config({key: network.get(key) for key in QuantizationConfig.__dataclass_fields__})
    else:
        check_section("network_g", PlainNetwork, network)


def _dataset_section(dataset: object) -> type[Section]:
    if isinstance(dataset, dict) and isinstance(dataset.get("type"), str):
        return DATASETS.get(dataset["type"], Dataset)
    return Dataset


def check_section(where: str, section: type[Section], given: object, is_open: bool = False) -> None:
    """Check a section of an option file against the table.

    Args:
        where: What leads to the section, for messages: ``datasets: train``; empty for the file.
        section: What the table says of it.
        given: What the file says; None stands for the default of every key.
        is_open: Whether BasicSR's own classes may have further keys here.

    Raises:
        OptionError: A key is unknown or missing, or a value is of another kind.
    """
    if not isinstance(given, dict):
        raise OptionError(f"{where}: {reprlib.repr(given)} is not {SECTION}")
    given = _without_none(given)
    try:
        section.model_validate(given)
        return
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
    # Missing keys come last: a misspelt one is the likely reason.
    order = {UNKNOWN: 1, MISSING: 2}
    problems.sort(key=lambda problem: order.get(problem["type"], 0))
    for problem in problems:
        place = _find(section, problem["loc"])
        if problem["type"] == UNKNOWN:
            _check_unknown(where, place, problem["input"], is_open)
        elif problem["type"] == MISSING:
            raise OptionError(f"{_join(where, place.keys)} is missing")
        else:
            value = _value_at(given, place.keys)
            raise _wrong_value(_join(where, place.keys), place.option, value)


def _without_none(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section without keys whose value is None, at any depth."""
    found = {}
    for key, value in section.items():
        if isinstance(value, dict):
            found[key] = _without_none(value)
        elif value is not None:
            found[key] = value
    return found


def _find(section: type[Section], location: Sequence[str | int]) -> Place:
    """The option that pydantic's location lies in; an entry of a list is no option of its own."""
    option = None
    keys: list[str] = []
    kind: Any = section
    for part in location:
        key = str(part)
        if isinstance(kind, type) and issubclass(kind, Section):
            section = kind
            option = section.model_fields.get(key)
            kind = None
            if option is not None:
                kind = option.annotation
        elif get_origin(kind) is dict:
            option = None
            kind = get_args(kind)[1]
        else:
            break
        keys.append(key)
    return Place(section, option, tuple(keys))


def _join(where: str, keys: Sequence[str]) -> str:
    parts = [where, *keys]
    return ": ".join(part for part in parts if part)


def _value_at(given: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        given = given[key]
    return given


def _check_unknown(where: str, place: Place, value: object, is_open: bool) -> None:
    """Reject a key that the table doesn't have, unless it is one of BasicSR's own."""
    key = place.keys[-1]
    if issubclass(place.section, Dataset) and key in SET_BY_BASICSR:
        return
    if is_open and place.section is not IoBackend:
        for pattern, kind in place.section.further.items():
            if fnmatchcase(key, pattern):
                _check_further(_join(where, place.keys), kind, value)
                return
        return
    where = _join(where, place.keys[:-1]) or "option file"
    if place.section in CALIBRATION_SETS.values():
        for name, section in CALIBRATION_SETS.items():
            if key in section.model_fields:
                raise OptionError(f"{where}: unknown key {key!r}; sets of type {name} have it")
    check_keys(where, [key], place.section.model_fields)


def _check_further(where: str, kind: Any, value: object) -> None:
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError as error:
        raise _wrong_value(where, FieldInfo.from_annotation(kind), value) from error


def _wrong_value(where: str, option: FieldInfo | None, value: object) -> OptionError:
    """The error for a value that isn't of its option's kind."""
    shown = reprlib.repr(value)
    if option is None:
        return OptionError(f"{where}: {shown} is not {SECTION}")
    for fact in reversed(option.metadata):
        if isinstance(fact, Range):
            return OptionError(f"{where}: {shown} is out of range; valid: {fact.valid}")
        if isinstance(fact, Kind):
            return OptionError(f"{where}: {shown} is not {fact.name}")
    if get_origin(option.annotation) is Literal:
        choices = get_args(option.annotation)
        return OptionError(f"{where}: unknown value {shown}; {did_you_mean(str(value), choices)}")
    return OptionError(f"{where}: {shown} is not {SECTION}")


def fill_defaults(section: type[Section], given: dict[str, Any]) -> None:
    """Give each key of a section that the file leaves open its default.

    Args:
        section: What the table says of it.
        given: What the file says; changed in place.
    """
    for key, option in section.model_fields.items():
        if given.get(key) is None:
            given[key] = option.get_default(call_default_factory=True)
