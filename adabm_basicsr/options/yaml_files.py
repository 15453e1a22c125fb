"""Reads option files and overrides without running anything that they say: plain values alone are made of them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml

from adabm_basicsr.errors import AdaBMError, did_you_mean, not_found

MAX_VALUES = 100_000  # of an option file, what its anchors repeat counted each time
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
PLAIN_WORDS = {"": None, "~": None, "none": None, "true": True, "false": False}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses keys that stand twice in a section instead of forgetting the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        own = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = [key for index, key in enumerate(own) if key in own[:index]]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"key {twice[0]!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def load_yaml(path: str | Path) -> dict:
    """Read a YAML mapping without constructing anything but plain values.

    Raises:
        AdaBMError: The file is missing or isn't a YAML mapping, a key isn't text or stands twice, or anchors make more
            of it than an option file can be.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise not_found("option file", path)
    try:
        opt = yaml.load(path.read_bytes(), _Loader)
    # Besides its own errors PyYAML lets those of int, float, dates and of deep nesting through.
    except (
        yaml.YAMLError,
        OSError,
        ValueError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise AdaBMError(f"option file {path}{where} is not valid YAML: {problem}") from error
    if not isinstance(opt, dict):
        raise AdaBMError(
            f"option file {path} holds no keys; expected name, model_type, network_g, ..."
        )
    if _count(opt, {}) > MAX_VALUES:
        raise AdaBMError(
            f"option file {path} repeats itself through anchors to more than {MAX_VALUES} values"
        )
    _check_keys(opt, ())
    return opt


def _count(value: object, known: dict[int, float]) -> float:
    """Values below and at ``value``, each as often as it is reached; infinite if it holds itself."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        known[id(value)] = float("inf")  # until it is counted
        known[id(value)] = 1 + sum(
            _count(v, known) for v in (value.values() if isinstance(value, dict) else value)
        )
    return known[id(value)]


def _check_keys(value: object, above: tuple[str, ...]) -> None:
    for key, below in value.items() if isinstance(value, dict) else ():
        if not isinstance(key, str):
            raise AdaBMError(f"{': '.join((*above, repr(key)))}: keys are texts; put it in quotes")
        _check_keys(below, (*above, key))
    for below in value if isinstance(value, list) else ():
        _check_keys(below, above)


def apply_override(opt: dict, override: str) -> None:
    """Set one option as ``--force_yml`` gives it: ``train:total_iter=100``.

    Values are read as BasicSR reads them, without its ``eval``: numbers, true and false, none, lists and mappings
    (as YAML); anything else is text.

    Raises:
        AdaBMError: The form is wrong, or a section doesn't exist.
    """
    keys, equals, value = override.partition("=")
    *sections, last = keys.strip().split(":")
    if not equals or not last:
        raise AdaBMError(f"--force_yml: {override!r} is not of the form KEY:KEY=VALUE")
    for section in sections:
        if not isinstance(opt.get(section), dict):
            raise AdaBMError(
                f"--force_yml: {override!r}: there is no section {section!r}; {did_you_mean(section, opt)}"
            )
        opt = opt[section]
    try:
        opt[last] = _read_value(value.strip())
        _check_keys(opt[last], (last,))
    except (yaml.YAMLError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise AdaBMError(f"--force_yml: {override!r}: the value is not valid YAML") from error


def _read_value(text: str) -> object:
    if text.lower() in PLAIN_WORDS:
        return PLAIN_WORDS[text.lower()]
    if NUMBER.fullmatch(text):
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    return yaml.load(text, _Loader) if text[0] in "[{!'\"" else text
