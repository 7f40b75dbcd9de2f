"""A corpus in tokens: its rows are those of `encode_examples`, every one proven; the first error is the first row's."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
from harness_templates.chatml import ChatML
from support import tokenization_cases

from harness import HarnessError, Template
from harness.data.tokenization import tokenize
from harness.data.tokenization.tokenize import encode_examples, tokenize_corpus


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rows"


def corpus(count):
    shapes = [
        lambda n: tokenization_cases.row(f"Question {n}?", f"Answer {n}.", number=n),
        lambda n: tokenization_cases.row("长江 🙂" * (n % 5 + 1), "河 é" * n, number=n, system="Be brief."),
        lambda n: tokenization_cases.row("a", "b" * n, "c </s>", f"d {n}", number=n, untrained={1}),
        lambda n: tokenization_cases.called(n),
        lambda n: tokenization_cases.plain(f"The Elbe is {n} long.\n\n", n),
    ]
    return [shapes[n % len(shapes)](n) for n in range(1, count + 1)]


@pytest.mark.parametrize("kind", sorted(tokenization_cases.KINDS))
@pytest.mark.parametrize("max_length", [4096, 40])
def test_the_rows_are_those_of_encode_all_that_have_a_trained_token(kind, max_length, monkeypatch):
    monkeypatch.setattr(tokenize, "BATCH_ROWS", 7)
    tokenizer, examples = tokenization_cases.BUILT[kind], corpus(40)
    found = tokenize_corpus(examples, "s", tokenization_cases.Turns(), tokenizer, max_length)
    one_by_one = encode_examples(examples, "s", tokenization_cases.Turns(), tokenizer, max_length)
    kept = [index for index, one in enumerate(one_by_one) if one.row.loss_tokens]
    assert list(found.rows) == [one_by_one[index].row for index in kept]
    assert found.example_indices.tolist() == kept
    assert found.tokens_cut.tolist() == [one_by_one[index].tokens_cut for index in kept]
    assert found.rows.loss_tokens.tolist() == [row.loss_tokens for row in found.rows]
    assert (found.rows_verified, found.from_cache, found.warnings) == (40, False, ())
    assert max_length == 4096 or (len(kept) < 40 and found.tokens_cut.any())


def test_a_corpus_of_no_rows_is_no_error():
    found = tokenize_corpus([], "s", tokenization_cases.Turns(), tokenization_cases.BUILT["byte_level"], 64)
    assert (len(found.rows), found.example_indices.dtype, found.rows_verified) == (0, np.int64, 0)


def test_a_batch_ends_where_its_text_grows_long(monkeypatch):
    monkeypatch.setattr(tokenize, "BATCH_CHARACTERS", 100)
    sizes = [
        len(batch)
        for batch in tokenize.batch_examples([tokenization_cases.row("q" * 30, "a" * 30, number=n) for n in range(5)])
    ]
    assert sizes == [2, 2, 1]


def test_examples_are_walked_once_and_not_far_ahead(monkeypatch):
    monkeypatch.setattr(tokenize, "BATCH_ROWS", 5)
    made, furthest = [], []

    class Walked:
        def __len__(self):
            return 100

        def __iter__(self):
            for number in range(1, 101):
                made.append(number)
                yield tokenization_cases.row(f"q {number}", "a", number=number)

    def progress(phase, done, total, note, unit):
        furthest.append(len(made) - done)
        assert (phase, total, note, unit) == ("tokenise", 100, "s", "rows")

    assert (
        len(
            tokenize_corpus(
                Walked(), "s", tokenization_cases.Turns(), tokenization_cases.BUILT["byte_level"], 64, progress=progress
            ).rows
        )
        == 100
    )
    assert made == list(range(1, 101))
    assert max(furthest) <= 5 * tokenize.MAX_PENDING_BATCHES


@pytest.mark.parametrize("bad", [1, 5, 6, 23, 24])
def test_the_first_bad_row_is_named_whatever_is_wrong_with_it(bad, monkeypatch):
    monkeypatch.setattr(tokenize, "BATCH_ROWS", 5)
    examples = [tokenization_cases.row(f"q {n}", f"a {n}", number=n) for n in range(1, 25)]
    # A later row is refused at once; the mask of the earlier one is found wrong only once it has been tokenised.
    if bad < 24:
        examples[23] = tokenization_cases.row("q", " ", number=24)

    class WrongOnce(tokenization_cases.Turns):
        def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
            spans = super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt, tools=tools)
            if messages[-1].content != f"a {bad}":
                return spans
            return tuple(dataclasses.replace(span, train=span.train and not span.markup) for span in spans)

    with pytest.raises(HarnessError, match="end of turn") as error:
        tokenize_corpus(examples, "s", WrongOnce(), tokenization_cases.BUILT["byte_level"], 64)
    assert error.value.where == f"rows.jsonl:{bad}"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tokenise")]


def test_a_row_that_a_template_refuses_is_named():
    with pytest.raises(HarnessError, match=r"rows.jsonl:4: template speakers: the format has no place for tools"):
        tokenize_corpus(
            [*corpus(2), tokenization_cases.called(4)],
            "s",
            tokenization_cases.Speakers(),
            tokenization_cases.BUILT["byte_level"],
            64,
        )


def test_a_template_that_breaks_shows_its_own_error():
    class Broken(Template):
        def render(self, messages, tokenizer, *, add_generation_prompt=False):
            raise ZeroDivisionError("mine")

        def stop_strings(self, tokenizer):
            return ("</s>",)

    with pytest.raises(ZeroDivisionError, match="mine"):
        tokenize_corpus(corpus(2), "s", Broken(), tokenization_cases.BUILT["byte_level"], 64)


def test_truncation_that_another_call_left_on_does_not_cut():
    tokenizer = tokenization_cases.byte_level()
    tokenizer("a b c", truncation=True, max_length=2, padding="max_length", split_special_tokens=True)
    found = tokenize_corpus(corpus(3), "s", tokenization_cases.Turns(), tokenizer, 4096)
    assert list(found.rows) == [
        one.row
        for one in encode_examples(corpus(3), "s", tokenization_cases.Turns(), tokenization_cases.byte_level(), 4096)
    ]


def test_without_a_key_nothing_is_kept(cache):
    found = tokenize_corpus(
        [tokenization_cases.row("q", "a")], "s", ChatML(None), tokenization_cases.BUILT["byte_level"], 64
    )
    assert len(found.rows) == 1
    assert [path for path in cache.iterdir() if path.suffix == ".rows"] == []
