"""Preparing the data of a plan: every row is counted, and no suite is trained on."""

import dataclasses

import pytest
from support.corpora import corpus_in_memory

from harness.data.checks import findings
from harness.data.prepare import PreparationOptions, prepare_data
from harness.data.reading.conversation import build_example
from harness.data.reading.conversation_store import ConversationStore
from harness.data.reading.splits import held_out_mask, limit_rows
from harness.data.tokenization import token_cache
from harness.errors import HarnessError
from harness.evaluation.predictions import item_from_example
from harness.interfaces.source import Source
from harness.interfaces.template import Template
from harness.spec_keys import data as data_keys
from harness.types import Message, Plan, Record, Share, Span, Stage, StageSource, Suite

TRAIN = {"epochs": 1, "steps": None, "batch_size": 4, "accumulation": 1, "packing": False, "max_length": 200}
SOURCE_OPTIONS = {key: option["default"] for key, option in data_keys.SOURCE_KEYS.items()}


class RecordingSource(Source):
    """Yields rows of question and answer, and counts how often it is read."""

    def __init__(self, rows, name):
        self.rows, self.name, self.times_read = rows, name, 0

    def records(self):
        self.times_read += 1
        return (
            Record(f"{self.name}:{number}", {"instruction": question, "output": answer})
            for number, (question, answer) in enumerate(self.rows, 1)
        )


class ChatTemplate(Template):
    def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
        spans = []
        for message in messages:
            trained = message.role == "assistant"
            spans += [Span(f"<|im_start|>{message.role}\n", markup=True), Span(message.content, trained)]
            spans.append(Span("<|im_end|>", trained, markup=True))
        return (*spans, *([Span("<|im_start|>assistant\n", markup=True)] if add_generation_prompt else []))

    def stop_strings(self, tokenizer):
        return ("<|im_end|>",)


class UntrainedTemplate(ChatTemplate):
    def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
        return tuple(
            dataclasses.replace(span, train=False)
            for span in super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt)
        )


class TrainedHeaderTemplate(ChatTemplate):
    def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
        return tuple(
            dataclasses.replace(span, train=True)
            for span in super().render(messages, tokenizer, add_generation_prompt=add_generation_prompt)
        )


def limit_suite(examples, limit):
    corpus = corpus_in_memory(examples, "d")
    return corpus.select(limit_rows(corpus.content_hashes, limit, 0, "suite"))


QUESTION = build_example([Message("user", "d question 0"), Message("assistant", "an answer")], "d:1")


def build_pairs(name, count, answer="an answer of some length"):
    return [(f"{name} question {number}", f"{answer} {number}") for number in range(count)]


@pytest.fixture
def prepare(tokenizer):
    def prepare_plan(data, stages, suites=(), *, source_options=None, seed=0, template=None, progress=None, **options):
        source_options = source_options or {}
        plan = Plan(
            name="plan",
            seed=seed,
            model={},
            template=("plain", {}),
            sources={name: ("rows", {**SOURCE_OPTIONS, **source_options.get(name, {})}) for name in data},
            mitigations={},
            stages=tuple(stages),
            suites=tuple(suites),
        )
        sources = {
            name: rows if isinstance(rows, RecordingSource) else RecordingSource(rows, name)
            for name, rows in data.items()
        }
        more = {"progress": progress} if progress else {}
        return prepare_data(plan, sources, template or ChatTemplate(), tokenizer, PreparationOptions(**options), **more)

    return prepare_plan


def build_stage(*parts, name="only", shares=(), **train):
    return Stage(name, tuple(StageSource(*part) for part in parts), {**TRAIN, **train}, tuple(shares))


def build_suite(name, source, limit=None):
    return Suite(name, source, "domain", {}, limit, 8, 8)


def sum_of_parts(counts):
    return sum(
        counts[key]
        for key in (
            *("filtered", "rejected", "duplicates", "beyond_limit", "held_out", "contaminating", "untrained", "used"),
            *("measured", "unused"),
        )
    )


