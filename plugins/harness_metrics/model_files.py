"""The identity of a model by the files of its folder. Nothing is loaded, and torch is not imported."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from harness.utils import file_digests

TOKENIZER_FILES = ("tokenizer*.json", "vocab.*", "merges.txt", "*.model")
CHAT_FILES = ("chat_template*", "additional_chat_templates/*", "special_tokens_map.json", "added_tokens.json")
"""Further files that a chat model's prompts depend on."""


def model_fingerprint(folder: Path, patterns: Iterable[str] = TOKENIZER_FILES) -> str:
    """Return the folder's name, and twelve digits of a digest of its weights, config and tokenizer.

    Args:
        folder: The folder of the model.
        patterns: The files beside weights and config that count.
    """
    digest = hashlib.sha256(file_digests.digest_folder(folder).encode())
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    for file in sorted(files):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{file_digests.digest_file(file)}\n".encode())
    return f"{folder.name}@{digest.hexdigest()[:12]}"
