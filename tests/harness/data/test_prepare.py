import dataclasses

import pytest

from harness.data.checks import findings
from harness.data.prepare import prepare_data
from harness.data.reading.conversation import build_example
from harness.data.reading.conversation_store import ConversationStore
from harness.data.reading.corpus import Corpus
from harness.data.reading.splits import held_out_mask, limit_rows
from harness.data.tokenization import token_cache
from harness.errors import HarnessError
from harness.interfaces.source import Source
from harness.interfaces.template import Template
from harness.spec_keys import data as data_module
from harness.types import Message, Plan, Record, Share, Span, Stage, StageSource, Suite

TRAIN = {"epochs": 1, "steps": None, "batch_size": 4, "accumulation": 1, "packing": False, "max_length": 200}
ROWS = {key: option["default"] for key, option in data_module.SOURCE_KEYS.items()}


class Rows(Source):
    def __init__(self, rows, name):
        self.rows, self.name, self.read = rows, name, 0

    def records(self):
        self.read += 1
        return (
            Record(f"{self.name}:{number}", {"instruction": question, "output": answer})
            for number, (question, answer) in enumerate(self.rows, 1)
        )


class Plain(Template):
    def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
        spans = []
        for message in messages:
            trained = message.role == "assistant"
            spans += [Span(f"<|im_start|>{message.role}\n", markup=True), Span(message.content, trained)]
            spans.append(Span("<|im_end|>", trained, markup=True))
        return (*spans, *([Span("<|im_start|>assistant\n", markup=True)] if add_generation_prompt else []))

    def stop_strings(self, tokenizer):
        return ("<|im_end|>",)


class Untrained(Plain):
    def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
        return tuple(
            dataclasses.replace(span, train=False)
            for span in super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt)
        )


class HeaderTrained(Plain):
    def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
        return tuple(
            dataclasses.replace(span, train=True)
            for span in super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt)
        )


def some(examples, limit):
    corpus = Corpus.from_examples(examples, "d")
    return corpus.select(limit_rows(corpus.content_hashes, limit, 0, "suite"))


QUESTION = build_example([Message("user", "d question 0"), Message("assistant", "an answer")], "d:1")


def asks(name, count, answer="an answer of some length"):
    return [(f"{name} question {number}", f"{answer} {number}") for number in range(count)]


@pytest.fixture
def make(tokenizer):
    def make(data, stages, suites=(), also=(), options=None, seed=0, template=None, **more):
        options = options or {}
        plan = Plan(
            name="plan",
            seed=seed,
            model={},
            template=("plain", {}),
            sources={name: ("rows", {**ROWS, **options.get(name, {})}) for name in data},
            mitigations={},
            stages=tuple(stages),
            suites=tuple(suites),
        )
        sources = {name: rows if isinstance(rows, Rows) else Rows(rows, name) for name, rows in data.items()}
        return prepare_data(plan, sources, template or Plain(), tokenizer, extra_sources=also, **more)

    return make


def stage(*parts, name="only", shares=(), **train):
    return Stage(name, tuple(StageSource(*part) for part in parts), {**TRAIN, **train}, tuple(shares))


def suite(name, source, limit=None):
    return Suite(name, source, "domain", {}, limit, 8, 8)


def parts_of(counts):
    return sum(
        counts[key]
        for key in (
            *("filtered", "rejected", "duplicates", "beyond_limit", "held_out", "untrained", "used", "measured"),
            "unused",
        )
    )


