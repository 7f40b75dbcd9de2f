"""Rows from datasets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import HarnessError, Record, Source


class Hub(Source):
    """The rows of one split of a dataset. A place is `hub:name/split:[index]`, from 0.

    None of the dataset's own code is run: what needs it is an error. Private datasets are read with the token that
    `hf auth login` or $HF_TOKEN gives.
    """

    def __init__(self, name: str, config: str | None, split: str, revision: str | None) -> None:
        self.name, self.config, self.split, self.revision = name, config, split, revision

    def records(self) -> Iterator[Record]:
        """Every row with its index. Raises HarnessError for what is not there or cannot be reached."""
        index = -1
        for index, row in enumerate(self._load()):
            yield Record(f"hub:{self.name}/{self.split}:[{index}]", row)
        if index < 0:
            raise HarnessError(f"hub:{self.name}/{self.split}", "the data set holds no rows", "name another split")

    def _load(self) -> Any:
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError, DatasetsError

        where = f"hub:{self.name}"
        if Path(self.name).exists():
            # `load_dataset` would read the folder and never ask the hub.
            what = f"a file or folder called {self.name!r} stands in the working folder and hides the dataset"
            raise HarnessError(where, what, "run from another folder, or read its files with another source")
        try:
            return load_dataset(self.name, self.config, split=self.split, revision=self.revision)
        except DatasetNotFoundError as error:
            hint = "check name and revision; for a private dataset set $HF_TOKEN"
            raise HarnessError(where, f"there is no such dataset: {error}", hint) from None
        except ConnectionError as error:  # offline mode included
            hint = "check the network, $HF_HUB_OFFLINE and $HF_ENDPOINT, or download the data and use another source"
            raise HarnessError(where, f"the hub cannot be reached: {error}", hint) from None
        except (DatasetsError, OSError, ValueError, RuntimeError) as error:
            # datasets tells of scripts, unknown configurations and unknown splits in these.
            raise HarnessError(where, f"cannot be loaded: {error}", "check config, split and revision") from None
