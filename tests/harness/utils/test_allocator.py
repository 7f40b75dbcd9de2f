"""Freed memory is returned to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from harness.utils import allocator

MAPPED_BLOCKS = """
import ctypes
from harness.utils import allocator
assert allocator.return_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
size = 4 * allocator.MMAP_THRESHOLD
libc.free(libc.malloc(size))  # by default glibc takes the next block of this size from its heap
before = libc.sbrk(0)
blocks = [libc.malloc(size) for _ in range(4)]
assert libc.sbrk(0) == before, "the heap has grown"
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_large_block_is_mapped_and_not_part_of_the_heap():
    subprocess.run([sys.executable, "-c", MAPPED_BLOCKS], check=True, timeout=60)
    other = MAPPED_BLOCKS.replace("assert allocator.return_freed_memory()", "")
    assert subprocess.run([sys.executable, "-c", other], timeout=60, stderr=subprocess.DEVNULL).returncode == 1


def test_another_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not allocator.return_freed_memory()
