"""Kinds of values that options take: pydantic's types, and the words for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

LARGEST = 2**63  # beyond which torch and numpy take no whole number


@dataclass(frozen=True)
class Kind:
    """What a kind of value is called: ``WHERE: KEY: VALUE is not NAME``."""

    name: str


@dataclass(frozen=True)
class Range:
    """Values of a kind that has bounds: ``WHERE: KEY: VALUE is out of range; valid: VALID``."""

    valid: str


def _check_text(value: str) -> str:
    if "\0" in value:
        raise ValueError("no file or key can hold the character 0")
    return value


def _check_suffix(value: str) -> str:
    if "/" in value:
        raise ValueError("it leads to another folder")
    return value


def _check_folder_name(value: str) -> str:
    """Earlier results of that name are moved aside, so it must name one folder below its parent."""
    if not value or value == ".." or PurePath(value).name != value:
        raise ValueError("it names no folder, or one elsewhere")
    return value


Flag = Annotated[bool, Kind("true or false")]
Text = Annotated[str, AfterValidator(_check_text), Kind("a text")]
Texts = Annotated[Text | list[Text], Kind("a list of texts")]
Name = Annotated[
    Text,
    AfterValidator(_check_folder_name),
    Kind("a name for files and folders, without '/'"),
]
Suffix = Annotated[Text, AfterValidator(_check_suffix), Kind("part of a file's name")]
Whole = Annotated[int, Field(lt=LARGEST), Kind("a whole number")]
Count = Annotated[int, Field(ge=1, lt=LARGEST), Kind("a positive whole number")]
Size = Annotated[int, Field(ge=1, lt=LARGEST), Kind("a whole number of at least 1")]
Overlap = Annotated[int, Field(ge=0, lt=LARGEST), Kind("a whole number of at least 0")]
Number = Annotated[float, Kind("a number")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), Kind("a number above 0")]
Numbers = Annotated[list[float], Kind("a list of numbers")]
# Whole numbers of iterations may be written as 5e3, which YAML reads as a float.
Iterations = Annotated[
    float,
    Field(ge=0, multiple_of=1, allow_inf_nan=False),
    Kind("a whole number of iterations"),
]
Interval = Annotated[
    float,
    Field(ge=1, multiple_of=1, allow_inf_nan=False),
    Kind("a whole number of iterations"),
]
Frequency = Annotated[
    float,
    Field(ge=1, multiple_of=1, allow_inf_nan=False),
    Kind("a positive whole number"),
]
Gpus = Annotated[
    Literal["auto"] | Annotated[int, Field(ge=0)],
    Kind("a number of GPUs; valid: auto, 0, 1, ..."),
]
Prefetch = Annotated[Literal["cpu", "cuda"], Kind("'cpu' or 'cuda'")]
OpenSection = Annotated[dict[str, Any], Kind("a section of keys")]