def test_every_row_read_is_counted_once(prepare):
    data = {
        "d": build_pairs("d", 60) + build_pairs("d", 10),
        "g": build_pairs("g", 80),
        "e": build_pairs("e", 9),
        "x": build_pairs("x", 5),
    }
    prepared = prepare(
        data,
        [build_stage(("d", "domain"), ("g", "general"), shares=[Share(("g",), 0.2)])],
        [build_suite("held", "d", limit=3), build_suite("other", "e")],
        extra_sources=["x"],
        source_options={"d": {"held_out": 0.2, "limit": 50}},
    )
    for name, source_counts in prepared.counts.items():
        assert source_counts["read"] == len(data[name]) == sum_of_parts(source_counts), name
    counts = prepared.counts
    assert (counts["d"]["duplicates"], counts["d"]["beyond_limit"], counts["d"]["unused"]) == (10, 10, 0)
    assert counts["d"]["used"] == sum(row.source == "d" for row in prepared.stages[0].rows) > 30
    assert counts["d"]["evaluated"] == 3 < counts["d"]["held_out"]
    assert 0 < counts["g"]["used"] == 80 - counts["g"]["unused"] < 80
    assert counts["e"] == {
        "read": 9, "filtered": 0, "rejected": 0, "duplicates": 0, "beyond_limit": 0, "held_out": 9,
        "contaminating": 0, "untrained": 0, "used": 0, "measured": 0, "unused": 0, "truncated": 0,
        "evaluated": 9, "verified": 0,
    }  # fmt: skip
    assert (counts["x"]["used"], counts["x"]["measured"]) == (0, 5), "an extra source, trained on in no stage"
    assert counts["d"]["verified"] == counts["d"]["used"] + counts["d"]["untrained"], "every row, not a sample"


def test_rows_of_a_source_for_suites_are_held_out_or_unused(prepare):
    prepared = prepare(
        {"d": build_pairs("d", 9), "e": build_pairs("e", 60)},
        [build_stage(("d", "domain"))],
        [build_suite("s", "e")],
        source_options={"e": {"held_out": 0.5}},
    )
    counts = prepared.counts["e"]
    assert counts["held_out"] + counts["unused"] == 60
    assert 0 < counts["unused"] < 60
    assert counts["untrained"] == 0, "no row was tokenized"


@pytest.mark.parametrize("packing", [False, True])
def test_rows_beyond_the_steps_are_unused(prepare, packing):
    prepared = prepare(
        {"d": build_pairs("d", 60)}, [build_stage(("d", "domain"), steps=1, batch_size=1, packing=packing)]
    )
    trained = {row for sequence in prepared.stages[0].order for row in sequence}
    assert (
        prepared.counts["d"]["used"]
        == len(trained)
        == len(prepared.stages[0].rows)
        == 60 - prepared.counts["d"]["unused"]
        < 60
    )


def test_suite_has_the_held_out_rows_and_training_all_others(prepare):
    prepared = prepare(
        {"d": build_pairs("d", 60)},
        [build_stage(("d", "domain"))],
        [build_suite("all", "d"), build_suite("some", "d", limit=4)],
        source_options={"d": {"held_out": 0.3}},
    )
    held, trained = (
        {example.id for example in prepared.suite_examples["all"]},
        {row.id for row in prepared.tokenized_rows["d"]},
    )
    assert not held & trained
    assert len(held) + len(trained) == 60
    assert list(prepared.suite_examples["some"]) == list(limit_suite(prepared.suite_examples["all"], 4))


def test_mixture_and_order_match_the_stage(prepare):
    prepared = prepare(
        {"d": build_pairs("d", 120), "g": build_pairs("g", 90)},
        [build_stage(("d", "domain"), ("g", "general"), shares=[Share(("g",), 0.1, "rows")], epochs=2)],
    )
    (data,) = prepared.stages
    assert data.shares["g"]["rows"] == pytest.approx(0.1, abs=0.005)
    assert len(data.order) == 2 * len(data.rows) == data.epoch_ends[-1]
    assert 0 < data.efficiency <= 1
    assert all(row.loss_tokens for row in data.rows)


