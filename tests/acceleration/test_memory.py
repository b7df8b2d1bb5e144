"""Freed memory is used again, and not cleared by the system each time."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch as th
def faults_of_work():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [th.ones(200_000) + 1 for _ in range(60)]  # 200 pages each, twice
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults_of_work()
print(faults_of_work())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's rule")
def test_large_blocks_stay():
    script = f"import sb3_mbrl{FAULTS}"  # without ours, it prints some 7 000
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 500
