"""A tokenized corpus: the rows of `tokenize_examples`, every mask verified, and the first wrong row reported."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
from harness_templates.chatml import ChatML
from support import tokenization_cases

from harness import HarnessError, Template
from harness.data.tokenization import tokenize
from harness.data.tokenization.tokenize import tokenize_corpus, tokenize_examples
from harness.errors import ComponentError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rows"


def build_corpus(count):
    shapes = [
        lambda n: tokenization_cases.build_conversation(f"Question {n}?", f"Answer {n}.", number=n),
        lambda n: tokenization_cases.build_conversation(
            "长江 🙂" * (n % 5 + 1), "河 é" * n, number=n, system="Be brief."
        ),
        lambda n: tokenization_cases.build_conversation("a", "b" * n, "c </s>", f"d {n}", number=n, untrained={1}),
        lambda n: tokenization_cases.build_tool_conversation(n),
        lambda n: tokenization_cases.build_plain_text(f"The Elbe is {n} long.\n\n", n),
    ]
    return [shapes[n % len(shapes)](n) for n in range(1, count + 1)]


@pytest.mark.parametrize("tokenizer_name", sorted(tokenization_cases.TOKENIZER_FACTORIES))
@pytest.mark.parametrize("max_length", [4096, 40])
def test_corpus_has_the_rows_of_tokenize_examples_with_a_trained_token(tokenizer_name, max_length, monkeypatch):
    monkeypatch.setattr(tokenize, "BATCH_ROWS", 7)
    tokenizer, examples = tokenization_cases.TOKENIZERS[tokenizer_name], build_corpus(40)
    tokenized = tokenize_corpus(examples, "s", tokenization_cases.Turns(), tokenizer, max_length)
    expected = tokenize_examples(examples, "s", tokenization_cases.Turns(), tokenizer, max_length)
    with_loss = [index for index, row in enumerate(expected) if row.loss_tokens]
    assert list(tokenized.rows) == [expected[index] for index in with_loss]
    assert tokenized.example_indices.tolist() == with_loss
    assert tokenized.tokens_cut.tolist() == [expected[index].tokens_cut for index in with_loss]
    assert tokenized.rows.loss_tokens.tolist() == [row.loss_tokens for row in tokenized.rows]
    assert (tokenized.rows_verified, tokenized.from_cache, tokenized.warnings) == (40, False, ())
    assert max_length == 4096 or (len(with_loss) < 40 and tokenized.tokens_cut.any())


def test_empty_corpus_is_allowed():
    tokenized = tokenize_corpus([], "s", tokenization_cases.Turns(), tokenization_cases.TOKENIZERS["byte_level"], 64)
    assert (len(tokenized.rows), tokenized.example_indices.dtype, tokenized.rows_verified) == (0, np.int64, 0)


def test_batch_ends_at_the_character_limit(monkeypatch):
    monkeypatch.setattr(tokenize, "BATCH_CHARACTERS", 100)
    sizes = [
        len(batch)
        for batch in tokenize.batch_examples(
            [tokenization_cases.build_conversation("q" * 30, "a" * 30, number=n) for n in range(5)]
        )
    ]
    assert sizes == [2, 2, 1]


def test_examples_are_iterated_once_and_not_far_ahead(monkeypatch):
    monkeypatch.setattr(tokenize, "BATCH_ROWS", 5)
    yielded, rows_ahead = [], []

    class CountedExamples:
        def __len__(self):
            return 100

        def __iter__(self):
            for number in range(1, 101):
                yielded.append(number)
                yield tokenization_cases.build_conversation(f"q {number}", "a", number=number)

    def progress(phase, done, total, note, unit):
        rows_ahead.append(len(yielded) - done)
        assert (phase, total, note, unit) == ("tokenize", 100, "s", "rows")

    assert (
        len(
            tokenize_corpus(
                CountedExamples(),
                "s",
                tokenization_cases.Turns(),
                tokenization_cases.TOKENIZERS["byte_level"],
                64,
                progress=progress,
            ).rows
        )
        == 100
    )
    assert yielded == list(range(1, 101))
    assert max(rows_ahead) <= 5 * tokenize.MAX_PENDING_BATCHES


@pytest.mark.parametrize("wrong_row", [1, 5, 6, 23, 24])
def test_error_is_of_the_first_wrong_row(wrong_row, monkeypatch):
    monkeypatch.setattr(tokenize, "BATCH_ROWS", 5)
    examples = [tokenization_cases.build_conversation(f"q {n}", f"a {n}", number=n) for n in range(1, 25)]
    # A later row is refused when rendered; the mask of the earlier row is wrong, which shows after tokenization.
    if wrong_row < 24:
        examples[23] = tokenization_cases.build_conversation("q", " ", number=24)

    class WrongOnce(tokenization_cases.Turns):
        def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
            spans = super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt, tools=tools)
            if messages[-1].content != f"a {wrong_row}":
                return spans
            return tuple(dataclasses.replace(span, train=span.train and not span.markup) for span in spans)

    with pytest.raises(HarnessError, match="end of turn") as error:
        tokenize_corpus(examples, "s", WrongOnce(), tokenization_cases.TOKENIZERS["byte_level"], 64)
    assert error.value.where == f"rows.jsonl:{wrong_row}"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tokenize")]


def test_row_refused_by_the_template_is_an_error_at_its_location():
    with pytest.raises(HarnessError, match=r"rows.jsonl:4: template speakers: the format does not support tools"):
        tokenize_corpus(
            [*build_corpus(2), tokenization_cases.build_tool_conversation(4)],
            "s",
            tokenization_cases.Speakers(),
            tokenization_cases.TOKENIZERS["byte_level"],
            64,
        )


def test_an_exception_of_a_template_names_the_template_and_the_row():
    class FailingTemplate(Template):
        def render(self, messages, tokenizer, *, add_generation_prompt=False):
            raise ZeroDivisionError("mine")

        def stop_strings(self, tokenizer):
            return ("</s>",)

    with pytest.raises(ComponentError, match=r"render: ZeroDivisionError: mine \(row rows\.jsonl:1\)"):
        tokenize_corpus(build_corpus(2), "s", FailingTemplate(), tokenization_cases.TOKENIZERS["byte_level"], 64)


def test_truncation_left_on_by_another_call_has_no_effect():
    tokenizer = tokenization_cases.build_byte_level()
    tokenizer("a b c", truncation=True, max_length=2, padding="max_length", split_special_tokens=True)
    tokenized = tokenize_corpus(build_corpus(3), "s", tokenization_cases.Turns(), tokenizer, 4096)
    assert list(tokenized.rows) == tokenize_examples(
        build_corpus(3), "s", tokenization_cases.Turns(), tokenization_cases.build_byte_level(), 4096
    )


def test_nothing_is_cached_without_a_content_digest(cache_folder):
    tokenized = tokenize_corpus(
        [tokenization_cases.build_conversation("q", "a")],
        "s",
        ChatML(None),
        tokenization_cases.TOKENIZERS["byte_level"],
        64,
    )
    assert len(tokenized.rows) == 1
    assert [path for path in cache_folder.iterdir() if path.suffix == ".rows"] == []
