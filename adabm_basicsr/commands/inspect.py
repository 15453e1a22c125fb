"""``adabm-basicsr inspect``: what is in the file of a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from adabm_basicsr.commands.flags import add_custom_imports, make_parser
from adabm_basicsr.deployment.inspection import GRAPH, NCNN, NETWORK, PLAIN, Contents, inspect
from adabm_basicsr.report.tables import Table, cell
from adabm_basicsr.terminal import add_output_flags, json_alone, printable

# Headings of the table, and the keys of the rows under them.
COLUMNS = {
    NETWORK: {
        "layer": "name",
        "role": "role",
        "w bits": "w_bits",
        "a bits": "a_bits",
        "lower": "lower",
        "upper": "upper",
        "weights": "weights",
        "MACs": "macs",
    },
    GRAPH: {
        "layer": "name",
        "operator": "operator",
        "weights": "weights",
        "type": "type",
    },
    NCNN: {
        "layer": "name",
        "operator": "operator",
        "weights": "weights",
        "type": "type",
    },
    PLAIN: {
        "tensor": "name",
        "shape": "shape",
        "type": "type",
    },
}
WRITERS = {"macs": lambda share: f"{100 * share:.1f} %"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = make_parser("inspect")
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="checkpoint (.pth), packed file, .onnx or .param"
    )
    add_custom_imports(parser)
    add_output_flags(parser)
    args = parser.parse_args(argv)
    with json_alone(args.json):
        contents = inspect(args.model, args.custom_imports)
    if args.json:
        print(json.dumps(asdict(contents), indent=1))
    elif not args.quiet:  # otherwise the exit code alone says whether the file can be read
        print(show(contents))


def show(contents: Contents) -> str:
    """Two lines on the file and the table of its rows, for the terminal."""
    facts = []
    for name, value in contents.facts.items():
        if value is not None:
            facts.append(printable(f"{name} {value}"))
    columns = COLUMNS[contents.kind]
    rows = []
    for row in contents.rows:
        rows.append([cell(row, (key,), WRITERS.get(key, str)) for key in columns.values()])
    table = Table(contents.kind, list(columns), rows)
    head = f"{contents.file}: {contents.kind}, {contents.bytes / 1e6:.3f} MB"
    return f"{head}\n{', '.join(facts)}\n\n{table.text()}"
