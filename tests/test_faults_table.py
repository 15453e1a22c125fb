"""The tables of faults in tests/README.md name tests that exist."""

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_test_that_is_named_exists():
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", (TESTS / "README.md").read_text())
    missing = []
    for path, name in named:
        if f"def {name}(" not in (TESTS / path).read_text():
            missing.append(f"{path}::{name}")
    assert named
    assert missing == []
