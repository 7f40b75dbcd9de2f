"""Whether this machine can have an accelerator, without importing torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DEVICE_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")
"""Files that the drivers of NVIDIA and AMD create on Linux; `/dev/dxg` in a virtual machine of Windows."""


def may_have_cuda() -> bool:
    """Return False if `torch.cuda.is_available()` is certainly False here: no driver, or no visible device.

    True means that only torch knows.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if sys.platform == "darwin":
        return False
    return not sys.platform.startswith("linux") or any(Path(file).exists() for file in DEVICE_FILES)