def test_every_row_that_is_read_is_accounted_for(make):
    data = {"d": asks("d", 60) + asks("d", 10), "g": asks("g", 80), "e": asks("e", 9), "x": asks("x", 5)}
    made = make(
        data,
        [stage(("d", "domain"), ("g", "general"), shares=[Share(("g",), 0.2)])],
        [suite("held", "d", limit=3), suite("other", "e")],
        also=["x"],
        options={"d": {"held_out": 0.2, "limit": 50}},
    )
    for name, counts in made.counts.items():
        assert counts["read"] == len(data[name]) == parts_of(counts), name
    counts = made.counts
    assert (counts["d"]["duplicates"], counts["d"]["beyond_limit"], counts["d"]["unused"]) == (10, 10, 0)
    assert counts["d"]["used"] == sum(row.source == "d" for row in made.stages[0].rows) > 30
    assert counts["d"]["evaluated"] == 3 < counts["d"]["held_out"]
    assert 0 < counts["g"]["used"] == 80 - counts["g"]["unused"] < 80
    assert counts["e"] == {
        "read": 9, "filtered": 0, "rejected": 0, "duplicates": 0, "beyond_limit": 0, "held_out": 9, "untrained": 0,
        "used": 0, "measured": 0, "unused": 0, "truncated": 0, "evaluated": 9, "proven": 0,
    }  # fmt: skip
    assert (counts["x"]["used"], counts["x"]["measured"]) == (0, 5), "named by a mitigation, trained on in no stage"
    assert counts["d"]["proven"] == counts["d"]["used"] + counts["d"]["untrained"], "every row, not a sample"


def test_rows_of_a_source_that_is_only_evaluated_are_held_out_or_unused(make):
    made = make({"d": asks("d", 9), "e": asks("e", 60)}, [stage(("d", "domain"))], [suite("s", "e")],
                options={"e": {"held_out": 0.5}})  # fmt: skip
    counts = made.counts["e"]
    assert counts["held_out"] + counts["unused"] == 60
    assert 0 < counts["unused"] < 60
    assert counts["untrained"] == 0, "no row was tried"


@pytest.mark.parametrize("packing", [False, True])
def test_rows_that_the_steps_do_not_come_to_are_not_counted_as_used(make, packing):
    made = make({"d": asks("d", 60)}, [stage(("d", "domain"), steps=1, batch_size=1, packing=packing)])
    walked = {row for slot in made.stages[0].order for row in slot}
    assert made.counts["d"]["used"] == len(walked) == len(made.stages[0].rows) == 60 - made.counts["d"]["unused"] < 60


def test_a_suite_sees_exactly_the_held_out_rows_and_training_all_the_others(make):
    made = make(
        {"d": asks("d", 60)},
        [stage(("d", "domain"))],
        [suite("all", "d"), suite("some", "d", limit=4)],
        options={"d": {"held_out": 0.3}},
    )
    held, trained = {example.id for example in made.suite_examples["all"]}, {row.id for row in made.tokenized_rows["d"]}
    assert not held & trained
    assert len(held) + len(trained) == 60
    assert list(made.suite_examples["some"]) == list(some(made.suite_examples["all"], 4))


def test_the_mixture_and_its_order_are_those_that_the_stage_asks_for(make):
    made = make(
        {"d": asks("d", 120), "g": asks("g", 90)},
        [stage(("d", "domain"), ("g", "general"), shares=[Share(("g",), 0.1, "rows")], epochs=2)],
    )
    (data,) = made.stages
    assert data.shares["g"]["rows"] == pytest.approx(0.1, abs=0.005)
    assert len(data.order) == 2 * len(data.rows) == data.epoch_ends[-1]
    assert 0 < data.efficiency <= 1
    assert all(row.loss_tokens for row in data.rows)


def test_shares_are_those_of_the_rows_walked_when_steps_cut_an_epoch_short(make):
    made = make({"d": asks("d", 20), "g": asks("g", 20)}, [stage(("d", "domain"), ("g", "general"), steps=1)])
    walked = [made.stages[0].rows[index].source for slot in made.stages[0].order for index in slot]
    assert len(walked) == 4
    assert made.stages[0].shares["g"]["rows"] == walked.count("g") / 4


