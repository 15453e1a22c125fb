"""Reads the options that dataclasses of the method define, with their metadata, into the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import Field as TableField
from pydantic import TypeAdapter, WithJsonSchema

from adabm_basicsr.options.kinds import Kind, Range, Text

# Kinds of values in words, where nothing more is known of them.
WORDS = {
    bool: "true or false",
    int: "a whole number",
    str: "a text",
    dict: "a section of keys",
    Mapping: "a section of keys",
    Sequence: "a list of texts",
}


def read_fields(options: type, checks_itself: bool = False) -> dict[str, Any]:
    """Definitions of a table's fields, as `pydantic.create_model` takes them.

    Args:
        options: A dataclass whose fields are made by `quantization.fields.option`.
        checks_itself: Whether the class checks its values, in words of its own. The table then
            has their schema alone, so that each mistake has one message.
    """
    hints = get_type_hints(options)
    found: dict[str, Any] = {}
    for field in fields(options):
        annotation = _without_none(hints[field.name])
        facts = field.metadata
        if checks_itself:
            schema = _schema(annotation, facts)
            kind: Any = Annotated[Any, WithJsonSchema(schema), Kind(_words(annotation, facts))]
        else:
            kind = _kind(annotation, facts)
        described = TableField(default=_default(field), description=facts["description"])
        if facts.get("required"):
            described = TableField(description=facts["description"])
        found[field.name] = (kind, described)
    return found


def _without_none(annotation: Any) -> Any:
    """None stands for the default in every option file, so it is no kind of its own."""
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return Union[tuple(kinds)]  # noqa: UP007


def _default(field: Field) -> Any:
    value = field.default
    if field.default_factory is not MISSING:
        value = field.default_factory()
    if isinstance(value, tuple):
        return list(value)
    return value


def _kind(annotation: Any, facts: Mapping[str, Any]) -> Any:
    """The pydantic type that checks an option."""
    words = _words(annotation, facts)
    if "choices" in facts:
        return Annotated[Literal[facts["choices"]], Kind(words)]
    if annotation is str:
        return Text
    bounds = TableField(ge=facts.get("minimum"), le=facts.get("maximum"))
    if "maximum" in facts:
        return Annotated[annotation, bounds, Range(words)]
    return Annotated[annotation, bounds, Kind(words)]


def _words(annotation: Any, facts: Mapping[str, Any]) -> str:
    """Valid values of an option in words."""
    if "valid" in facts:
        return facts["valid"]
    if "choices" in facts:
        return ", ".join(str(choice) for choice in facts["choices"])
    if "maximum" in facts:
        return f"{facts['minimum']} to {facts['maximum']}"
    if annotation is int and facts.get("minimum") == 1:
        return "a positive whole number"
    if annotation is float:
        return f"a number of at least {facts['minimum']}"
    kind = get_origin(annotation) or annotation
    return WORDS[kind]


def _schema(annotation: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """JSON Schema of an option."""
    schema = TypeAdapter(annotation).json_schema()
    if "choices" in facts:
        schema = {"enum": list(facts["choices"])}
    if "minimum" in facts:
        schema["minimum"] = facts["minimum"]
    if "keys" in facts:
        below = schema.pop("additionalProperties", {})
        if below is True:
            below = {}
        schema["properties"] = {key: below for key in facts["keys"]}
        schema["additionalProperties"] = False
    return schema