def test_shares_are_those_of_trained_rows_when_steps_end_within_an_epoch(prepare):
    prepared = prepare(
        {"d": build_pairs("d", 20), "g": build_pairs("g", 20)},
        [build_stage(("d", "domain"), ("g", "general"), steps=1)],
    )
    trained = [prepared.stages[0].rows[index].source for sequence in prepared.stages[0].order for index in sequence]
    assert len(trained) == 4
    assert prepared.stages[0].shares["g"]["rows"] == trained.count("g") / 4


def test_same_seed_gives_the_same_data_and_another_seed_does_not(prepare):
    def prepare_with_seed(seed):
        data = {"d": build_pairs("d", 200), "g": build_pairs("g", 90)}
        mixed = build_stage(("d", "domain"), ("g", "general"), shares=[Share(("g",), 0.2)])
        return prepare(data, [mixed], [build_suite("s", "d")], source_options={"d": {"held_out": 0.2}}, seed=seed)

    first, second, other = (prepare_with_seed(seed) for seed in (1, 1, 2))
    for left, right in zip(first.stages, second.stages, strict=True):
        assert list(left.rows) == list(right.rows)
        assert [*left.order] == [*right.order]
        assert (left.shares, left.efficiency) == (right.shares, right.efficiency)
    assert list(first.suite_examples["s"]) == list(second.suite_examples["s"])
    assert (first.counts, first.digests) == (second.counts, second.digests)
    assert first.digests != other.digests


def test_digest_depends_on_the_rows_used_and_not_on_their_order(prepare):
    rows = build_pairs("d", 20)
    digests = [
        prepare({"d": data}, [build_stage(("d", "domain"))]).digests["d"] for data in (rows, rows[::-1], rows[:-1])
    ]
    assert digests[0] == digests[1] != digests[2]


def test_prompt_that_is_trained_and_evaluated_is_an_error_in_every_stage(prepare):
    data = {"a": build_pairs("a", 5), "b": build_pairs("b", 5), "e": build_pairs("b", 2, "another answer")}
    stages = [build_stage(("a", "domain"), name="one"), build_stage(("b", "domain"), name="two")]
    with pytest.raises(
        HarnessError, match="2 of its rows have a prompt that the training source 'b' also has: e:1 = b:1, e:2"
    ):
        prepare(data, stages, [build_suite("s", "e")])
    with pytest.raises(HarnessError, match="the training source 'b'"):
        prepare(data, stages[:1], [build_suite("s", "e")], extra_sources=["b"])
    prepare(data, stages[:1], [build_suite("s", "e")])


def test_shared_prompt_beyond_the_limit_of_a_suite_is_an_error(prepare):
    with pytest.raises(HarnessError, match=r"5 of its rows"):
        prepare(
            {"a": build_pairs("a", 5), "e": build_pairs("a", 5)},
            [build_stage(("a", "domain"))],
            [build_suite("s", "e", limit=1)],
        )


def test_fully_truncated_rows_are_dropped_and_named(prepare):
    data = {"d": [*build_pairs("d", 6), ("long " * 100, "never seen"), ("short", "a long answer " * 40)]}
    prepared = prepare(data, [build_stage(("d", "domain"))])
    assert prepared.fully_truncated == {
        "d": findings.FullyTruncatedRows(rows=8, lost=1, max_length=200, places=("d:7",))
    }
    assert (prepared.counts["d"]["untrained"], prepared.counts["d"]["truncated"], prepared.counts["d"]["used"]) == (
        1,
        1,
        7,
    )
    assert max(len(row.input_ids) for row in prepared.tokenized_rows["d"]) == 200


def test_fully_truncated_rows_are_counted_at_the_shorter_length(prepare):
    data = {"d": [*build_pairs("d", 6), ("long " * 100, "seen at last")]}
    prepared = prepare(
        data, [build_stage(("d", "domain"), name="one", max_length=900), build_stage(("d", "domain"), name="two")]
    )
    assert prepared.fully_truncated == {
        "d": findings.FullyTruncatedRows(rows=7, lost=1, max_length=200, places=("d:7",))
    }
    assert prepared.counts["d"]["untrained"] == 0, "it is trained in one stage"