def test_the_same_spec_gives_the_same_data_and_another_seed_other_data(make):
    def once(seed):
        data = {"d": asks("d", 200), "g": asks("g", 90)}
        mixed = stage(("d", "domain"), ("g", "general"), shares=[Share(("g",), 0.2)])
        return make(data, [mixed], [suite("s", "d")], options={"d": {"held_out": 0.2}}, seed=seed)

    first, again, other = once(1), once(1), once(2)
    for one, two in zip(first.stages, again.stages, strict=True):
        assert list(one.rows) == list(two.rows)
        assert [*one.order] == [*two.order]
        assert (one.shares, one.efficiency) == (two.shares, two.efficiency)
    assert list(first.suite_examples["s"]) == list(again.suite_examples["s"])
    assert (first.counts, first.digests) == (again.counts, again.digests)
    assert first.digests != other.digests


def test_a_digest_is_of_the_content_used_and_not_of_the_order_of_the_file(make):
    rows = asks("d", 20)
    digests = [make({"d": data}, [stage(("d", "domain"))]).digests["d"] for data in (rows, rows[::-1], rows[:-1])]
    assert digests[0] == digests[1] != digests[2]


def test_a_question_that_is_both_trained_and_evaluated_stops_the_run_wherever_it_stands(make):
    data = {"a": asks("a", 5), "b": asks("b", 5), "e": asks("b", 2, "another answer")}
    stages = [stage(("a", "domain"), name="one"), stage(("b", "domain"), name="two")]
    with pytest.raises(HarnessError, match="2 of its rows ask what the training source 'b' also asks: e:1 = b:1, e:2"):
        make(data, stages, [suite("s", "e")])
    with pytest.raises(HarnessError, match="the training source 'b'"):
        make(data, stages[:1], [suite("s", "e")], also=["b"])
    make(data, stages[:1], [suite("s", "e")])


def test_a_question_of_the_suites_source_counts_even_beyond_the_suites_limit(make):
    with pytest.raises(HarnessError, match=r"5 of its rows"):
        make({"a": asks("a", 5), "e": asks("a", 5)}, [stage(("a", "domain"))], [suite("s", "e", limit=1)])


def test_rows_whose_response_is_cut_off_are_dropped_by_name_and_count(make):
    data = {"d": [*asks("d", 6), ("long " * 100, "never seen"), ("short", "a long answer " * 40)]}
    made = make(data, [stage(("d", "domain"))])
    assert made.fully_truncated == {"d": findings.FullyTruncatedRows(rows=8, lost=1, max_length=200, places=("d:7",))}
    assert (made.counts["d"]["untrained"], made.counts["d"]["truncated"], made.counts["d"]["used"]) == (1, 1, 7)
    assert max(len(row.input_ids) for row in made.tokenized_rows["d"]) == 200


def test_rows_lost_at_the_shorter_of_two_lengths_are_counted_there(make):
    data = {"d": [*asks("d", 6), ("long " * 100, "seen at last")]}
    made = make(data, [stage(("d", "domain"), name="one", max_length=900), stage(("d", "domain"), name="two")])
    assert made.fully_truncated == {"d": findings.FullyTruncatedRows(rows=7, lost=1, max_length=200, places=("d:7",))}
    assert made.counts["d"]["untrained"] == 0, "it is trained in one stage"


def test_conversations_stand_on_the_caches_disk_or_it_is_said_where_else(make, tmp_path, monkeypatch):
    taken = []
    write = ConversationStore.write_examples.__func__
    monkeypatch.setattr(
        ConversationStore,
        "write_examples",
        classmethod(lambda cls, rows, folder: taken.append(folder) or write(cls, rows, folder)),
    )
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "own"))
    made = make({"d": asks("d", 3)}, [stage(("d", "domain"))])
    assert taken == [tmp_path / "own" / "rows"] == [token_cache.token_cache_folder()]
    assert made.warnings == ()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    made = make({"d": asks("d", 3)}, [stage(("d", "domain"))])
    assert taken[1:] == [None]
    assert made.warnings[0].startswith("the rows read stand in ")
    assert made.warnings[0].endswith(f"while they are used, and not in {tmp_path / 'file' / 'rows'}: Not a directory")


def test_a_source_without_a_trained_token_within_max_length_is_an_error(make):
    with pytest.raises(HarnessError, match=r"sources.d: none of its 3 rows has a trained token within 12 tokens"):
        make({"d": asks("d", 3)}, [stage(("d", "domain"), max_length=12)])


