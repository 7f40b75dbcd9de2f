"""Measure rows per second of data preparation: harness, TRL's preparation and a bare `encode_batch`, in one process.

    python benchmarks/prepare.py [--model FOLDER] [--rows 200000] [--rounds 3] [--without-trl]
    python benchmarks/prepare.py --memory [--rows 10000 100000 1000000]

Every contender gets the same generated conversations (sentences from `specs/data`, one to three turns, ChatML) and two
cores. Rounds are interleaved and medians are reported, so noise affects all contenders alike. Read the ratios.

    bare            `Tokenizer.encode_batch` of rendered texts, in batches; the result is discarded
    harness         render, mask, tokenize, write, pack
    with checks     the same, with every row's mask verified: what a run does
    from the cache  the second time
    TRL             `SFTTrainer`'s preparation: chat template with an assistant mask, labels, packing by best fit

With --memory, each size runs in a separate process. The peak resident memory is printed, above that of the process with
the tokenizer loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "true"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])

from harness_templates.chatml import ChatML
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from harness.data.mixing.packing import pack_rows
from harness.data.tokenization import token_cache
from harness.data.tokenization.rendering import Rendering
from harness.data.tokenization.tokenize import to_token_file_rows, tokenize_batches, tokenize_corpus
from harness.types import Example, Message

DATA = Path(__file__).parents[1] / "specs" / "data"
LENGTH = 2048
BATCH = 1000
TEMPLATE = ChatML(system=None)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}"
)


class Conversations(Sequence[Example]):
    """Generated conversations, each built on access from its index."""

    def __init__(self, count: int) -> None:
        self.count = count
        files = sorted(DATA.glob("*.jsonl"))
        self.pool = [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.count:
            raise IndexError(index)
        choose = random.Random(index)
        messages = [Message("system", "Answer in a friendly way.")] if choose.random() < 0.3 else []
        for _ in range(choose.choice((1, 1, 2, 3))):
            row = choose.choice(self.pool)
            response = " ".join(choose.choice(self.pool)["output"] for _ in range(choose.choice((1, 2, 4))))
            text = row["instruction"] + ("\n\n" + row["input"] if row.get("input") else "")
            messages += [Message("user", text), Message("assistant", response)]
        return Example(f"{index:016x}", tuple(messages), f"made:{index + 1}")

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(self.count))


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer of 8,000 tokens on the sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator((file.read_text() for file in sorted(DATA.glob("*.jsonl"))), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def encode_texts(texts: Sequence[str], tokenizer: Any) -> None:
    """Tokenize rendered texts."""
    for begin in range(0, len(texts), BATCH):
        tokenizer.backend_tokenizer.encode_batch(texts[begin : begin + BATCH], add_special_tokens=False)


def prepare_without_verification(examples: Sequence[Example], tokenizer: Any) -> None:
    """Tokenize, write and pack, without verification."""
    writer, _ = token_cache.create_cache_writer()
    done = 0
    for batch, rows in tokenize_batches(examples, TEMPLATE, tokenizer):
        writer.add_rows(*to_token_file_rows(batch, rows, LENGTH, done))
        done += len(batch)
    pack_rows(writer.to_token_file("made", {}).rows.lengths.tolist(), LENGTH)


def prepare(examples: Sequence[Example], tokenizer: Any, key: str | None = None) -> None:
    """Tokenize, verify, write and pack."""
    corpus = tokenize_corpus(examples, "made", TEMPLATE, tokenizer, LENGTH, content_digest=key)
    assert corpus.rows_verified == len(examples)
    pack_rows(corpus.rows.lengths.tolist(), LENGTH)


def prepare_with_trl(dataset: Any, tokenizer: Any) -> None:
    """Prepare with TRL."""
    from trl import SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder, assistant_only_loss=True, max_length=LENGTH, packing=True, use_cpu=True, bf16=False, report_to=[]
        )
        trainer = SimpleNamespace(_tokenizer=tokenizer, chat_template=CHATML, completion_only_loss=False)
        SFTTrainer._prepare_dataset(trainer, dataset, tokenizer, config, True, None, "train")


def as_dataset(examples: Sequence[Example]) -> Any:
    """Convert conversations to a `datasets.Dataset`."""
    import datasets

    datasets.disable_caching()  # it would load its earlier result
    datasets.disable_progress_bars()
    return datasets.Dataset.from_list(
        [{"messages": [{"role": m.role, "content": m.content} for m in example.messages]} for example in examples]
    )


def compare(tokenizer: Any, count: int, rounds: int, with_trl: bool) -> dict[str, list[float]]:
    """Time all contenders, print a line for each, and return their seconds, round by round."""
    examples = list(Conversations(count))
    texts = [Rendering.from_spans(TEMPLATE.render(example.messages, tokenizer)).text for example in examples]
    contenders: dict[str, Callable[[], None]] = {
        "bare": lambda: encode_texts(texts, tokenizer),
        "harness": lambda: prepare_without_verification(examples, tokenizer),
        "with checks": lambda: prepare(examples, tokenizer),
        "from the cache": lambda: prepare(examples, tokenizer, "the content"),
    }
    if with_trl:
        dataset = as_dataset(examples)
        contenders["TRL"] = lambda: prepare_with_trl(dataset, tokenizer)
    prepare(examples, tokenizer, "the content")  # warms up, and fills the cache
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    processor: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            started, used = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - used)
    bare_seconds = statistics.median(seconds["bare"])
    size = sum(map(len, texts)) / count
    print(f"{count:,} rows of {size:.0f} characters, {rounds} rounds, {len(tokenizer):,} tokens in the vocabulary")
    for name, times in seconds.items():
        median = statistics.median(times)
        busy = statistics.median(processor[name])
        line = f"{name:15} {count / median:9,.0f} rows/s  {bare_seconds / median:6.2f} of bare"
        if with_trl:
            line += f"  {statistics.median(seconds['TRL']) / median:7.1f} x TRL"
        print(f"{line}  ({busy / count * 1e6:4.0f} µs of processor time a row)")
    return seconds


def compare_memory(arguments: argparse.Namespace) -> None:
    """Start a process for each number of rows."""
    print("rows        peak above the loaded tokenizer   tokens on disk")
    for count in arguments.rows:
        command = [sys.executable, __file__, "--one", str(count)]
        command += ["--model", arguments.model] if arguments.model else []
        subprocess.run(command, check=True)


def measure_memory(tokenizer: Any, count: int) -> None:
    """Print the peak memory of tokenizing `count` rows."""
    prepare(Conversations(3000), tokenizer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    corpus = tokenize_corpus(Conversations(count), "made", TEMPLATE, tokenizer, LENGTH)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    tokens = int(corpus.rows.lengths.sum(dtype="int64"))
    print(f"{count:<10,}  {peak / 1024:6.0f} MiB ({before / 1024:.0f} before)       {tokens * 4 / 2**20:6.0f} MiB")


def main() -> None:
    """Compare speed or memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", help="folder with a tokenizer that has ChatML's two tokens; default: a tokenizer trained here"
    )
    parser.add_argument("--rows", type=int, nargs="+", help="with --memory, several sizes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-trl", action="store_true", help="leave TRL out, which takes most of the time")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", type=Path, help="write the seconds of every round to this file")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        arguments.rows = arguments.rows or [10_000, 100_000, 1_000_000]
        compare_memory(arguments)
        return
    tokenizer = AutoTokenizer.from_pretrained(arguments.model) if arguments.model else train_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HARNESS_CACHE"] = folder
        if arguments.one:
            measure_memory(tokenizer, arguments.one)
            return
        results = {
            count: compare(tokenizer, count, arguments.rounds, not arguments.without_trl)
            for count in arguments.rows or [200_000]
        }
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
