"""What a process frees is used again without fresh pages."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from longspan.train.heap import keep_freed_memory
assert keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(64 * 2**20)
    del block
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose heap this sets")
def test_freed_memory_is_used_again():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    _, again = map(int, done.stdout.split())
    assert again < 1000, "64 MiB are 16,384 pages"