def test_conversations_are_stored_in_the_cache_or_a_warning_names_the_folder(prepare, tmp_path, monkeypatch):
    folders = []
    write = ConversationStore.write_examples.__func__
    monkeypatch.setattr(
        ConversationStore,
        "write_examples",
        classmethod(lambda cls, rows, folder: folders.append(folder) or write(cls, rows, folder)),
    )
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "own"))
    prepared = prepare({"d": build_pairs("d", 3)}, [build_stage(("d", "domain"))])
    assert folders == [tmp_path / "own" / "rows"] == [token_cache.token_cache_folder()]
    assert prepared.warnings == ()
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    prepared = prepare({"d": build_pairs("d", 3)}, [build_stage(("d", "domain"))])
    assert folders[1:] == [None]
    assert prepared.warnings[0].startswith("the rows are stored in ")
    assert prepared.warnings[0].endswith(f"because {tmp_path / 'file' / 'rows'} cannot be used: Not a directory")


def test_source_without_a_trained_token_within_max_length_is_an_error(prepare):
    with pytest.raises(HarnessError, match=r"sources.d: none of its 3 rows has a trained token within 12 tokens"):
        prepare({"d": build_pairs("d", 3)}, [build_stage(("d", "domain"), max_length=12)])


def test_stages_with_different_lengths_have_their_own_rows(prepare):
    stages = [
        build_stage(("d", "domain"), name="one", max_length=60),
        build_stage(("d", "domain"), name="two", max_length=70),
    ]
    prepared = prepare(
        {"d": build_pairs("d", 4, "word " * 20), "x": build_pairs("x", 4, "word " * 20)}, stages, extra_sources=["x"]
    )
    assert [max(len(row.input_ids) for row in data.rows) for data in prepared.stages] == [60, 70]
    assert {len(row.input_ids) for row in [*prepared.tokenized_rows["d"], *prepared.tokenized_rows["x"]]} == {70}


@pytest.mark.parametrize(
    ("template", "what"), [(UntrainedTemplate(), "renders nothing trainable"), (TrainedHeaderTemplate(), "is wrong")]
)
def test_template_with_a_wrong_mask_is_an_error(prepare, template, what):
    with pytest.raises(HarnessError, match=f"d:1: .*{what}"):
        prepare({"d": build_pairs("d", 3)}, [build_stage(("d", "domain"))], template=template)


def test_split_with_an_empty_side_is_an_error(prepare):
    with pytest.raises(HarnessError, match=r"evaluate.s: its source 'd' has too few rows to hold one out"):
        prepare(
            {"d": build_pairs("d", 2)},
            [build_stage(("d", "domain"))],
            [build_suite("s", "d")],
            source_options={"d": {"held_out": 0.01}},
        )
    prompt = corpus_in_memory([QUESTION], "d").prompt_hashes
    seed = next(seed for seed in range(20) if held_out_mask(prompt, 0.9, seed)[0])
    with pytest.raises(HarnessError, match=r"sources.d: all 1 of its rows are held out"):
        prepare(
            {"d": build_pairs("d", 1)},
            [build_stage(("d", "domain"))],
            source_options={"d": {"held_out": 0.9}},
            seed=seed,
        )


def test_rows_of_two_sources_are_trained_in_the_one_that_stages_name_first(prepare):
    def trained(**options):
        prepared = prepare(
            {"d": build_pairs("d", 9), "e": [*build_pairs("d", 4), *build_pairs("e", 5)]},
            [build_stage(("e", "domain"), name="one"), build_stage(("d", "domain"), name="two")],
            **options,
        )
        assert all(sum_of_parts(counts) == counts["read"] for counts in prepared.counts.values())
        return prepared

    assert trained().counts["d"]["used"] == 9
    prepared = trained(drop_shared_rows=True)
    assert {name: (counts["used"], counts["duplicates"]) for name, counts in prepared.counts.items()} == {
        "e": (9, 0),
        "d": (5, 4),
    }
    (warning,) = prepared.warnings
    assert warning.splitlines() == [
        "4 of 9 training rows of 'd' are equal to rows of 'e' and are dropped",
        *("d:1", "d:2", "d:3", "d:4"),
    ]
    with pytest.raises(HarnessError, match=r"sources.e: all of its 4 training rows are equal to rows of 'd'"):
        prepare(
            {"d": build_pairs("d", 9), "e": build_pairs("d", 4)},
            [build_stage(("d", "domain"), ("e", "domain"))],
            drop_shared_rows=True,
        )


