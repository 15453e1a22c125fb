"""Which kind of value each option takes, so that a wrong one is told by its name before anything runs."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import NamedTuple

from adabm_basicsr.errors import AdaBMError


class Kind(NamedTuple):
    """A kind of value: what to call it, and whether a value is of it."""

    name: str
    fits: Callable[[object], bool]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object, low: float = float("-inf")) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**63


def _is_folder_name(value: object) -> bool:
    """Whether it names one folder below the one that it is joined to: earlier results of that name are moved aside."""
    return _is_text(value) and bool(value) and PurePath(value).name == value != ".."


def _is_list(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


SECTION = Kind("a section of keys", lambda value: isinstance(value, dict))
TEXT = Kind("a text", _is_text)
TEXTS = Kind("a list of texts", lambda value: _is_text(value) or _is_list(value, _is_text))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
SEED = Kind("a whole number", _is_whole)
COUNT = Kind("a positive whole number", lambda value: _is_whole(value, 1))
FREQUENCY = Kind(
    "a positive whole number", lambda value: _is_number(value) and value >= 1 and value % 1 == 0
)  # 5e3
NUMBERS = Kind("a list of numbers", lambda value: _is_list(value, _is_number))
SUFFIX = Kind("part of a file's name", lambda value: _is_text(value) and "/" not in value)
PREFETCH = Kind("'cpu' or 'cuda'", lambda value: value in ("cpu", "cuda"))
NAME = Kind("a name for files and folders, without '/'", _is_folder_name)

# By the keys that lead to an option. Those that are checked where they are used are left out.
KINDS = {
    "name": NAME,
    "model_type": TEXT,
    "scale": COUNT,
    "manual_seed": SEED,
    "dist_params": SECTION,
    "find_unused_parameters": FLAG,
    "datasets": SECTION,
    "datasets: *": SECTION,
    "datasets: *: name": NAME,
    "datasets: *: type": TEXT,
    "datasets: *: dataroot_*": TEXT,
    "datasets: *: meta_info_file": TEXT,
    "datasets: *: filename_tmpl": TEXT,
    "datasets: *: color": TEXT,
    "datasets: *: mean": NUMBERS,
    "datasets: *: std": NUMBERS,
    "datasets: *: io_backend": SECTION,
    "datasets: *: use_*": FLAG,
    "datasets: *: seed": SEED,
    "datasets: *: prefetch_mode": PREFETCH,
    "datasets: *: num_prefetch_queue": COUNT,
    "datasets: *: pin_memory": FLAG,
    "datasets: *: persistent_workers": FLAG,
    "network_g": SECTION,
    "network_g: type": TEXT,
    "network_g: network": SECTION,
    "network_g: network: type": TEXT,
    "network_g: custom_imports": TEXTS,
    "path": SECTION,
    "path: pretrain_*": TEXT,
    "path: resume_state": TEXT,
    "path: param_key_*": TEXT,
    "path: strict_load_*": FLAG,
    "path: ignore_resume_networks": TEXTS,
    "train": SECTION,
    "train: pbar": FLAG,
    "train: finetune": SECTION,
    "train: finetune: learning_rates": SECTION,
    "val": SECTION,
    "val: val_freq": FREQUENCY,
    "val: save_img": FLAG,
    "val: suffix": SUFFIX,
    "val: pbar": FLAG,
    "val: metrics": SECTION,
    "val: metrics: *": SECTION,
    "val: metrics: *: type": TEXT,
    "val: metrics: *: better": TEXT,
    "logger": SECTION,
    "logger: use_tb_logger": FLAG,
    "logger: wandb": SECTION,
    "logger: wandb: *": TEXT,
}


def check_kinds(opt: dict) -> None:
    """Raise `AdaBMError` for the first option whose value is not of its kind; None stands for a default."""
    for keys, value in _options(opt, ()):
        kind = next(
            (kind for pattern, kind in KINDS.items() if _matches(keys, pattern.split(": "))), None
        )
        if kind is not None and value is not None and not kind.fits(value):
            raise AdaBMError(f"{': '.join(keys)}: {reprlib.repr(value)} is not {kind.name}")


def _options(section: dict, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    for key, value in section.items():
        yield (*above, key), value
        if isinstance(value, dict):
            yield from _options(value, (*above, key))


def _matches(keys: tuple[str, ...], patterns: list[str]) -> bool:
    return len(keys) == len(patterns) and all(map(fnmatchcase, keys, patterns))
