"""Writes what is made of the table of options: ``python docs/generate_options.py``.

That is the tables of docs/options.md, between two comments, and the JSON Schema that ships with
the package.
"""

import json
from pathlib import Path

from adabm_basicsr.options.listing import format_markdown, list_options
from adabm_basicsr.options.schema import PATH as SCHEMA_PATH
from adabm_basicsr.options.schema import build_schema

PAGE_PATH = Path(__file__).parent / "options.md"
BEGIN = "<!-- table of options: begin -->"
END = "<!-- table of options: end -->"
EMPTY_PAGE = f"# Option files\n\n{BEGIN}\n{END}\n"


def render_page(page: str) -> str:
    """The page with the tables of today."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = format_markdown(list_options())
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def render_schema() -> str:
    """The JSON Schema, as it is written."""
    return json.dumps(build_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    page = EMPTY_PAGE
    if PAGE_PATH.is_file():
        page = PAGE_PATH.read_text(encoding="utf-8")
    PAGE_PATH.write_text(render_page(page), encoding="utf-8")
    SCHEMA_PATH.write_text(render_schema(), encoding="utf-8")
