"""A real in-house network stays close to its full precision, with an option file alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("self_psnr.py")


@pytest.mark.slow
@pytest.mark.shared
def test_imdn_stays_close(tmp_path):
    subprocess.run([sys.executable, SCRIPT, "--out", tmp_path, "--networks", "IMDN"], check=True)
    found = json.loads((tmp_path / "self_psnr.json").read_text())
    assert found["IMDN W8A8"]["self_psnr"] >= 48
    assert found["IMDN W6A6"]["self_psnr"] >= 40
