"""The table of faults in tests/README.md names tests that exist."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROWS = [
    line
    for line in (TESTS / "README.md").read_text().splitlines()
    if line.startswith("| ") and "::" in line
]
NAMED = sorted({named for row in ROWS for named in re.findall(r"`([\w/]+\.py::test_\w+)`", row)})


def test_the_table_is_long_enough_and_every_row_has_a_test():
    assert len(ROWS) >= 60
    assert all(re.search(r"`[\w/]+\.py::test_\w+` \|$", row) for row in ROWS)


@pytest.mark.parametrize("named", NAMED)
def test_the_test_exists(named):
    path, name = named.split("::")
    assert f"def {name}(" in (TESTS / path).read_text()
