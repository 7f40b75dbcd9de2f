"""The exporter `hub`: the merged model or the adapter in a repository of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from harness import Component, ComponentExample, ExportedModel, Exporter, ExportSource, HarnessError
from harness.utils.formatting import format_count
from harness_exporters.model_folder import DTYPE_OPTION, TransformersModel, write_model_folder

COMPONENTS = {
    "hub": Component(
        summary="Pushes the model with its model card to a repository of the Hugging Face hub.",
        factory="harness_exporters.hub:Hub",
        options={
            "repo": {
                "type": "string",
                "pattern": "^[\\w.-]+/[\\w.-]+$",
                "description": "The repository, ORGANIZATION/NAME. It is created if it does not exist.",
            },
            "content": {
                "enum": ["merged", "adapter"],
                "default": "merged",
                "description": "merged: the complete model. adapter: the adapter that the run saved.",
            },
            "private": {"type": "boolean", "default": True, "description": "Whether a new repository is private."},
            "dry_run": {
                "type": "boolean",
                "default": False,
                "description": "Write and verify the folder, and list what would be pushed.",
            },
            **DTYPE_OPTION,
        },
        required=("repo",),
        example=ComponentExample({"repo": "org/name", "dry_run": True}),
    )
}

ADAPTER_LINES = """```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained({repo!r})
tokenizer = AutoTokenizer.from_pretrained({repo!r})
```
"""


class Hub(Exporter):
    """Writes a model folder, pushes it, and compares the checksums of all files on the hub.

    The address and the token are those of huggingface_hub: `HF_ENDPOINT`, `HF_TOKEN` or `hf auth login`.
    """

    def __init__(self, repo: str, content: str, private: bool, dry_run: bool, dtype: str) -> None:
        """Create an exporter; see the options of the component."""
        self._repo, self._content, self._private, self._dry_run, self._dtype = repo, content, private, dry_run, dtype

    def check_available(self) -> None:
        """Check that the hub can be reached with a valid token.

        Raises:
            HarnessError: It cannot.
        """
        if self._dry_run:
            return
        from huggingface_hub import HfApi

        try:
            HfApi().whoami()
        except Exception as error:
            raise _hub_error(self._repo, error) from error

    def export(self, source: ExportSource, folder: Path) -> str:
        """Write the folder.

        Raises:
            HarnessError: The run saved no adapter.
        """
        if self._content == "merged":
            return write_model_folder(source, folder, self._dtype, load_from=self._repo)
        if not (source.model / "adapter_config.json").is_file():
            what = "the run trained the complete model, not an adapter"
            raise HarnessError("export hub", what, "use --set content=merged")
        shutil.copytree(source.model, folder, dirs_exist_ok=True)
        source.tokenizer.save_pretrained(folder)
        source.write_card(folder, ADAPTER_LINES.format(repo=self._repo), merged=False)
        return "adapter with its tokenizer"

    def load(self, folder: Path, max_tokens: int) -> ExportedModel:
        """Load the folder, an adapter on its base model."""
        return TransformersModel.from_folder(folder)

    def publish(self, folder: Path) -> str:
        """Push the folder, and compare the checksums of the files on the hub with its own.

        Raises:
            HarnessError: The hub refuses, or a file differs.
        """
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        size = format_count(sum(file.stat().st_size for file in files), "B")
        if self._dry_run:
            shown = ", ".join(str(file.relative_to(folder)) for file in files)
            return f"dry run: {len(files)} files with {size} would be pushed to {self._repo}: {shown}"
        from huggingface_hub import HfApi

        api = HfApi()
        try:
            api.create_repo(self._repo, private=self._private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=self._repo, folder_path=folder, commit_message="Add the model of a harness run"
            )
            names = [str(file.relative_to(folder)) for file in files]
            stored = {info.path: info for info in api.get_paths_info(self._repo, names, revision=commit.oid)}
        except Exception as error:
            raise _hub_error(self._repo, error) from error
        for file, name in zip(files, names, strict=True):
            if name not in stored or not _has_checksum(file, stored[name]):
                what = f"{name} on the hub differs from the verified file, or is missing"
                raise HarnessError(f"hub {self._repo}", what, "push again: the same command")
        return f"pushed to {commit.commit_url}: {len(files)} files with {size}, all checksums equal"


def _has_checksum(file: Path, stored: Any) -> bool:
    """Return whether a file has the checksum that the hub has: SHA-256 of a large file, else that of a git blob."""
    content = file.read_bytes() if stored.lfs is None else b""
    if stored.lfs is None:
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == str(stored.blob_id)
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == str(stored.lfs.sha256)


def _hub_error(repo: str, error: Exception) -> HarnessError:
    if isinstance(error, HarnessError):
        return error
    status = getattr(getattr(error, "response", None), "status_code", None)
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if status in (401, 403) or "oken" in type(error).__name__:
        return HarnessError(f"hub {repo}", f"the hub refuses access: {text}", "log in with write access: hf auth login")
    return HarnessError(f"hub {repo}", f"cannot push: {text}", "check the network, HF_ENDPOINT and HF_HUB_OFFLINE")
