"""Snapshots of tokenizers in the cache: the backend that transformers built, for `LightTokenizer`.

A snapshot is one file: a line of JSON with the settings, then the backend as JSON. Its name is a digest of everything
that it depends on: the model's files, the tokens that the spec adds, and the versions of the libraries.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.model.light_tokenizer import REPEATED_METHODS, LightTokenizer, TokenizerSettings
from harness.utils import cache_dir
from harness.utils.atomic_write import atomic_write
from harness.utils.file_digests import sha256_of_file
from harness.utils.json_depth import load_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.model.locate import ModelLocation

SNAPSHOT_FORMAT = 1
"""Version of the file and of the rules for it; another version makes every snapshot be written again."""

LIBRARIES = ("tokenizers", "transformers", "harness-sft")
"""Distributions whose versions are part of a snapshot's name."""

WEIGHT_SUFFIXES = {".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".lock"}
"""Files of a model's folder that no tokenizer reads."""

MAX_SNAPSHOTS = 50
"""Snapshots in the cache; one has 2 to 35 MB."""

_PROBE = "Name a river: 12345 metres,\n\n  I'm sure. 再说一条河 <s></s> ﬁ"


def snapshot_file(location: ModelLocation) -> Path | None:
    """Return the file of a model's snapshot; None if the commit of a hub model is not known.

    Args:
        location: The model, without an adapter.
    """
    if location.kind == "hub":
        files: list[list[str]] = []
        if "@" not in location.digest:
            return None
    else:
        folder = Path(location.path)
        names = sorted(
            file.relative_to(folder).as_posix()
            for file in (*folder.glob("*"), *folder.glob("*_chat_templates/*"))
            if file.is_file() and file.suffix not in WEIGHT_SUFFIXES
        )
        files = [[name, sha256_of_file(folder / name)] for name in names]
    versions = [importlib.metadata.version(name) for name in LIBRARIES]
    key = json.dumps([SNAPSHOT_FORMAT, versions, location.digest, asdict(location.added), files])
    return cache_dir.cache_root() / "tokenizers" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def load_snapshot(file: Path, load_full_tokenizer: Callable[[], PreTrainedTokenizerBase]) -> LightTokenizer | None:
    """Return the tokenizer of a snapshot, which is then the last one used; None if there is none or it is damaged."""
    from tokenizers import Tokenizer

    with suppress(OSError):  # the cache may be read-only
        os.utime(file)
    try:
        settings, _, backend = file.read_text(encoding="utf-8").partition("\n")
        return LightTokenizer(
            Tokenizer.from_str(backend), TokenizerSettings(**load_json(settings)), load_full_tokenizer
        )
    except Exception:  # `tokenizers` raises a bare Exception for a damaged file
        return None


def save_snapshot(tokenizer: PreTrainedTokenizerBase, file: Path) -> bool:
    """Write the snapshot of a tokenizer, and return whether it has one.

    A tokenizer has none if its class overrides a method that `LightTokenizer` repeats, or if its backend cannot be
    written and read back to the same ids. A cache that cannot be written costs time and never ends a command.
    """
    text = _serialize(tokenizer)
    if text is None:
        return False
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as draft:
            draft.write_text(text, encoding="utf-8")
        _remove_oldest(file.parent)
    except OSError:
        return False
    return True


def _remove_oldest(folder: Path) -> None:
    """Keep the `MAX_SNAPSHOTS` files that were used last."""
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for file in files[:-MAX_SNAPSHOTS]:
        file.unlink(missing_ok=True)


def _serialize(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the content of a snapshot; None if the tokenizer has none."""
    from tokenizers import Tokenizer
    from transformers import TokenizersBackend

    if not isinstance(tokenizer, TokenizersBackend) or _overrides_method(type(tokenizer), TokenizersBackend):
        return None
    try:
        backend: str = tokenizer.backend_tokenizer.to_str()
        light = LightTokenizer(
            Tokenizer.from_str(backend), TokenizerSettings.of_tokenizer(tokenizer), lambda: tokenizer
        )
        settings = json.dumps(asdict(light.settings))
    except Exception:  # a component written in Python cannot be serialized: `tokenizers` raises a bare Exception
        return None
    same_ids = all(
        light(text, add_special_tokens=special).input_ids == tokenizer(text, add_special_tokens=special).input_ids
        for text in ("", "a", _PROBE, " ".join(light.added_tokens_encoder))
        for special in (True, False)
    )
    same_tokens = all(
        getattr(light, name) == getattr(tokenizer, name)
        for name in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id")
    )
    is_equal = same_ids and same_tokens and light.backend_tokenizer.to_str() == backend
    return f"{settings}\n{backend}" if is_equal else None


def _overrides_method(tokenizer_class: type[Any], base: type[Any]) -> bool:
    return any(
        inspect.getattr_static(tokenizer_class, name, None) is not inspect.getattr_static(base, name, None)
        for name in REPEATED_METHODS
    )
