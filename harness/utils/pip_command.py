"""Get single wheels of a package index with the user's own pip and its settings."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

from harness.errors import HarnessError
from harness.utils import cache_dir

_NETWORK_ERROR_PATTERN = re.compile(
    r"Retrying \(|NewConnectionError|ConnectionError|NameResolutionError|Temporary failure in name resolution"
    r"|ProxyError|ReadTimeout|ConnectTimeout|SSLError|Network is unreachable",
)


def pip_command(where: str, verb: str, requirement: str, otherwise: str = "") -> list[str]:
    """Return the start of a command of pip that gets one wheel without what it requires.

    Args:
        where: The location that errors name.
        verb: `download` or `install`.
        requirement: NAME==VERSION, for the error.
        otherwise: Appended to the remedy.

    Raises:
        HarnessError: This Python has no pip.
    """
    if importlib.util.find_spec("pip") is None:
        what = f"{sys.executable} has no pip to download {requirement} with"
        raise HarnessError(where, what, f"run `{sys.executable} -m ensurepip`{otherwise}")
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    return [sys.executable, "-m", "pip", verb, *options]


def pip_error(where: str, requirement: str, output: str, folder: Path, otherwise: str = "") -> HarnessError:
    """Return the error of a pip that failed, as one line with a remedy.

    Args:
        where: The location that the error names.
        requirement: NAME==VERSION.
        output: What pip printed.
        folder: The folder that it wrote to.
        otherwise: Appended to the remedy if the index cannot be reached.
    """
    if "No space left on device" in output or "Errno 28" in output:
        return cache_dir.no_space_error(folder, f"to download {requirement}")
    if _NETWORK_ERROR_PATTERN.search(output):
        what = f"no package index could be reached to download {requirement}"
        return HarnessError(where, what, f"check the network and pip's settings (`pip config list`){otherwise}")
    if "No matching distribution found" in output:
        available = re.search(r"\(from versions: ([^)]*)\)", output)
        versions = available[1] if available and available[1] != "none" else ""
        hint = f"it has {versions}" if versions else "check the package's name and version"
        return HarnessError(where, f"the package index has no wheel of {requirement}", hint)
    lines = output.strip().splitlines()
    errors = [line for line in lines if "ERROR" in line] or lines[-1:] or ["no output"]
    what = f"pip could not download {requirement}: {errors[-1].strip()}"
    return HarnessError(where, what, f"run `pip download --no-deps {requirement}` to see why")
