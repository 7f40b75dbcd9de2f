"""Rows from datasets of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import HarnessError, Record, Source
from harness_sources.arrow import drop_null_fields

is_commit_hash = re.compile(r"[0-9a-f]{40}").fullmatch

NETWORK_PACKAGES = ("httpx", "httpx2", "requests", "aiohttp")
"""Packages whose errors are those of the network and not of a dataset."""


class HubSource(Source):
    """The rows of one split of a dataset. A place is `hub:name/split:[index]`, from 0.

    None of the dataset's own code is run: what needs it is an error. Private datasets are read with the token that
    `hf auth login` or $HF_TOKEN gives. A branch or tag is resolved to its commit first, so that what is told is what
    was read. streaming: rows are fetched as they are asked for; nothing is kept.
    """

    def __init__(self, name: str, config: str | None, split: str, revision: str | None, streaming: bool) -> None:
        self.name, self.config, self.split = name, config, split
        self.revision, self.streaming = revision, streaming
        self.location = f"hub:{name}"
        self.commit: str | None = None

    def records(self) -> Iterator[Record]:
        """Every row with its index. Raises HarnessError for what is not there or cannot be reached."""
        index = -1
        with self._as_harness_errors():
            for index, row in enumerate(self._load_dataset()):
                yield Record(f"{self.location}/{self.split}:[{index}]", _drop_null_fields_of_row(row))
        if index < 0:
            raise HarnessError(f"{self.location}/{self.split}", "the data set holds no rows", "name another split")

    def metadata(self) -> Mapping[str, str]:
        """The commit that was read, where the hub could be asked."""
        return {"commit": self.commit} if self.commit else {}

    def warnings(self) -> Sequence[str]:
        """That the revision is not pinned, with the commit to pin."""
        if self.revision is not None and is_commit_hash(self.revision):
            return ()
        named = f"{self.location} is read at {self.revision or 'its newest commit'!r}"
        if self.commit is None:
            return (f"{named}, and the hub cannot be asked which commit that is",)
        return (f"""{named}, which may move; to read the same rows again: "revision": "{self.commit}\"""",)

    def _load_dataset(self) -> Any:
        from datasets import load_dataset

        if Path(self.name).exists():
            # `load_dataset` would read the folder and never ask the hub.
            what = f"a file or folder called {self.name!r} stands in the working folder and hides the dataset"
            raise HarnessError(self.location, what, "run from another folder, or read its files with another source")
        self.commit = self._resolve_commit()
        more = {"streaming": True} if self.streaming else {}
        return load_dataset(self.name, self.config, split=self.split, revision=self.commit or self.revision, **more)

    def _resolve_commit(self) -> str | None:
        """The commit of the revision; None where the hub cannot be asked, which a copy on disk may do without."""
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
            # The errors of the hub's HTTP library have another class with every version. What is really wrong, loading
            # tells; where it does without the hub, the warning does.
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
            # datasets tells of scripts, unknown configurations and unknown splits in these.
            raise HarnessError(
                self.location, f"cannot be loaded: {error}", "check config, split and revision"
            ) from None
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in NETWORK_PACKAGES:
                raise
            what = f"the hub cannot be reached: {type(error).__name__}: {error}"
            raise HarnessError(
                self.location, what, "check the network, or download the data and use another source"
            ) from None


def _drop_null_fields_of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: drop_null_fields(value) if isinstance(value, (dict, list)) else value for key, value in row.items()}
