"""Measure time, efficiency and peak memory of building a mixture, and of TRL's packing.

    python benchmarks/mixtures.py [--rows 10000 100000 1000000] [--trl-rows 100000] [--demo FILE MODEL_FOLDER]

A mixture is 90 % domain and 10 % general loss tokens, with log-normal lengths (median 150 and 270 tokens, truncated at
2048) and two epochs: once in batches of 8, once packed to 2048. `pack` is best-fit decreasing over all domain rows.
`TRL bfd` is TRL's packing of the same lengths, in its map batches of 1,000 rows. Every line is measured in a separate
process; the memory of the process before the work is printed as well. The rows have sizes but no tokens, except for
TRL, whose packing moves the tokens.

With --demo: the lengths of a file of alpaca rows with the template `alpaca` and the model's tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CAPACITY = 2048
COUNTS = ("ids", "lengths", "loss_tokens", "source_indices")


class RowSizes:
    """Sizes of rows without tokens, in place of `harness.data.tokenization.tokenized_rows.TokenizedRows`."""

    def __init__(self, *arrays: NDArray[np.generic]) -> None:
        self.ids, self.lengths, self.loss_tokens, self.source_indices = arrays

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, indices: NDArray[np.intp]) -> RowSizes:
        """Return the sizes of these rows."""
        return RowSizes(*(getattr(self, name)[indices] for name in COUNTS))

    @classmethod
    def concatenate(cls, parts: Sequence[RowSizes]) -> RowSizes:
        """Return the sizes of all parts."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in COUNTS))


def draw_lengths(rows: int, median: float, seed: int) -> NDArray[np.int32]:
    """Draw log-normal lengths in tokens."""
    random = np.random.default_rng(seed)
    return np.minimum(CAPACITY, 10 + random.lognormal(np.log(median), 0.8, rows)).astype(np.int32)


def build_pool(rows: int, median: float, seed: int) -> RowSizes:
    """Draw the sizes of rows of which a third of the tokens is trained."""
    tokens = draw_lengths(rows, median, seed)
    ids = np.random.default_rng(seed).integers(0, 2**63, rows).astype(np.uint64)
    return RowSizes(ids, tokens, np.maximum(tokens // 3, 1), np.zeros(rows, dtype=np.uint16))


def peak_memory() -> int:
    """Return the peak resident memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def print_result(name: str, rows: int, seconds: float, efficiency: float, before: int) -> None:
    """Print one line. before: memory in MB before the work."""
    figures = f"{seconds:8.2f} s {rows / seconds:12,.0f} rows/s   efficiency {efficiency:.4f}"
    print(f"{name:12} {rows:10,} rows {figures}   peak {peak_memory():6,} MB ({before:,} MB before)", flush=True)


def measure_layout(rows: int, packing: bool) -> None:
    """Measure `build_stage_dataset`."""
    from harness.data.mixing import stage_layout
    from harness.types import Share, Stage, StageSource

    stage_layout.TokenizedRows = RowSizes  # type: ignore[assignment, misc]
    train = {"epochs": 2, "steps": None, "batch_size": 8, "accumulation": 1, "packing": packing, "max_length": CAPACITY}
    stage = Stage("made", (StageSource("d", "domain"), StageSource("g", "general")), train, (Share(("g",), 0.1),))
    pools = {"d": build_pool(rows, 150, 1), "g": build_pool(rows // 2, 270, 2)}
    before, started = peak_memory(), time.perf_counter()
    data = stage_layout.build_stage_dataset(stage, pools, 0)  # type: ignore[arg-type]
    print_result("lay packed" if packing else "lay", rows, time.perf_counter() - started, data.efficiency, before)


def measure_packing(rows: int) -> None:
    """Measure `pack_rows`."""
    from harness.data.mixing.packing import pack_rows

    tokens = draw_lengths(rows, 150, 1)
    before, started = peak_memory(), time.perf_counter()
    packs = pack_rows(tokens, CAPACITY)
    efficiency = tokens.sum(dtype=np.int64) / (CAPACITY * len(packs))
    print_result("pack", rows, time.perf_counter() - started, efficiency, before)


def measure_trl(rows: int) -> None:
    """Measure TRL's packing."""
    import pyarrow
    from datasets import Dataset, disable_progress_bars
    from measure_trl.data_utils import pack_dataset

    disable_progress_bars()
    tokens = draw_lengths(rows, 150, 1)
    ends = np.concatenate([[0], np.cumsum(tokens, dtype=np.int64)])
    column = pyarrow.LargeListArray.from_arrays(ends, np.zeros(ends[-1], dtype=np.int64))
    table = Dataset(pyarrow.table({"input_ids": column}))
    before, started = peak_memory(), time.perf_counter()
    packed = pack_dataset(table, CAPACITY, strategy="bfd")
    efficiency = tokens.sum(dtype=np.int64) / (CAPACITY * len(packed))
    print_result("TRL bfd", rows, time.perf_counter() - started, efficiency, before)


def measure_file(file: str, folder: str) -> None:
    """Print the packing efficiency of a file of alpaca rows."""
    from harness_templates.alpaca import Alpaca
    from transformers import AutoTokenizer

    from harness.data.mixing.packing import pack_rows
    from harness.types import Message

    tokenizer, template = AutoTokenizer.from_pretrained(folder), Alpaca()
    tokens = []
    for row in json.loads(Path(file).read_text(encoding="utf-8")):
        messages = (Message("user", row["instruction"], row["input"] or None), Message("assistant", row["output"]))
        text = "".join(span.text for span in template.render(messages, tokenizer))
        tokens.append(min(CAPACITY, len(tokenizer(text, add_special_tokens=False).input_ids)))
    packs = pack_rows(np.array(tokens), CAPACITY)
    print(f"{file}: {len(tokens)} rows in {len(packs)} packs, efficiency {sum(tokens) / (CAPACITY * len(packs)):.4f}")


def main() -> None:
    """Start a process for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--trl-rows", type=int, default=100_000, help="maximum number of rows for TRL")
    parser.add_argument("--demo", nargs=2, metavar=("FILE", "MODEL"))
    parser.add_argument("--only", nargs=2, metavar=("WORK", "ROWS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    works = {
        "lay": lambda rows: measure_layout(rows, False),
        "lay-packed": lambda rows: measure_layout(rows, True),
        "pack": measure_packing,
        "trl": measure_trl,
    }
    if arguments.only:
        works[arguments.only[0]](int(arguments.only[1]))
        return
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    for rows in arguments.rows:
        for work in works:
            if work != "trl" or rows <= arguments.trl_rows:
                subprocess.run([sys.executable, __file__, "--only", work, str(rows)], check=True)
    if arguments.demo:
        measure_file(*arguments.demo)


if __name__ == "__main__":
    main()
