"""Rows from datasets of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import Component, ComponentExample, HarnessError, Record, Source
from harness_sources.arrow import convert_nested

COMPONENTS: dict[str, Component] = {
    "hub": Component(
        summary="Reads rows from a dataset of the Hugging Face hub; its code is never executed.",
        factory="harness_sources.hub:HubSource",
        options={
            "name": {
                "type": "string",
                "pattern": r"^[\w.-]+(/[\w.-]+)?$",
                "description": "The dataset's id, e.g. tatsu-lab/alpaca.",
            },
            "config": {
                "type": ["string", "null"],
                "default": None,
                "description": "The dataset's configuration. null: its default one.",
            },
            "split": {
                "type": "string",
                "minLength": 1,
                "default": "train",
                "description": "The split, e.g. train, or a slice of one: train[:1000].",
            },
            "revision": {
                "type": ["string", "null"],
                "default": None,
                "description": "Branch, tag or commit; a commit makes the run repeatable. null: main.",
            },
            "streaming": {
                "type": "boolean",
                "default": False,
                "description": "Fetch rows as they are read and keep no copy: with `head`, only as many as needed.",
            },
        },
        required=("name",),
        example=ComponentExample({"name": "org/data"}),
    ),
}

is_commit_hash = re.compile(r"[0-9a-f]{40}").fullmatch

NETWORK_PACKAGES = ("httpx", "httpx2", "requests", "aiohttp")
"""Packages whose errors are network errors, not errors of a dataset."""


class HubSource(Source):
    """The rows of one split of a dataset. A location is `hub:name/split:[index]`, from 0.

    The dataset's code is never executed: a dataset that needs it is an error. Private datasets are read with the token
    of `hf auth login` or $HF_TOKEN. A branch or tag is resolved to its commit first, so that the recorded commit is the
    one that was read.
    """

    def __init__(self, name: str, config: str | None, split: str, revision: str | None, streaming: bool) -> None:
        """Create the source.

        Args:
            name: The dataset's id.
            config: Its configuration; None: the default one.
            split: The split, or a slice of one.
            revision: Branch, tag or commit; None: main.
            streaming: Fetch rows as they are requested and store nothing.
        """
        self.name, self.config, self.split = name, config, split
        self.revision, self.streaming = revision, streaming
        self.location = f"hub:{name}"
        self.commit: str | None = None

    def records(self) -> Iterator[Record]:
        """Yield every row with its index.

        Raises:
            HarnessError: The dataset does not exist or cannot be reached.
        """
        index = -1
        with self._as_harness_errors():
            dataset = self._load_dataset()
            features = getattr(dataset, "features", None)  # unknown for some streamed datasets
            types = {} if features is None else {field.name: field.type for field in features.arrow_schema}
            for index, row in enumerate(dataset):
                # datasets has parsed the values of the type JSON.
                converted = {
                    key: convert_nested(value, types[key], parse_json=False) if key in types else value
                    for key, value in row.items()
                }
                yield Record(f"{self.location}/{self.split}:[{index}]", converted)
        if index < 0:
            raise HarnessError(f"{self.location}/{self.split}", "the dataset has no rows", "name another split")

    def metadata(self) -> Mapping[str, str]:
        """Return the commit that was read, if the hub could be reached."""
        return {"commit": self.commit} if self.commit else {}

    def warnings(self) -> Sequence[str]:
        """Return a warning with the commit to pin, unless the revision is a commit."""
        if self.revision is not None and is_commit_hash(self.revision):
            return ()
        subject = f"{self.location} is read at {self.revision or 'its newest commit'!r}"
        if self.commit is None:
            return (f"{subject}, and the hub cannot be reached to find out which commit that is",)
        return (f"""{subject}, which may change; to read the same rows again: "revision": "{self.commit}\"""",)

    def _load_dataset(self) -> Any:
        from datasets import load_dataset

        if Path(self.name).exists():
            # `load_dataset` would read the folder and not the hub.
            what = f"a file or folder called {self.name!r} in the working folder hides the dataset"
            raise HarnessError(self.location, what, "run from another folder, or read its files with another source")
        self.commit = self._resolve_commit()
        streaming = {"streaming": True} if self.streaming else {}
        return load_dataset(
            self.name, self.config, split=self.split, revision=self.commit or self.revision, **streaming
        )

    def _resolve_commit(self) -> str | None:
        """Return the commit of the revision, or None if the hub cannot be reached; a cached copy may still load."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        if self.revision is not None and is_commit_hash(self.revision):
            return self.revision
        try:
            return HfApi().dataset_info(self.name, revision=self.revision).sha
        except RevisionNotFoundError:
            what = f"it has no revision {self.revision!r}"
            raise HarnessError(self.location, what, "check the source's option 'revision'") from None
        except RepositoryNotFoundError:
            hint = "check its name; for a private or gated dataset set $HF_TOKEN"
            raise HarnessError(self.location, "there is no such dataset", hint) from None
        except Exception:
            # The errors of the hub's HTTP library change their class with the version. If something is really wrong,
            # loading raises; if a cached copy loads, `warnings` reports the unknown commit.
            return None

    @contextmanager
    def _as_harness_errors(self) -> Iterator[None]:
        from datasets.exceptions import DatasetNotFoundError, DatasetsError

        try:
            yield
        except DatasetNotFoundError as error:
            hint = "check name and revision; for a private dataset set $HF_TOKEN"
            raise HarnessError(self.location, f"there is no such dataset: {error}", hint) from None
        except ConnectionError as error:  # offline mode included
            hint = "check the network, $HF_HUB_OFFLINE and $HF_ENDPOINT, or download the data and use another source"
            raise HarnessError(self.location, f"the hub cannot be reached: {error}", hint) from None
        except (DatasetsError, OSError, ValueError, RuntimeError) as error:
            # datasets raises these for scripts, unknown configurations and unknown splits.
            hint = "check config, split and revision"
            raise HarnessError(self.location, f"cannot be loaded: {error}", hint) from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in NETWORK_PACKAGES:
                raise
            what = f"the hub cannot be reached: {type(error).__name__}: {error}"
            hint = "check the network, or download the data and use another source"
            raise HarnessError(self.location, what, hint) from None
