"""Devices that `harness plan --device` knows: their memory and speed, from the vendors' data sheets."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from harness.errors import HarnessError


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        gigabytes: Memory, in units of 2^30 bytes as the driver reports it.
        teraflops: Dense matrix products in 16 bits with sums in float32, in 10^12 operations a second.
        has_bfloat16: Whether it multiplies bfloat16.
    """

    gigabytes: float
    teraflops: float
    has_bfloat16: bool = True


DEVICES: dict[str, Device] = {
    "t4-16": Device(14.7, 65, has_bfloat16=False),
    "v100-16": Device(15.8, 125, has_bfloat16=False),
    "v100-32": Device(31.7, 125, has_bfloat16=False),
    "rtx-3090": Device(23.7, 71),
    "rtx-4090": Device(23.6, 165),
    "rtx-5090": Device(31.4, 210),
    "a10-24": Device(22.1, 125),
    "l4-24": Device(22.2, 121),
    "l40s-48": Device(44.5, 362),
    "a6000-48": Device(47.5, 155),
    "a100-40": Device(39.4, 312),
    "a100-80": Device(79.3, 312),
    "h100-80": Device(79.2, 989),
    "h200-141": Device(139.8, 989),
    "b200-180": Device(178.0, 2250),
}
"""Name -> the device. The memory is what is free on a device without a display."""


def find_device(name: str) -> Device:
    """Return a device by its name.

    Raises:
        HarnessError: There is no such device.
    """
    device = DEVICES.get(name.lower())
    if device is None:
        near = get_close_matches(name.lower(), DEVICES, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(DEVICES)}"
        raise HarnessError("--device", f"{name!r} is not a known device", hint)
    return device
