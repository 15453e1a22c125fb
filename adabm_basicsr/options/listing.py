"""The table of options in words: for ``adabm-basicsr options`` and the documentation."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args, get_origin

from pydantic.fields import FieldInfo

from adabm_basicsr.options.kinds import Kind, Range
from adabm_basicsr.options.table import SECTIONS, Section

WIDTH = 100
INDENT = " " * 4


class Row(NamedTuple):
    """An option in words.

    Attributes:
        key: Its key.
        values: Which values it takes.
        default: Its value where the file doesn't give it; empty if there is none.
        description: What it does.
    """

    key: str
    values: str
    default: str
    description: str


def list_options() -> dict[str, list[Row]]:
    """The options of each section, by what leads to the section; empty for the file itself."""
    return {where: _rows(section) for where, section in SECTIONS.items()}


def _rows(section: type[Section]) -> list[Row]:
    rows = []
    for key, option in section.model_fields.items():
        description = option.description or ""
        rows.append(Row(key, _values(option), _default(option), description))
    return rows


def _values(option: FieldInfo) -> str:
    for fact in reversed(option.metadata):
        if isinstance(fact, Kind):
            return fact.name
        if isinstance(fact, Range):
            return fact.valid
    if get_origin(option.annotation) is Literal:
        return ", ".join(str(choice) for choice in get_args(option.annotation))
    return "a section of keys"


def _default(option: FieldInfo) -> str:
    if option.is_required():
        return "needed"
    if option.default is None:
        return ""
    if isinstance(option.default, str):
        return option.default
    return json.dumps(option.default)


def format_text(sections: Mapping[str, list[Row]]) -> str:
    """All options as text to read on a terminal."""
    lines = []
    for where, rows in sections.items():
        title = where or "the file itself"
        lines += ["", f"{title}:"]
        for row in rows:
            facts = row.values
            if row.default == "needed":
                facts += "; needed"
            elif row.default:
                facts += f"; default: {row.default}"
            text = f"{row.description} ({facts})"
            lines.append(f"  {row.key}")
            lines += textwrap.wrap(text, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)
    return "\n".join(lines[1:])


def format_markdown(sections: Mapping[str, list[Row]]) -> str:
    """All options as tables for the documentation."""
    parts = []
    for where, rows in sections.items():
        title = "The file itself"
        if where:
            title = f"`{where}`"
        lines = [
            f"### {title}",
            "",
            "| key | values | default | what it does |",
            "| --- | --- | --- | --- |",
        ]
        for row in rows:
            default = row.default
            if default not in ("", "needed"):
                default = f"`{default}`"
            cells = [f"`{row.key}`", row.values, default, row.description]
            escaped = [cell.replace("|", r"\|") for cell in cells]
            lines.append(f"| {' | '.join(escaped)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
