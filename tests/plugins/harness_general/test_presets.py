"""The general presets: their rows, and how a spec uses them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from pathlib import Path

import harness_general
import pytest
from harness_metrics.instruction_checks import ADDED_CHECKS, PUBLISHED_CHECKS
from harness_metrics.instructions import Instructions
from harness_metrics.refusal import Refusal

from harness import Item
from harness.cli import main

FOLDER = Path(harness_general.__file__).parent / harness_general.VERSION
LANGUAGES = ("en", "zh")
KINDS = ("everyday", "instructions", "knowledge", "arithmetic", "reading", "safety", "code")
TRAINING = ("train", "train_computed")
ROOT = Path(__file__).resolve().parents[3]
DIGESTS = json.loads((Path(__file__).parent / "digests.json").read_text())

each_language = pytest.mark.parametrize("lang", LANGUAGES)


def rows_of(lang, kind):
    return [json.loads(line) for line in (FOLDER / lang / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()]


def prompt_of(row):
    return row.get("question") or "\n".join(filter(None, (row["instruction"], row.get("input"))))


def test_rows_of_a_published_version_never_change():
    files = {path.relative_to(FOLDER).as_posix(): path for path in sorted(FOLDER.rglob("*.jsonl"))}
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert digests == DIGESTS, "make a new version instead: another folder, and VERSION in harness_general"


@each_language
def test_no_prompt_occurs_twice(lang):
    prompts = [prompt_of(row).casefold() for kind in (*KINDS, *TRAINING) for row in rows_of(lang, kind)]
    prompts += [prompt_of(json.loads(line)).casefold() for line in training_rows_of_specs()]
    assert {prompt for prompt in prompts if prompts.count(prompt) > 1} == set()


def training_rows_of_specs():
    return (ROOT / "specs/data/general_train.jsonl").read_text(encoding="utf-8").splitlines()


@each_language
def test_a_preset_has_a_few_hundred_items_and_thirty_a_suite(lang):
    counts = {kind: len(rows_of(lang, kind)) for kind in KINDS}
    assert sum(counts.values()) >= 300
    assert min(counts.values()) >= 40


@each_language
def test_every_reference_follows_its_instructions(lang):
    rows = rows_of(lang, "instructions")
    for row in rows:
        scores = Instructions().statistics(Item("a", "", "", row["output"], data=row))
        assert scores["instruction_prompt"] == (1.0, 1.0), row
    used = {name for row in rows for name in row["instruction_id_list"]}
    assert len(used & {*PUBLISHED_CHECKS, *ADDED_CHECKS}) == len(used) >= 20


FAIR_ROWS = [
    ("en", "Why do people like music?", "A song feels like home.", "They feel good."),
    ("en", "Explain what a key is", "It locks rooms and chests.", "It fits a lock."),
    ("en", "Describe a forest", "Trees, trees and birds.", "A tree beside a tree."),
    ("en", "Write two sentences about the moon", "It is round. It is bright.", "It is round. It is bright. It is far."),
    (
        "en",
        "Write a short story in two sentences",
        "<<Ha!>>\nA man ran. He fell.",
        "<<Ha!>>\nA man ran. He fell. He rose.",
    ),
    ("en", "Write one sentence in Spanish", "La luna es redonda y muy bonita.", "The moon is round."),
    ("zh", "写两句关于月亮的话", "月亮很圆。月亮很亮。", "月亮很圆。月亮很亮。月亮很远。"),
    ("zh", "写三个1到9之间的数字", "1 2 9", "答案：1 2 9"),
    ("zh", "用两个部分描述一天", "部分 1\n工作\n部分 2\n休息", "第 1 部分\n工作\n第 2 部分\n休息"),
]


@pytest.mark.parametrize(("lang", "prompt", "followed", "broken"), FAIR_ROWS)
def test_the_rules_of_a_row_are_those_that_its_prompt_states(lang, prompt, followed, broken):
    (row,) = [row for row in rows_of(lang, "instructions") if row["instruction"].startswith(prompt)]
    for answer, expected in ((followed, 1.0), (broken, 0.0)):
        statistics = Instructions().statistics(Item("a", "", "", answer, data=row))
        assert statistics["instruction_prompt"] == (expected, 1.0), answer


@each_language
def test_instructions_can_be_failed(lang):
    """An answer that ignores them fails nearly all prompts."""
    ignoring = "Well, here it is, as you asked: something, and more. Another sentence, with commas, is here."
    followed = [
        Instructions().statistics(Item("a", "", "", ignoring, data=row))["instruction_prompt"][0]
        for row in rows_of(lang, "instructions")
    ]
    assert sum(followed) <= 0.25 * len(followed)


@each_language
def test_half_of_the_safety_rows_are_to_be_refused_and_the_references_decide_rightly(lang):
    rows = rows_of(lang, "safety")
    metric = Refusal("refuse", [])
    assert sum(row["refuse"] for row in rows) * 2 == len(rows)
    for row in rows:
        item = Item("a", "", row["output"], row["output"], data=row)
        assert metric.statistics(item) == {"refusal_correct": (1.0, 1.0)}, row


@each_language
def test_knowledge_has_four_choices_and_every_position_is_right_equally_often(lang):
    rows = rows_of(lang, "knowledge")
    assert all(len(row["choices"]) == len(set(row["choices"])) == 4 for row in rows)
    positions = [sum(row["answer"] == position for row in rows) for position in range(4)]
    assert max(positions) - min(positions) <= 1


def test_computed_rows_are_those_of_their_script():
    module_spec = importlib.util.spec_from_file_location("make_general", ROOT / "benchmarks/make_general.py")
    script = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(script)
    for name, rows in script.make_rows().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == script.format_rows(rows), name
    assert script.make_digests() == DIGESTS


@each_language
def test_an_answer_of_reading_is_in_its_text(lang):
    assert all(row["output"] in row["input"] for row in rows_of(lang, "reading"))


@pytest.fixture
def document(tmp_path, monkeypatch, tiny_model, tokenizer):
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", "1")
    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained("tiny")
    tokenizer.save_pretrained("tiny")
    paths = {lang: [f"pkg://harness_general/v1/{lang}/{name}.jsonl" for name in TRAINING] for lang in LANGUAGES}
    return {
        "name": "general",
        "model": {"path": "./tiny"},
        "template": "chatml",
        "sources": {lang: {"jsonl": {"path": path}} for lang, path in paths.items()},
        "mode": {"general": {"sources": ["en", "zh"]}},
        "train": {"max_length": 2048},
        "evaluate": {"general": "general", "chinese": "general-zh"},
    }


def write(document):
    Path("spec.json").write_text(json.dumps(document))
    return "spec.json"


@pytest.mark.slow
def test_check_finds_no_overlap_between_training_and_evaluation(document, capsys):
    assert main.main(["check", write(document)]) == 0
    output = capsys.readouterr().out
    for check in ("held out", "contamination"):
        assert re.search(rf"^✓ {check} ", output, re.MULTILINE), output


def test_validate_filled_shows_the_suites_and_sources(document, capsys):
    document["evaluate"] = {"kept": {"preset": "general", "limit": 30, "suites": ["code", "safety"]}}
    assert main.main(["validate", "--filled", write(document)]) == 0
    filled = json.loads(capsys.readouterr().out)
    assert list(filled["evaluate"]) == ["kept-code", "kept-safety"]
    assert filled["evaluate"]["kept-safety"]["limit"] == 30
    assert filled["evaluate"]["kept-safety"]["role"] == "general"
    assert filled["sources"]["kept-safety"]["jsonl"]["keep"] == ["refuse"]


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"g": "generall"}, "'general'"),
        ({"g": {"preset": "general", "suites": ["reding"]}}, "has no suite 'reding'; did you mean 'reading'?"),
        ({"g": {"preset": "general", "metrics": "rouge"}}, "each suite of the preset 'general' has its own 'metrics'"),
        ({"g": {"preset": "general", "limit": 0}}, "evaluate.g.limit: 0 is out of range"),
        ({"g": {"source": "en", "metrics": "rouge", "suites": ["code"]}}, "only a preset has suites"),
        ({"g": {"limit": 2}}, "the key 'source' is missing"),
        ({"g": "general", "g-code": {"source": "en", "metrics": "rouge"}}, "adds 'g-code', which exists; rename it"),
    ],
)
def test_a_wrong_preset_is_one_line_with_its_location(document, capsys, evaluate, message):
    document["evaluate"] = evaluate
    assert main.main(["validate", write(document)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("harness: spec.json:1:")
