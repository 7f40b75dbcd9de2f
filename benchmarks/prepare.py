"""Rows a second of preparing data: ours, TRL's preparation and a bare `encode_batch`, side by side in one process.

    python benchmarks/prepare.py [--model FOLDER] [--rows 200000] [--rounds 3] [--without-trl]
    python benchmarks/prepare.py --memory [--rows 10000 100000 1000000]

Every contender gets the same made-up conversations (of sentences from `specs/data`, one to three turns, ChatML) and two
cores. Rounds are interleaved and medians taken, so that a noisy machine hits all of them alike: read the ratios.

    bare            `Tokenizer.encode_batch` of text that has been rendered before, in batches; nothing is kept
    harness         render, mask, tokenise, write, pack
    with proof      the same, and every row's mask proven: what a run does
    from the cache  the second time
    TRL             `SFTTrainer`'s preparation: chat template with an assistant mask, labels, packing by best fit

With --memory, each size runs in a process of its own, and its greatest resident memory is printed, above what it held
once the tokenizer was loaded.
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
    """So many conversations, each made when it is asked for, from its number alone."""

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
            asked = choose.choice(self.pool)
            said = " ".join(choose.choice(self.pool)["output"] for _ in range(choose.choice((1, 2, 4))))
            text = asked["instruction"] + ("\n\n" + asked["input"] if asked.get("input") else "")
            messages += [Message("user", text), Message("assistant", said)]
        return Example(f"{index:016x}", tuple(messages), f"made:{index + 1}")

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(self.count))


def own_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 8,000 tokens, trained on the sentences."""
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


def bare(texts: Sequence[str], tokenizer: Any) -> None:
    for begin in range(0, len(texts), BATCH):
        tokenizer.backend_tokenizer.encode_batch(texts[begin : begin + BATCH], add_special_tokens=False)


def unproven(examples: Sequence[Example], tokenizer: Any) -> None:
    writer, _ = token_cache.create_cache_writer()
    done = 0
    for batch, rows in tokenize_batches(examples, TEMPLATE, tokenizer):
        writer.add_rows(*to_token_file_rows(batch, rows, LENGTH, done))
        done += len(batch)
    pack_rows(writer.to_token_file("made", {}).rows.lengths.tolist(), LENGTH)


def proven(examples: Sequence[Example], tokenizer: Any, key: str | None = None) -> None:
    found = tokenize_corpus(examples, "made", TEMPLATE, tokenizer, LENGTH, content_digest=key)
    assert found.rows_verified == len(examples)
    pack_rows(found.rows.lengths.tolist(), LENGTH)


def trl(dataset: Any, tokenizer: Any) -> None:
    from trl import SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder, assistant_only_loss=True, max_length=LENGTH, packing=True, use_cpu=True, bf16=False, report_to=[]
        )
        trainer = SimpleNamespace(_tokenizer=tokenizer, chat_template=CHATML, completion_only_loss=False)
        SFTTrainer._prepare_dataset(trainer, dataset, tokenizer, config, True, None, "train")


def as_dataset(examples: Sequence[Example]) -> Any:
    import datasets

    datasets.disable_caching()  # it would find its own earlier result
    datasets.disable_progress_bars()
    return datasets.Dataset.from_list(
        [{"messages": [{"role": m.role, "content": m.content} for m in one.messages]} for one in examples]
    )


def compare(tokenizer: Any, count: int, rounds: int, with_trl: bool) -> None:
    examples = list(Conversations(count))
    texts = [Rendering.from_spans(TEMPLATE.render(one.messages, tokenizer)).text for one in examples]
    contenders: dict[str, Callable[[], None]] = {
        "bare": lambda: bare(texts, tokenizer),
        "harness": lambda: unproven(examples, tokenizer),
        "with proof": lambda: proven(examples, tokenizer),
        "from the cache": lambda: proven(examples, tokenizer, "the content"),
    }
    if with_trl:
        dataset = as_dataset(examples)
        contenders["TRL"] = lambda: trl(dataset, tokenizer)
    proven(examples, tokenizer, "the content")  # pages everything in, and fills the cache
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    processor: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            started, used = time.perf_counter(), time.process_time()
            run()
            seconds[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - used)
    base = statistics.median(seconds["bare"])
    size = sum(map(len, texts)) / count
    print(f"{count:,} rows of {size:.0f} characters, {rounds} rounds, {len(tokenizer):,} tokens in the vocabulary")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        busy = statistics.median(processor[name])
        line = f"{name:15} {count / median:9,.0f} rows/s  {base / median:6.2f} of bare"
        if with_trl:
            line += f"  {statistics.median(seconds['TRL']) / median:7.1f} x TRL"
        print(f"{line}  ({busy / count * 1e6:4.0f} µs of processor time a row)")


def memory(arguments: argparse.Namespace) -> None:
    print("rows        peak above the loaded tokenizer   tokens on disk")
    for count in arguments.rows:
        command = [sys.executable, __file__, "--one", str(count)]
        command += ["--model", arguments.model] if arguments.model else []
        subprocess.run(command, check=True)


def one(tokenizer: Any, count: int) -> None:
    proven(Conversations(3000), tokenizer)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = tokenize_corpus(Conversations(count), "made", TEMPLATE, tokenizer, LENGTH)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    tokens = int(found.rows.lengths.sum(dtype="int64"))
    print(f"{count:<10,}  {peak / 1024:6.0f} MiB ({before / 1024:.0f} before)       {tokens * 4 / 2**20:6.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder with a tokenizer that has ChatML's two tokens; default: one made here")
    parser.add_argument("--rows", type=int, nargs="+", help="with --memory, several sizes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-trl", action="store_true", help="it takes most of the time")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        arguments.rows = arguments.rows or [10_000, 100_000, 1_000_000]
        memory(arguments)
        return
    tokenizer = AutoTokenizer.from_pretrained(arguments.model) if arguments.model else own_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HARNESS_CACHE"] = folder
        if arguments.one:
            one(tokenizer, arguments.one)
            return
        for count in arguments.rows or [200_000]:
            compare(tokenizer, count, arguments.rounds, not arguments.without_trl)


if __name__ == "__main__":
    main()