CONTAMINATION = {key: option["default"] for key, option in data_keys.CONTAMINATION_KEYS.items()}
LONG = "the old clock in the tall tower of the town hall strikes every hour except at noon on sundays"


def test_training_rows_that_contaminate_are_left_out_and_counted(prepare):
    rows = [
        *build_pairs("d", 9),
        ("e question 1", "the same prompt"),
        ("E QUESTION 2!", "the same words"),
        (f"Is it true that {LONG}?", "most of the words"),
        ("Why?", f"It is so: {LONG}."),
    ]
    data = {"d": rows, "e": [*build_pairs("e", 4), (f"{LONG}, is it not?", "Yes.")]}
    stages, suites = [build_stage(("d", "domain"))], [build_suite("s", "e")]
    with pytest.raises(HarnessError, match=r'or set checks\.contamination\.drop to "training"'):
        prepare(data, stages, suites)
    prepared = prepare(data, stages, suites, drop_contaminated={**CONTAMINATION, "drop": "training"})
    counts = prepared.counts["d"]
    assert (counts["used"], counts["contaminating"], sum_of_parts(counts)) == (9, 4, counts["read"])
    assert len(prepared.suite_examples["s"]) == 5
    assert [warning.splitlines() for warning in prepared.warnings] == [
        ["1 of 13 training rows of 'd' have an evaluated prompt and are dropped", "d:10"],
        ["3 of 12 training rows of 'd' share their words with evaluated rows and are dropped", "d:11", "d:12", "d:13"],
    ]
    found = findings.find_contamination(prepared.suite_examples, prepared.training_examples)
    assert (found["s"].prompts, found["s"].overlapping) == (0, 0)


def test_an_ngram_that_is_common_no_more_is_searched_again(prepare):
    """12 rows have a phrase, which is common; one of them also has the rest of an item, and goes first."""
    phrase = "a common phrase of so many words that it has one n-gram of thirteen in it"
    rest = "and the rest of the prompt is in one training row alone which is then dropped from it"
    rows = [*build_pairs("d", 9), *((f"{phrase} {number}", "x") for number in range(10)), (f"{rest} {phrase}", "x")]
    data = {"d": rows, "e": [(phrase, "x"), (f"{rest} indeed", "x")]}
    settings = {**CONTAMINATION, "drop": "training"}
    prepared = prepare(data, [build_stage(("d", "domain"))], [build_suite("s", "e")], drop_contaminated=settings)
    assert [warning.splitlines()[0].split(" training")[0] for warning in prepared.warnings] == ["1 of 20", "10 of 19"]
    assert prepared.counts["d"]["contaminating"] == 11


def test_source_of_contaminating_rows_alone_is_an_error(prepare):
    with pytest.raises(HarnessError, match=r"sources.d: all of its 3 training rows have an evaluated prompt"):
        prepare(
            {"d": build_pairs("e", 3), "e": build_pairs("e", 4, "another answer")},
            [build_stage(("d", "domain"))],
            [build_suite("s", "e")],
            drop_contaminated={**CONTAMINATION, "drop": "training"},
        )


class RowsWithColumns(RecordingSource):
    def records(self):
        return (Record(f"{self.name}:{number}", row) for number, row in enumerate(self.rows, 1))


def held_out_by(**option):
    return {"held_out": {**{key: entry["default"] for key, entry in data_keys.HELD_OUT_KEYS.items()}, **option}}


