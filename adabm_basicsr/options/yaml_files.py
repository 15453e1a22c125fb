"""Reads option files and overrides without running anything that they say.

Plain values alone are made of them.
"""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path
from typing import Any

import yaml

from adabm_basicsr.errors import OptionError, did_you_mean
from adabm_basicsr.options.paths import existing_file

MAX_VALUES = 100_000  # of an option file, what its anchors repeat counted each time
MERGE = "tag:yaml.org,2002:merge"
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
PLAIN_WORDS = {"": None, "~": None, "none": None, "true": True, "false": False}
# Besides its own errors PyYAML lets those of int, float, dates and of deep nesting through.
VALUE_ERRORS = (yaml.YAMLError, ValueError, AttributeError, TypeError, RecursionError)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which rejects keys that stand twice in a section.

    PyYAML's own forgets the first of them.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        known = set()
        for key, _ in node.value:
            if key.tag == MERGE:
                continue
            name = str(key.value)
            if name in known:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} stands twice", node.start_mark
                )
            known.add(name)
        return super().construct_mapping(node, deep)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping without constructing anything but plain values.

    Raises:
        OptionError: The file is missing or isn't a YAML mapping, a key isn't text or stands twice,
            or anchors make more of it than an option file can be.
    """
    path = Path(existing_file("option file", str(path)))
    try:
        opt = yaml.load(path.read_bytes(), _Loader)
    except (OSError, *VALUE_ERRORS) as error:
        mark = getattr(error, "problem_mark", None)
        where = ""
        if mark:
            where = f", line {mark.line + 1}, column {mark.column + 1}"
        problem = getattr(error, "problem", None)
        if not problem:
            problem = str(error).splitlines()[0]
        raise OptionError(f"option file {path}{where} is not valid YAML: {problem}") from error
    if not isinstance(opt, dict):
        raise OptionError(
            f"option file {path} holds no keys; expected name, model_type, network_g, ..."
        )
    if _count(opt, {}) > MAX_VALUES:
        raise OptionError(
            f"option file {path} repeats itself through anchors to more than {MAX_VALUES} values"
        )
    _check_keys(opt, ())
    return opt


def _count(value: object, known: dict[int, float]) -> float:
    """Values at and below ``value``, each as often as it is reached; infinite for a circle."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        known[id(value)] = float("inf")  # until it is counted
        below = value
        if isinstance(value, dict):
            below = list(value.values())
        known[id(value)] = 1 + sum(_count(entry, known) for entry in below)
    return known[id(value)]


def _check_keys(value: object, above: tuple[str, ...]) -> None:
    """Check that every key, at any depth, is a text."""
    if isinstance(value, dict):
        for key, below in value.items():
            if not isinstance(key, str):
                place = ": ".join([*above, repr(key)])
                raise OptionError(f"{place}: keys are texts; put it in quotes")
            _check_keys(below, (*above, key))
    elif isinstance(value, list):
        for below in value:
            _check_keys(below, above)


def apply_override(opt: dict[str, Any], override: str, known_sections: Container[str] = ()) -> None:
    """Set one option as ``--force_yml`` gives it: ``train:total_iter=100``.

    Values are read as BasicSR reads them, without its ``eval``: numbers, true and false, none,
    lists and mappings (as YAML); anything else is text.

    Args:
        opt: The options; changed in place.
        override: Keys that lead to the option, and its value.
        known_sections: Sections by the keys that lead to them, ``train: finetune``. One of these
            that the file leaves out is made.

    Raises:
        OptionError: The form is wrong, or a section doesn't exist.
    """
    keys, equals, value = override.partition("=")
    *sections, last = keys.strip().split(":")
    if not equals or not last:
        raise OptionError(f"--force_yml: {override!r} is not of the form KEY:KEY=VALUE")
    for depth, section in enumerate(sections, start=1):
        where = ": ".join(sections[:depth])
        if opt.get(section) is None and where in known_sections:
            opt[section] = {}
        if not isinstance(opt.get(section), dict):
            raise OptionError(
                f"--force_yml: {override!r}: there is no section {section!r}; "
                f"{did_you_mean(section, opt)}"
            )
        opt = opt[section]
    try:
        opt[last] = _read_value(value.strip())
        _check_keys(opt[last], (last,))
    except OptionError:
        raise
    except VALUE_ERRORS as error:
        raise OptionError(f"--force_yml: {override!r}: the value is not valid YAML") from error


def _read_value(text: str) -> object:
    word = text.lower()
    if word in PLAIN_WORDS:
        return PLAIN_WORDS[word]
    if NUMBER.fullmatch(text):
        if text.lstrip("+-").isdigit():
            return int(text)
        return float(text)
    if text[0] in "[{!'\"":
        return yaml.load(text, _Loader)
    return text
