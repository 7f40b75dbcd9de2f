"""The device of this machine: what a drafted spec is sized for, and what `harness doctor` shows."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DeviceFacts:
    """The device that trains.

    Attributes:
        name: Its name.
        gpu_memory: Memory of the smallest GPU in GB; None: there is no GPU.
        gpus: Number of GPUs.
        cores: Number of CPU cores of this process.
        memory: Memory of the machine in GB; None: unknown.
    """

    name: str
    gpu_memory: float | None
    gpus: int
    cores: int
    memory: float | None


def find_device() -> DeviceFacts:
    """Return the device of this machine, without importing torch: the GPUs are those that nvidia-smi lists."""
    gpus = _list_gpus()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = _machine_memory()
    if gpus:
        return DeviceFacts(gpus[0][0], min(size for _, size in gpus), len(gpus), cores, memory)
    return DeviceFacts("CPU", None, 0, cores, memory)


def _list_gpus() -> list[tuple[str, float]]:
    """Return (name, GB of memory) of each GPU that the process may use."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    gpus = []
    for line in completed.stdout.splitlines() if completed.returncode == 0 else ():
        name, _, megabytes = line.rpartition(",")
        if megabytes.strip().isdigit():
            gpus.append((name.strip(), int(megabytes) * 2**20 / 1e9))
    return gpus


def _machine_memory() -> float | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024 / 1e9
    except (OSError, ValueError, IndexError):
        pass
    return None