def customer_rows(name, customers, size):
    return RowsWithColumns(
        [
            {"instruction": f"{name} question {customer} {index}", "output": "an answer", "customer": f"c{customer}"}
            for customer in range(customers)
            for index in range(size)
        ],
        name,
    )


def test_groups_are_held_out_and_counted_on_each_side(prepare):
    prepared = prepare(
        {"d": customer_rows("d", 20, 3)},
        [build_stage(("d", "domain"))],
        [build_suite("s", "d")],
        source_options={"d": held_out_by(share=0.2, group="customer")},
    )
    assert len(prepared.suite_examples["s"]) == prepared.counts["d"]["held_out"] == 12
    assert prepared.held_out_rules == {
        "d": {"by": "customer", "training_rows": 48, "held_out_rows": 12, "training_groups": 16, "held_out_groups": 4}
    }


def test_groups_that_are_dropped_are_not_counted(prepare):
    data = customer_rows("d", 20, 3)
    prepared = prepare(
        {"d": data, "first": RowsWithColumns([row for row in data.rows if row["customer"] in ("c0", "c1")], "first")},
        [build_stage(("first", "domain"), ("d", "domain"))],
        [],
        source_options={"d": held_out_by(share=0.2, group="customer")},
        drop_shared_rows=True,
    )
    rule = prepared.held_out_rules["d"]
    assert rule["training_rows"] == 3 * rule["training_groups"] < 48


def test_near_duplicates_are_held_out_together_at_the_threshold_of_the_check(prepare):
    def groups(threshold):
        rows = [(f"how do I reset the {word} of the device", f"{word}") for word in ("lamp", "lamps", "lampe", "fuse")]
        prepared = prepare(
            {"d": [*rows, *build_pairs("d", 2, "b")], "g": build_pairs("g", 9)},
            [build_stage(("g", "domain"))],
            [build_suite("s", "d")],
            source_options={"d": held_out_by(share=0.5, near_duplicates=True)},
            near_duplicate_threshold=threshold,
        )
        rule = prepared.held_out_rules["d"]
        assert rule["by"] == "near duplicates"
        return rule["training_groups"] + rule["held_out_groups"]

    assert groups(1.0) == 6
    assert groups(0.6) < 6


def test_one_empty_side_is_an_error_with_the_share_or_date_to_write(prepare):
    for option, message in (
        (
            {"share": 0.1, "group": "customer"},
            "sources.d.held_out: no group is held out: the smallest of 3 by customer has 10 of 30 rows, and the share "
            "0.1 is 3 rows; groups with an equal prompt are one group; raise sources.d.held_out.share to 0.334, or "
            "group by another column",
        ),
        (
            {"column": "customer", "from": "2025-01-01"},
            "sources.d: all 30 of its rows are held out, so none is left to train on; set a later "
            "sources.d.held_out.from, or add rows",
        ),
        (
            {"share": 0.9, "near_duplicates": True},
            "sources.d: all 30 of its rows are held out, so none is left to train on: they are 1 group by near "
            "duplicates; lower sources.d.held_out.share, raise checks.near_duplicates.threshold, or add rows",
        ),
        (
            {"column": "customer", "from": "2026-01-01"},
            "sources.d.held_out: no row of 'd' has a 'customer' of '2026-01-01' or later; set an earlier",
        ),
    ):
        data = customer_rows("d", 3, 10)
        if "column" in option:
            data.rows = [{**row, "customer": "2025-05-05"} for row in data.rows]
        elif "near_duplicates" in option:
            data.rows = [
                {**row, "instruction": f"how do I reset the lamp of this device {number}"}
                for number, row in enumerate(data.rows)
            ]
        with pytest.raises(HarnessError) as error:
            prepare(
                {"d": data},
                [build_stage(("d", "domain"))],
                [build_suite("s", "d")],
                source_options={"d": held_out_by(**option)},
            )
        assert str(error.value).startswith(message)


