"""The memory allocator of the C library."""

from __future__ import annotations

import ctypes
import platform

MMAP_THRESHOLD = 2**20
"""Size of a block, in bytes, from which on a freed block is returned."""

_M_MMAP_THRESHOLD = -3  # of malloc.h


def return_freed_memory() -> bool:
    """Let glibc return large blocks to the system when they are freed. It holds for the rest of the process.

    By default glibc keeps many of them, and they are not always used again: a training step with an adapter was
    measured with 1.5 times as much memory. To return them costs time, since the system clears each new block.

    Returns:
        Whether it does so; False for another C library.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD))
