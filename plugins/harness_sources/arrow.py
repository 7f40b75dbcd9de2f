"""Rows from Arrow files, and from the folders that `datasets.save_to_disk` writes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from harness import Bad, HarnessError, Record, Source
from harness_sources import streams, tables
from harness_sources.files import Files, no_rows, reading, shown

MAGIC = b"ARROW1"
"""What a file of Arrow's file format begins with; one of its stream format, which datasets writes, does not."""


class Arrow(Source):
    """The rows of Arrow files, batch by batch. A place is `file:[index]`, from 0, within each file.

    split: which of the splits of a folder that holds several.
    """

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any], split: str | None) -> None:
        self.files, self.split = Files(path, storage), split

    def records(self) -> Iterator[Record | Bad]:
        """Every row with its index. Raises HarnessError for what is no such file or folder."""
        for path in self.files:
            record = None
            for file in self._parts(path) if self._is_folder(path) else [path]:
                for record in self._read(file):
                    yield record
            if record is None:
                raise no_rows(path)

    def _read(self, path: str) -> Iterator[Record | Bad]:
        import pyarrow

        try:
            with self.files.open_whole(path) as raw:
                yield from tables.records(_batches(raw), shown(path))
        except (pyarrow.ArrowException, MemoryError) as error:  # a damaged length may be any number
            what = f"is not an Arrow file that can be read: {error}"
            raise HarnessError(shown(path), what, "write it again, e.g. with datasets' save_to_disk") from None

    def _is_folder(self, path: str) -> bool:
        if "://" not in path:
            return os.path.isdir(path)
        with reading(path):
            return streams.is_folder(path, self.files.storage)

    def _parts(self, folder: str) -> list[str]:
        """The files of a saved dataset, in its order."""
        folder = folder.rstrip("/")
        splits = self._json(f"{folder}/dataset_dict.json")
        if splits is not None:
            names = splits.get("splits")
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise _no_dataset(folder)
            if self.split not in names:
                what = f"holds the splits {', '.join(names)}" + (f" and no {self.split!r}" if self.split else "")
                raise HarnessError(shown(folder), what, f"""say which, e.g. "split": "{names[0] if names else ""}\"""")
            folder = f"{folder}/{self.split}"
        elif self.split is not None:
            hint = "leave the source's option 'split' out"
            raise HarnessError(shown(folder), f"holds one data set, and no split {self.split!r}", hint)
        state = self._json(f"{folder}/state.json")
        parts = state.get("_data_files") if state is not None else None
        listed = parts if isinstance(parts, list) else []
        names = [part.get("filename") if isinstance(part, dict) else None for part in listed]
        if not names or not all(isinstance(name, str) and os.path.basename(name) == name for name in names):
            raise _no_dataset(folder)
        return [f"{folder}/{name}" for name in names]

    def _json(self, path: str) -> dict[str, Any] | None:
        """What a file of the folder says; None when there is none."""
        try:
            with streams.opened(path, self.files.storage) as file:
                found = json.loads(file.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise HarnessError(shown(path), f"cannot be read: {error}", "write the data set again") from None
        return found if isinstance(found, dict) else None


def _no_dataset(folder: str) -> HarnessError:
    hint = "name the files in it, e.g. folder/*.arrow"
    return HarnessError(shown(folder), "is no folder that datasets' save_to_disk has written", hint)


def _batches(raw: BinaryIO) -> Iterator[Any]:
    import pyarrow

    if raw.read(len(MAGIC)) == MAGIC:
        table = pyarrow.ipc.open_file(raw)
        return (table.get_batch(number) for number in range(table.num_record_batches))
    raw.seek(0)
    return iter(pyarrow.ipc.open_stream(raw))
