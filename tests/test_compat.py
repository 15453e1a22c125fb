"""Work-arounds that are seen from outside."""

import subprocess
import sys

import pytest

COUNT = """
import resource, sys
from adabm_basicsr.compat import keep_freed_memory
import torch
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16_000_000)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again():
    keep, plain = (
        int(subprocess.run([sys.executable, "-c", COUNT, mode], check=True, stdout=subprocess.PIPE).stdout)
        for mode in ("keep", "plain")
    )
    assert keep < 100 and keep <= plain
