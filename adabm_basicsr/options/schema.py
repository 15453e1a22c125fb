"""The JSON Schema of option files, made of the table of options, for editors that read it.

``schema.json`` beside this module is what `build_schema` gives; ``docs/generate_options.py`` writes
it. A file for one of BasicSR's own models is checked as far as the sections are ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from adabm_basicsr.options.table import (
    DATASETS,
    AdaBMNetwork,
    Architecture,
    Dataset,
    DescribedNetwork,
    OptionFile,
    PlainNetwork,
    Section,
)

PATH = Path(__file__).parent / "schema.json"
DRAFT = "http://json-schema.org/draft-07/schema#"  # the newest that editors know in full

Schema = dict[str, Any]


def build_schema() -> Schema:
    """The schema, in JSON's types."""
    sections: list[type[Section]] = [
        OptionFile,
        Dataset,
        *DATASETS.values(),
        AdaBMNetwork,
        Architecture,
        DescribedNetwork,
        PlainNetwork,
    ]
    unique = dict.fromkeys(sections)
    _, made = models_json_schema(
        [(section, "validation") for section in unique],
        ref_template="#/definitions/{model}",
    )
    definitions = made["$defs"]
    for definition in definitions.values():
        _plain(definition)
    definitions["Dataset"].pop("additionalProperties")  # BasicSR's own types have further keys
    ours = definitions["OptionFile"]
    ours["properties"]["datasets"] = _datasets(ours["properties"]["datasets"]["description"])
    ours["properties"]["network_g"] = _network(ours["properties"]["network_g"]["description"])
    ours["anyOf"] = [
        {"required": ["train", "logger", "network_g"]},
        {"required": ["val"]},
    ]
    definitions["BasicSRFile"] = _open_file(ours)
    return {
        "$schema": DRAFT,
        "title": "Option file of adabm-basicsr",
        "type": "object",
        "if": {"properties": {"model_type": {"const": "AdaBMModel"}}},
        "then": _reference("OptionFile"),
        "else": _reference("BasicSRFile"),
        "definitions": definitions,
    }


def _reference(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _plain(definition: Schema) -> None:
    """Take out what editors have no use for, and let each key that isn't needed be empty."""
    definition.pop("title")
    needed = definition.get("required", [])
    properties = definition.get("properties", {})
    for key, option in properties.items():
        option.pop("title", None)
        option.pop("exclusiveMaximum", None)  # beyond what anyone would write
        if option.get("default") is None:
            option.pop("default", None)
        if key not in needed:
            properties[key] = _or_empty(option)


def _or_empty(option: Schema) -> Schema:
    """The same option, or nothing, which stands for its default."""
    option = dict(option)
    outside: Schema = {}
    for key in ("description", "default"):
        if key in option:
            outside[key] = option.pop(key)
    if not option:
        return outside
    if set(option) <= {"type", "items", "minimum", "maximum", "properties"}:
        option["type"] = [option["type"], "null"]
        return option | outside
    if "enum" in option:
        option["enum"] = [*option["enum"], None]
        option.pop("type", None)
        return option | outside
    return {"anyOf": [option, {"type": "null"}]} | outside


def _datasets(description: str) -> Schema:
    """Each data set by its type."""
    choices = []
    for name, section in DATASETS.items():
        is_of_type = {"properties": {"type": {"const": name}}, "required": ["type"]}
        choices.append({"if": is_of_type, "then": _reference(section.__name__)})
    names = list(DATASETS)
    is_other = {"properties": {"type": {"not": {"enum": names}}}}
    choices.append({"if": is_other, "then": _reference("Dataset")})
    return {
        "type": "object",
        "description": description,
        "additionalProperties": {"type": "object", "allOf": choices},
    }


def _network(description: str) -> Schema:
    """The network by its type; without one the checkpoint describes it."""
    is_quantized = {
        "properties": {"type": {"const": AdaBMNetwork.__name__}},
        "required": ["type"],
    }
    plain = {
        "if": {"required": ["type"]},
        "then": _reference("PlainNetwork"),
        "else": _reference("DescribedNetwork"),
    }
    return {
        "type": ["object", "null"],
        "description": description,
        "if": is_quantized,
        "then": _reference(AdaBMNetwork.__name__),
        "else": {"anyOf": [{"type": "null"}, plain]},
    }


def _open_file(ours: Schema) -> Schema:
    """A file for one of BasicSR's own models: sections that are ours, and whatever else it has."""
    properties = dict(ours["properties"])
    for key in ("datasets", "path", "train", "val", "logger"):
        properties[key] = {}
    return {"type": "object", "properties": properties, "required": ours["required"]}