def test_stages_with_different_lengths_have_their_own_rows(make):
    stages = [stage(("d", "domain"), name="one", max_length=60), stage(("d", "domain"), name="two", max_length=70)]
    made = make({"d": asks("d", 4, "word " * 20), "x": asks("x", 4, "word " * 20)}, stages, also=["x"])
    assert [max(len(row.input_ids) for row in data.rows) for data in made.stages] == [60, 70]
    assert {len(row.input_ids) for row in [*made.tokenized_rows["d"], *made.tokenized_rows["x"]]} == {70}


@pytest.mark.parametrize(
    ("template", "what"), [(Untrained(), "renders nothing trainable"), (HeaderTrained(), "is wrong")]
)
def test_a_template_with_a_wrong_mask_stops_the_run(make, template, what):
    with pytest.raises(HarnessError, match=f"d:1: .*{what}"):
        make({"d": asks("d", 3)}, [stage(("d", "domain"))], template=template)


def test_a_split_that_leaves_one_side_empty_is_an_error(make):
    with pytest.raises(HarnessError, match=r"evaluate.s: its source 'd' has too few rows for one of them to be held"):
        make({"d": asks("d", 2)}, [stage(("d", "domain"))], [suite("s", "d")], options={"d": {"held_out": 0.01}})
    prompt = Corpus.from_examples([QUESTION], "d").prompt_hashes
    seed = next(seed for seed in range(20) if held_out_mask(prompt, 0.9, seed)[0])
    with pytest.raises(HarnessError, match=r"sources.d: all 1 of its rows are held out"):
        make({"d": asks("d", 1)}, [stage(("d", "domain"))], options={"d": {"held_out": 0.9}}, seed=seed)


def test_each_source_is_read_once_and_one_that_nothing_names_is_not(make):
    data = {name: Rows(asks(name, 8), name) for name in "dex"}
    stages = [stage(("d", "domain"), name="one"), stage(("d", "domain"), name="two")]
    make(data, stages, [suite("s", "e"), suite("t", "e")])
    assert [data[name].read for name in "dex"] == [1, 1, 0]


TOKENISED = {("tokenise", "d"), ("tokenise", "s")}


def test_reading_and_tokenising_tell_how_far_they_are(make):
    told = []
    make(
        {"d": asks("d", 3), "e": asks("e", 3)},
        [stage(("d", "domain"))],
        [suite("s", "e")],
        progress=lambda *args: told.append(args),
        use_cache=False,
    )
    assert {(phase, note) for phase, _, _, note, _ in told} == {("read", "d"), ("read", "e"), *TOKENISED}
    assert all(done == total == 3 and unit == "rows" for _, done, total, _, unit in told)


def test_bad_rows_that_the_spec_allows_are_counted_and_written_where_the_caller_says(make, tmp_path):
    data = {"d": [*asks("d", 9), ("a question", " ")]}
    made = make(
        data, [stage(("d", "domain"))], options={"d": {"rejected": 0.1}}, invalid_rows_folder=tmp_path / "rejected"
    )
    assert (made.counts["d"]["rejected"], made.counts["d"]["used"]) == (1, 9)
    assert "d:10" in (tmp_path / "rejected" / "d.jsonl").read_text()
    assert any("1 of 10 rows of 'd' are bad" in text for text in made.warnings)
    with pytest.raises(HarnessError, match="d:10"):
        make(data, [stage(("d", "domain"))], invalid_rows_folder=tmp_path / "rejected")


def test_a_second_preparation_takes_its_tokens_from_the_cache(make, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    first, second = (make({"d": asks("d", 30)}, [stage(("d", "domain"))], [], template=Plain()) for _ in range(2))
    assert [one.sources["d"].at_longest_length.from_cache for one in (first, second)] == [False, True]
    assert list(first.tokenized_rows["d"]) == list(second.tokenized_rows["d"])
    changed = make({"d": asks("d", 31)}, [stage(("d", "domain"))])
    assert not changed.sources["d"].at_longest_length.from_cache
