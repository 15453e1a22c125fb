"""``adabm-basicsr options``: every option of an option file, as text or as a JSON Schema."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from adabm_basicsr.commands.flags import make_parser

SCHEMA = "schema.json"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``adabm-basicsr options``."""
    parser = make_parser("options")
    parser.add_argument(
        "--schema",
        action="store_true",
        help="print the JSON Schema, for editors that complete and check option files",
    )
    args = parser.parse_args(argv)
    if args.schema:
        package = resources.files("adabm_basicsr") / "options"
        print((package / SCHEMA).read_text(encoding="utf-8"), end="")
        return
    from adabm_basicsr.options.listing import format_text, list_options

    print(format_text(list_options()))