def test_groups_that_another_source_trains_get_a_warning(prepare):
    prepared = prepare(
        {"d": customer_rows("d", 20, 3), "e": customer_rows("e", 20, 3)},
        [build_stage(("d", "domain"), ("e", "domain"))],
        [build_suite("s", "d")],
        source_options={name: held_out_by(share=0.2, group="customer") for name in "de"},
    )
    # the groups are chosen by their names, so equal sizes give equal groups
    assert not prepared.warnings
    prepared = prepare(
        {"d": customer_rows("d", 20, 3), "e": customer_rows("e", 20, 3)},
        [build_stage(("d", "domain"), ("e", "domain"))],
        [build_suite("s", "d")],
        source_options={"d": held_out_by(share=0.2, group="customer"), "e": held_out_by(share=0.1, group="customer")},
    )
    assert prepared.warnings[0].startswith("2 customer held out of 'd' are trained in 'e'")


def test_each_named_source_is_read_once(prepare):
    data = {name: RecordingSource(build_pairs(name, 8), name) for name in "dex"}
    stages = [build_stage(("d", "domain"), name="one"), build_stage(("d", "domain"), name="two")]
    prepare(data, stages, [build_suite("s", "e"), build_suite("t", "e")])
    assert [data[name].times_read for name in "dex"] == [1, 1, 0]


def test_reading_and_tokenizing_report_progress(prepare):
    reported = []
    prepare(
        {"d": build_pairs("d", 3), "e": build_pairs("e", 3)},
        [build_stage(("d", "domain"))],
        [build_suite("s", "e")],
        progress=lambda *args: reported.append(args),
        use_cache=False,
    )
    assert {(phase, note) for phase, _, _, note, _ in reported} == {
        ("read", "d"),
        ("read", "e"),
        ("tokenize", "d"),
        ("tokenize", "s"),
    }
    assert all(done == total == 3 and unit == "rows" for _, done, total, _, unit in reported)


def test_allowed_invalid_rows_are_counted_and_written_to_the_folder(prepare, tmp_path):
    data = {"d": [*build_pairs("d", 9), ("a question", " ")]}
    prepared = prepare(
        data,
        [build_stage(("d", "domain"))],
        source_options={"d": {"rejected": 0.1}},
        invalid_rows_folder=tmp_path / "rejected",
    )
    assert (prepared.counts["d"]["rejected"], prepared.counts["d"]["used"]) == (1, 9)
    assert "d:10" in (tmp_path / "rejected" / "d.jsonl").read_text()
    assert any("1 of 10 rows of 'd' are invalid" in warning for warning in prepared.warnings)
    with pytest.raises(HarnessError, match="d:10"):
        prepare(data, [build_stage(("d", "domain"))], invalid_rows_folder=tmp_path / "rejected")


def test_second_preparation_loads_its_tokens_from_the_cache(prepare, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    first, second = (
        prepare({"d": build_pairs("d", 30)}, [build_stage(("d", "domain"))], [], template=ChatTemplate())
        for _ in range(2)
    )
    assert [data.sources["d"].at_longest_length.from_cache for data in (first, second)] == [False, True]
    assert list(first.tokenized_rows["d"]) == list(second.tokenized_rows["d"])
    changed = prepare({"d": build_pairs("d", 31)}, [build_stage(("d", "domain"))])
    assert not changed.sources["d"].at_longest_length.from_cache


def test_rows_of_a_suite_have_their_group(prepare):
    class GroupedSource(RecordingSource):
        def records(self):
            for number, record in enumerate(super().records()):
                yield dataclasses.replace(record, data={**record.data, "document": number // 3})

    suite = dataclasses.replace(build_suite("held", "e"), group="document")
    data = {"d": build_pairs("d", 9), "e": GroupedSource(build_pairs("e", 9), "e")}
    prepared = prepare(data, [build_stage(("d", "domain"))], [suite])
    items = [item_from_example(example, suite.group) for example in prepared.suite_examples["held"]]
    assert sorted(item.group for item in items) == ["0"] * 3 + ["1"] * 3 + ["2"] * 3
    with pytest.raises(HarnessError, match="has no 'page', a column by which a suite groups or slices its items"):
        prepare(data, [build_stage(("d", "domain"))], [dataclasses.replace(suite, group="page")])
