"""Read a model's config.json as plain data, without the network and without transformers where the file is here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.model.locate import ModelLocation
from harness.model.position_limit import text_config
from harness.model.pypi_wheel import PYPI_SCHEME, parse_wheel_reference
from harness.utils import cache_dir
from harness.utils.find_run import RUN_SCHEME, find_run
from harness.utils.json_depth import load_json

CONFIG_FILE = "config.json"


def find_model_config(settings: Mapping[str, Any], output: str | Path = "runs") -> Mapping[str, Any] | None:
    """Return the config of the model that a spec names, if it is on this machine already.

    Downloads, converts and hashes nothing. What is wrong with the model is reported by `resolve_model`.

    Args:
        settings: The spec's `model`.
        output: The folder that holds the runs, for `run:<name>`.

    Returns:
        The content of config.json; None if it is not here.
    """
    path = str(settings["path"]).strip()
    with contextlib.suppress(HarnessError, OSError, ValueError, KeyError, TypeError):
        if path.startswith(RUN_SCHEME):
            return _find_run_config(find_run(path.removeprefix(RUN_SCHEME), output), settings, output)
        if path.startswith(PYPI_SCHEME):
            return _read_config(cache_dir.model_folder(parse_wheel_reference(path).sha256))
        folder = Path(path).expanduser()
        return (
            _read_config(folder) if folder.is_dir() else _read_config(cached_hub_folder(path, settings.get("revision")))
        )
    return None


def load_located_config(location: ModelLocation) -> Mapping[str, Any] | None:
    """Return the config of a located model; of an adapter, that of its base model. None if it cannot be read.

    The config of a hub model is downloaded if it is not cached.
    """
    location = location.base or location
    try:
        if location.kind != "hub":
            return _read_config(Path(location.path))
        from huggingface_hub import hf_hub_download

        file = hf_hub_download(
            location.path, CONFIG_FILE, revision=location.revision, local_files_only=not location.reachable
        )
        return _read_config(Path(file).parent)
    except Exception:  # the hub's client has many errors; `load_model` reports them with a remedy
        return None


def embedding_rows(config: Mapping[str, Any] | None) -> int | None:
    """Return the number of rows of the embeddings in the model's files; None if it is unknown."""
    rows = None if config is None else text_config(config).get("vocab_size")
    return rows if isinstance(rows, int) else None


def _find_run_config(run_folder: Path, settings: Mapping[str, Any], output: str | Path) -> Mapping[str, Any] | None:
    model_folder = run_folder / "model"
    if (model_folder / CONFIG_FILE).is_file():
        return _read_config(model_folder)
    adapter = load_json((model_folder / "adapter_config.json").read_text(encoding="utf-8"))
    base_folder = Path(str(adapter["base_model_name_or_path"]))
    if base_folder.is_dir():
        return _read_config(base_folder)
    earlier = load_json((run_folder / "spec.json").read_text(encoding="utf-8"))["model"]
    return find_model_config({**settings, **earlier}, output)


def cached_hub_folder(name: str, revision: str | None = None) -> Path:
    """Return the folder in the hub's cache that holds a model's files, if they were downloaded.

    Args:
        name: The hub id, `owner/name`.
        revision: A branch, a tag or a commit; None: `main`.
    """
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser() / f"models--{name.replace('/', '--')}"
    reference = cache / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else str(revision)
    return cache / "snapshots" / commit


def _read_config(folder: Path) -> Mapping[str, Any] | None:
    config = load_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return config if isinstance(config, Mapping) else None
