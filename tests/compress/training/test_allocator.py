"""Memory of a step stays for the next one, and goes back afterwards."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from edgekit.compress.training import allocator
from edgekit.compress.training.allocator import memory_kept

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or allocator._glibc() is None, reason="only glibc's malloc is told anything"
)

# in a process of its own: what other tests have left in the heap would serve for the blocks
PROGRAM = """
import resource, torch
from edgekit.compress.training.allocator import memory_kept

MB_64 = 2**24

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(MB_64)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1])

faults(1)
print(resident(), faults(5))
with memory_kept():
    faults(12)  # until freed blocks have merged to what an aligned one fits into (glibc before 2.38)
    print(resident(), faults(5))
print(resident(), faults(5))
try:
    with memory_kept():
        raise RuntimeError
except RuntimeError:
    print(resident(), faults(5))
"""


def test_a_block_that_comes_again_costs_no_new_pages_and_all_goes_back_at_the_end() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, within, after, failed = ([int(n) for n in line.split()] for line in ran.stdout.splitlines())
    block = 2**26 // resource.getpagesize()
    assert before[1] > 4 * block and within[1] < block / 4
    assert within[0] > before[0] + block / 2
    assert after[0] < before[0] + block / 2
    for _, faults in (after, failed):
        assert faults > block  # not of all five: malloc may have kept the addresses, without their pages


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    with memory_kept():
        pass
