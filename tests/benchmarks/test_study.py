"""The study on a small language model: its specs, its values, its cost, and a dry run of a few steps."""

from __future__ import annotations

import argparse
import json
import re
import shutil

import pytest
from support.benchmarks import load_benchmark
from support.paths import ROOT

from harness.cli import planned_spec
from harness.cli.main import main
from harness.errors import RunError
from harness.report.arm_comparison import NOT_FINISHED
from harness.runner.prepare import prepare_checked_run
from harness.spec.arms import format_overrides
from harness.testing.tiny_model import build_tiny_model

method_study = load_benchmark("method_study")
study = load_benchmark("study", "method_study")

PAGE = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
RESULTS = json.loads((ROOT / "docs" / "evidence.json").read_text(encoding="utf-8"))["pairs"]
PAIRS = {pair: json.loads((ROOT / "specs" / "study" / f"{pair}.json").read_text("utf-8")) for pair in study.PAIRS}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tokenizer):
    """Changes of a spec: the tiny model, whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("model")
    build_tiny_model(tokenizer, max_position_embeddings=1024).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"model": {"path": str(folder)}, "train.max_length": 900}


def test_the_specs_are_those_of_the_study():
    assert sorted(file.stem for file in study.SPECS.glob("*.json")) == sorted(study.PAIRS)


@pytest.mark.parametrize("pair", study.PAIRS)
def test_each_spec_is_valid_with_all_its_arms(pair, capsys):
    assert main(["validate", str(study.SPECS / f"{pair}.json")]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("pair", study.PAIRS)
def test_each_method_has_the_same_number_of_values_and_the_spec_has_the_first(pair):
    named = PAIRS[pair]["arms"]["named"]
    methods = study.methods_of(PAIRS[pair])
    assert set(named) == {"naive", *methods}
    for name, method in methods.items():
        assert len(set(method.values)) == 2
        assert method.arm(method.values[0]) == named[name]
        assert method.arm(method.values[1]) != named[name]


@pytest.mark.parametrize("pair", study.PAIRS)
def test_the_page_has_every_arm_with_its_values(pair):
    for name, method in study.methods_of(PAIRS[pair]).items():
        values = ", ".join(f"{value:g}" for value in method.values)
        assert re.search(rf"^\| {name} \| .* \| `{method.option}` \| {re.escape(values)} \|$", PAGE, re.MULTILINE), name


def test_replay_is_an_arm_where_there_is_an_earlier_stage():
    assert [pair for pair in PAIRS if "replay" in PAIRS[pair]["arms"]["named"]] == ["help_desk_lists"]


@pytest.mark.parametrize("pair", study.PAIRS)
def test_the_choice_is_evaluated_on_rows_of_which_the_result_has_none(pair):
    spec, choice = PAIRS[pair], study.choice_changes(PAIRS[pair])
    tested = {suite["source"] for suite in spec["evaluate"].values() if "source" in suite}
    validated = {suite["source"] for suite in choice["evaluate"].values()}
    assert not tested & validated
    sources = {name: source["jsonl"] for name, source in spec["sources"].items()}
    assert all(sources[name]["held_out"] > 0 for name in validated)
    assert all("held_out" not in sources[name] for name in tested)
    assert choice["seed"] >= spec["arms"]["seeds"]


@pytest.mark.parametrize("pair", study.PAIRS)
def test_the_page_has_the_tables_of_a_pair_and_says_what_has_not_run(pair):
    result = RESULTS.get(pair, {})
    state = "[result](#" if "arms" in result else "[values chosen](#" if "choices" in result else "not run"
    assert f"| {pair} | {state}" in PAGE
    if result:
        tables = method_study.format_tables(result).strip()
        assert all(table in PAGE for table in tables.split("\n\n"))
        assert result["choices"].keys() == study.methods_of(PAIRS[pair]).keys()
    if "arms" in result:
        assert f"(images/evidence_{pair}.svg)" in PAGE
        assert [arm["arm"] for arm in result["arms"]] == list(PAIRS[pair]["arms"]["named"])


def test_the_page_says_what_the_study_costs():
    costs = {pair: dict.fromkeys(("runs", "trained", "evaluated", "written"), 1) for pair in study.PAIRS}
    header = study.format_cost(costs).splitlines()[0]
    assert header in PAGE
    table = PAGE[PAGE.index(header) :].split("\n\n")[0].splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in table] == [*study.PAIRS, "together"]
    for pair, row in zip(study.PAIRS, table, strict=False):
        arms = len(PAIRS[pair]["arms"]["named"])
        assert int(row.split(" | ")[1]) == 1 + 2 * (arms - 1) + 4 * arms


@pytest.mark.parametrize("pair", study.PAIRS)
def test_each_spec_can_be_planned(pair, tiny):
    steps = {"lists": 30, "help_desk_lists": 30 + 30, "chinese_tasks": 30}[pair]
    cost = study.cost_of_run(study.SPECS / f"{pair}.json", {**tiny, "arms": None})
    assert cost["trained"] > steps * 4 * 10
    assert cost["evaluated"] > 0
    assert cost["written"] == 0


@pytest.mark.parametrize("pair", study.PAIRS)
def test_the_rows_of_both_experiments_pass_the_checks(pair, tiny):
    choices = {name: {"value": method.values[0]} for name, method in study.methods_of(PAIRS[pair]).items()}
    for changes in (study.choice_changes(PAIRS[pair]), study.result_changes(PAIRS[pair], choices)):
        overrides = format_overrides({**tiny, **changes, "arms": None})
        arguments = argparse.Namespace(spec=str(study.SPECS / f"{pair}.json"), overrides=list(overrides))
        spec, registry, plan = planned_spec.load_spec_and_plan(arguments)
        suites = prepare_checked_run(spec, registry, plan=plan).data.tokenized_suites
        assert all(len(suite.rows) >= 40 for suite in suites.values())


def test_a_result_keeps_those_of_other_pairs(tmp_path):
    file = tmp_path / "evidence.json"
    for pair, seeds in (("chinese_tasks", 1), ("lists", 2), ("chinese_tasks", 3)):
        study.store_results(file, {pair: {"seeds": seeds, "arms": []}})
    pairs = json.loads(file.read_text("utf-8"))["pairs"]
    assert list(pairs.items()) == [("lists", {"seeds": 2, "arms": []}), ("chinese_tasks", {"seeds": 3, "arms": []})]


def test_choices_are_stored_until_there_is_a_result(tmp_path):
    file = tmp_path / "evidence.json"
    first, second, result = {"choices": {"a": 1}}, {"choices": {"a": 2}}, {"choices": {"a": 2}, "arms": []}
    for given, stored in ((first, first), (second, second), (result, result), (first, result)):
        study.store_results(file, {"lists": given})
        assert json.loads(file.read_text("utf-8"))["pairs"] == {"lists": stored}
    assert study.load_choices(file) == {"lists": {"a": 2}}
    assert study.load_choices(None) == {}


@pytest.mark.slow
def test_the_cost_of_written_rows_is_their_number_times_their_length(tiny):
    spec, named = study.SPECS / "lists.json", PAIRS["lists"]["arms"]["named"]
    costs = {name: study.cost_of_run(spec, {**tiny, "arms": None, **named[name]}) for name in named}
    assert costs["mixing-written"]["written"] == costs["kl-written"]["written"] == 64 * 128
    assert costs["mixing-self"]["written"] == costs["kl-self"]["written"] == 96 * 2 * 192
    assert {name for name, cost in costs.items() if not cost["written"]} == {
        "naive", "lower-lr", "l2sp", "ewc", "lora", "wise-ft", "reweight", "freeze"
    }  # fmt: skip
    assert costs["kl-written"]["trained"] > costs["naive"]["trained"] == costs["ewc"]["trained"]


def test_an_unknown_arm_is_named(capsys):
    with pytest.raises(SystemExit):
        study.parse_arguments(["--pair", "lists", "--arms", "naive,replay"])
    assert "there is no arm 'replay'" in capsys.readouterr().err


def test_an_experiment_that_was_begun_with_other_values_is_not_continued(tmp_path):
    begun = tmp_path / "study" / "study-20260101-000000-0000"
    (begun / "arms").mkdir(parents=True)
    (begun / "spec.json").write_text(json.dumps({"arms": {"named": {"naive": {}, "low": {"train.learning_rate": 1}}}}))
    other = {"name": "study", "arms": {"named": {"naive": {}, "low": {"train.learning_rate": 2}}}}
    with pytest.raises(SystemExit, match="begun with other arms or values"):
        method_study.run_arms(tmp_path, {}, other)


def test_a_run_that_failed_is_listed_and_its_value_is_not_chosen(tmp_path, monkeypatch):
    folder = tmp_path / "study" / "study-20260101-000000-0000"
    named = {"naive": {}, "low": {"train.learning_rate": 1}}
    (folder / "arms").mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps({"arms": {"named": named}}))
    comparison = {"missing": {"low": "11 rows are too few"}, "points": []}
    monkeypatch.setattr(method_study.harness, "load_experiment", lambda _: argparse.Namespace(report=comparison))

    def fail(experiment, arms, **options):
        (experiment / "arms.json").write_text("{}")
        raise RunError("study", "1 arm(s) failed", "fix the cause")

    monkeypatch.setattr(method_study.harness, "resume", fail)
    changes = {"name": "study", "arms": {"named": named}}
    assert method_study.run_arms(tmp_path, {}, changes) == comparison
    comparison["missing"]["naive"] = NOT_FINISHED
    assert method_study.run_arms(tmp_path, {}, changes) is None

    points = [("naive", 1.0, 1.0), ("lower-lr-0.3", 1.0, 0.3)]
    report = {"points": [{"arm": arm, "gain": {"value": g}, "forgotten": {"value": f}} for arm, g, f in points]}
    methods = {"lower-lr": study.methods_of(PAIRS["lists"])["lower-lr"]}
    assert method_study.choose_values(report, methods)["lower-lr"]["value"] == 0.3
    result = {"choices": {}, "arms": [], "equal_gain": None, "failed": {"low,seed=3": "11 rows are too few"}}
    assert "| low,seed=3 | 11 rows are too few |\n" in method_study.format_tables(result)


def test_the_versions_of_a_result_are_those_of_its_runs(tmp_path):
    for arm, version in (("a", "2.1"), ("b", "2.0"), ("c", "2.1")):
        (tmp_path / "arms" / arm).mkdir(parents=True)
        (tmp_path / "arms" / arm / "environment.json").write_text(json.dumps({"packages": {"torch": version}}))
    assert method_study.read_versions(tmp_path, ("torch",)) == {"torch": "2.0, 2.1"}


@pytest.mark.slow
def test_a_dry_run_in_pieces_gives_the_form_of_the_result_and_runs_nothing_twice(tmp_path, tiny, monkeypatch, capsys):
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", "1")
    arms = ("naive", "lower-lr", "reweight")
    spec = study.quick_pair("lists", arms)
    monkeypatch.setattr(study, "quick_pair", lambda *given: spec)
    assert study.run_pair(tmp_path, "lists", study.Scope(("naive",), None, tiny), quick=True) is None
    assert "the values are not chosen yet" in capsys.readouterr().out
    choice = method_study.find_run(tmp_path, "study-lists-choice")
    assert sorted(path.name for path in (choice / "arms").iterdir()) == ["naive"]
    assert not method_study.compares_all_arms(choice)
    with monkeypatch.context() as patch:
        for function in ("run_experiment", "resume"):
            patch.setattr(method_study.harness, function, None)
        assert study.run_pair(tmp_path, "lists", study.Scope(("naive",), None, tiny), quick=True) is None
    capsys.readouterr()
    chosen = study.run_pair(tmp_path, "lists", study.Scope(arms, (7,), tiny), quick=True)
    assert chosen.keys() == {"choices"}
    assert "some arms or seeds are missing" in capsys.readouterr().out
    assert "| reweight | `floor` |" in study.format_result({"pairs": {"lists": chosen}})
    scope = study.Scope(arms, None, tiny)
    result = study.run_pair(tmp_path, "lists", scope, quick=True)
    assert method_study.compares_all_arms(choice)
    assert [arm["arm"] for arm in result["arms"]] == list(arms)
    assert result["choices"] == chosen["choices"]
    assert chosen["choices"].keys() == {"lower-lr", "reweight"}
    assert "| reweight | `floor` |" in study.format_result({"pairs": {"lists": result}})
    for function in ("run_experiment", "resume"):
        monkeypatch.setattr(method_study.harness, function, None)
    assert study.run_pair(tmp_path, "lists", scope, quick=True) == result
    chosen_before = study.Scope(arms, None, tiny, choices={"lists": chosen["choices"]})
    shutil.rmtree(choice)
    assert study.run_pair(tmp_path, "lists", chosen_before, quick=True) == result
