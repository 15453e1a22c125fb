"""The peak memory of a process is its own."""

import json
import subprocess
import sys
from pathlib import Path

from machine import LIMIT, describe_cpu

BENCHMARKS = Path(__file__).parent
MB = 10**6
TAKE = "import sys, machine; taken = b'1' * int(sys.argv[1]); print(machine.peak_bytes())"
# Holds a gigabyte while another process takes nothing.
PARENT = (
    "import subprocess, sys; held = b'1' * 10**9; "
    "subprocess.run([sys.executable, '-c', sys.argv[1], '1'], check=True)"
)


def printed(*arguments):
    run = subprocess.run(
        [sys.executable, "-c", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=BENCHMARKS,
    )
    return int(run.stdout)


def test_what_a_process_takes_shows():
    more = printed(TAKE, str(300 * MB)) - printed(TAKE, "1")
    assert 295 * MB < more < 330 * MB


def test_what_its_parent_holds_does_not():
    assert abs(printed(PARENT, TAKE) - printed(TAKE, "1")) < 10 * MB


def test_the_cpu_is_named(monkeypatch):
    monkeypatch.setenv(LIMIT, "AVX2")
    found = describe_cpu()
    assert found[LIMIT] == "AVX2"
    assert found["model"]
    assert json.loads(json.dumps(found)) == found  # or each run would find another setting
