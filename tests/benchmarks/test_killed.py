"""A killed and resumed run ends in the same checkpoint, to the bit."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "kills", "processes"), [("paper", 3, 1), ("best", 1, 1), ("paper", 1, 2)]
)
def test_killed_and_resumed(tmp_path, recipe, kills, processes):
    command = [sys.executable, SCRIPT, "--out", tmp_path / "runs", "--recipe", recipe]
    command += ["--kills", str(kills), "--processes", str(processes), "--seed", "1"]
    subprocess.run(command, check=True)
