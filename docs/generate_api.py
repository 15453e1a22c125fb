"""Writes api.md, the reference of the public Python API, from its docstrings.

Run it with ``python docs/generate_api.py``.
"""

import inspect
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import adabm_basicsr

PATH = Path(__file__).parent / "api.md"
HEADER = """\
# Python API

Everything that `import adabm_basicsr` offers, written by `docs/generate_api.py` from the \
docstrings.
"""
MAX_LINE = 100
SECTION = re.compile(r"^(\w[\w ]*):$")
ENTRY = re.compile(r"^ {4}(\**\w[^:]*): (.*)$")


def to_markdown(docstring: str) -> str:
    """A Google-style docstring as Markdown: section headings in bold, their entries as a list."""
    lines = []
    in_section = False
    for line in docstring.splitlines():
        if heading := SECTION.match(line):
            in_section = True
            lines += [f"**{heading[1]}**", ""]
        elif in_section and (entry := ENTRY.match(line)):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            text = line.strip()
            continues_entry = text and lines and lines[-1].startswith(("- ", "  "))
            if continues_entry:
                text = f"  {text}"
            lines.append(text)
    return "\n".join(lines).replace("``", "`")


def signature(name: str, item: object) -> str:
    """``name(parameters) -> result`` as a code block, without the modules of the types.

    Exceptions have none.
    """
    if inspect.isclass(item) and issubclass(item, Exception):
        return ""
    found = inspect.signature(item)
    parameters = [
        _plain(str(parameter))
        for parameter in found.parameters.values()
        if parameter.name != "self"
    ]
    result = ""
    if not inspect.isclass(item):
        without_parameters = _plain(str(found.replace(parameters=())))
        result = without_parameters.removeprefix("()")
    text = f"{name}({', '.join(parameters)}){result}"
    if len(text) > MAX_LINE:
        indented = [f"    {parameter}," for parameter in parameters]
        text = "\n".join([f"{name}(", *indented, f"){result}"])
    return f"```python\n{text}\n```\n\n"


def _plain(text: str) -> str:
    """A parameter or result without quotes around its type, and without the modules of types."""
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text).replace("<factory>", "{}")


def render_item(name: str) -> str:
    """Section of a public function or class, with the public methods that the class defines."""
    item = getattr(adabm_basicsr, name)
    parts = [f"## {name}\n\n{signature(name, item)}{to_markdown(inspect.getdoc(item))}"]
    if is_dataclass(item):
        parts.append(render_fields(item))
    if inspect.isclass(item):
        for key, method in vars(item).items():
            if inspect.isfunction(method) and not key.startswith("_"):
                text = to_markdown(inspect.getdoc(method))
                parts.append(f"### {name}.{key}\n\n{signature(key, method)}{text}")
    return "\n\n".join(parts)


def render_fields(item: type) -> str:
    """The fields of a dataclass, with what their metadata says of them."""
    lines = ["**Fields**", ""]
    for field in fields(item):
        description = field.metadata.get("description")
        if description:
            lines.append(f"- `{field.name}`: {description}")
    return "\n".join(lines)


def render() -> str:
    """The whole page."""
    sections = [HEADER]
    for name in adabm_basicsr.__all__:
        if not name.startswith("__"):
            sections.append(f"{render_item(name)}\n")
    return "\n".join(sections)


if __name__ == "__main__":
    PATH.write_text(render())
