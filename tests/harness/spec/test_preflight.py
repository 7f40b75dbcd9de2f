"""What is foreseen to fail is told by every command, before anything is loaded, in the same words."""

from __future__ import annotations

import json

import harness_metrics
import pytest

from harness import registry
from harness.cli import main
from harness.errors import HarnessError
from harness.spec import plan, preflight, schema, spec

SUITES = {
    "desk": {"source": "desk_heldout", "metrics": {"chrf": {}, "length_ratio": {}}},
    "chat": {"source": "chat_heldout", "role": "general", "metrics": {"response_perplexity": {}}},
}


@pytest.fixture(autouse=True)
def _apart(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def document():
    """A valid spec of built-in components, with data and a model that are not there."""
    return {
        "name": "small",
        "model": {"path": "./model"},
        "template": "chatml",
        "sources": {name: {"jsonl": {"path": f"{name}.jsonl"}} for name in ("desk", "desk_heldout", "chat_heldout")},
        "mode": {"domain": {"sources": ["desk"]}},
        "train": {"learning_rate": 2e-5},
        "evaluate": SUITES,
    }


@pytest.fixture
def found():
    """The installed components, and `same_words`, somebody else's metric that gives the score `exact_match` too."""
    made = registry.discover_plugins()
    made.add("metrics", "same_words", harness_metrics.harness_metrics()["exact_match"], "somebody-else")
    return made


@pytest.fixture
def refused(capsys, write):
    """The lines that a command ends with, the spec's name taken off."""

    def refused(command, given, *more):
        file = write(given)
        assert main.main([command, str(file), *more]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert "Traceback" not in shown.err
        lines = [line for line in shown.err.splitlines() if not line.startswith("warning: ")]
        assert all(line.startswith("harness: ") for line in lines)
        return [line.removeprefix("harness: ").replace(f"{file}:", "") for line in lines]

    return refused


def checked(given, write, found):
    loaded = spec.load_spec(write(given), schema.compose_schema(found))
    planned = plan.build_plan(loaded, found)
    metrics = preflight.preflight(loaded, planned, found)
    preflight.preflight_summaries(loaded, [(planned, metrics)])


STOPPING = {"scores": {"chat/response_nll": 1}}
WRONG = {
    "a gate's score": (
        {"gate": [{"score": "desk/chrff", "at_least": 1}]},
        "gate.0.score: no metric produces the score 'desk/chrff'; did you mean 'desk/chrf'? available: "
        "chat/response_nll, chat/response_perplexity, "
        "desk/chrf, desk/length_ratio",
    ),
    "a summary's score": (
        {"gate": [{"score": "rougeL", "summary": "forgetting", "at_most": 1}]},
        "gate.0.score: no metric produces the score 'forgetting:rougeL'; available: chrf, length_ratio, response_nll, "
        "response_perplexity",
    ),
    "a gain of what has no direction": (
        {"gate": [{"score": "desk/length_ratio", "gains_at_least": 1}]},
        "gate.0.score: 'desk/length_ratio' has no better direction; use rises_at_most or falls_at_most",
    ),
    "a summary of what has no direction": (
        {"gate": [{"score": "length_ratio", "summary": "forgetting", "at_most": 1}]},
        "gate.0.score: 'forgetting:length_ratio' has no better direction; use rises_at_most or falls_at_most",
    ),
    "a summary over stages of one stage": (
        {"gate": [{"score": "chrf", "summary": "forgetting", "at_most": 1}]},
        "gate.0.summary: 'forgetting' needs several stages, but the run has one; add stages (mode continual), or "
        "judge a general suite, e.g. by loses_at_most",
    ),
    "a summary of general suites that none of them comes to": (
        {"gate": [{"score": "chrf", "summary": "general_ability_delta", "at_least": 0}]},
        "gate.0.summary: 'general_ability_delta' needs a general suite, but none measures 'chrf'; measure it "
        'in a suite with "role": "general", or name another score',
    ),
    "a summary of tasks that no stage teaches": (
        {"gate": [{"score": "response_nll", "summary": "learning_accuracy", "at_least": 0}]},
        "gate.0.summary: no suite with the score 'response_nll' measures what a stage taught; add such a "
        "suite: on that stage's source, with its name, or in its 'suites' (mode continual)",
    ),
    "stopping without a measurement": (
        {"train": {"learning_rate": 2e-5, "early_stopping": STOPPING}},
        "train.early_stopping: no mid-stage evaluation is configured that could stop the stage; set how often: "
        '"evaluate_steps": 50',
    ),
    "stopping by what is not measured there": (
        {"train": {"learning_rate": 2e-5, "evaluate_steps": 5, "early_stopping": {"scores": {"desk/chrf": 1}}}},
        "train.early_stopping.scores.desk/chrf: 'desk/chrf' is not measured mid-stage; measured mid-stage: "
        "chat/response_perplexity, chat/response_nll; name other suites in evaluate_suites",
    ),
    "a suite within the stage that there is not": (
        {"train": {"learning_rate": 2e-5, "evaluate_steps": 5, "evaluate_suites": ["chatt"]}},
        "train.evaluate_suites: there is no suite 'chatt'; the spec's suites are: desk, chat",
    ),
    "an earlier run": (
        {"model": {"path": "run:nowhere"}},
        "model.path: there is no run 'nowhere'; there is none in runs",
    ),
    "one server for two models": (
        {"evaluate": {**SUITES, "desk": {**SUITES["desk"], "server": {"url": "http://127.0.0.1:1", "model": "m"}}}},
        "evaluate.desk.server.model: the server's model 'm' is the same before and after training; put {stage} into "
        "the name, or use `harness evaluate` for one model",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_every_command_refuses_it_with_one_and_the_same_line(document, refused, kind):
    change, said = WRONG[kind]
    told = {command: refused(command, {**document, **change}) for command in ("validate", "plan", "check", "run")}
    (line,) = told["validate"]
    assert line.partition(" ")[2] == said
    assert line.partition(" ")[0].replace(":", "").isdigit(), "line and column"
    assert all(other == [line] for other in told.values())


def test_all_that_is_foreseen_is_told_at_once(document, refused):
    changes = {**WRONG["a gate's score"][0], **WRONG["stopping without a measurement"][0], **WRONG["an earlier run"][0]}
    assert len(refused("validate", {**document, **changes})) == 3


def test_what_is_right_is_valid(document, write, capsys):
    given = {
        **document,
        "gate": [{"score": "chat/response_nll", "rises_at_most": 1}, {"score": "desk/length_ratio", "at_least": 1}],
        "train": {"learning_rate": 2e-5, "evaluate_steps": 5, "early_stopping": STOPPING},
    }
    assert main.main(["validate", str(write(given))]) == 0
    assert "is valid" in capsys.readouterr().out


def test_a_run_that_goes_on_from_another_has_the_stages_of_both(document, write, found, tmp_path):
    (tmp_path / "runs/first").mkdir(parents=True)
    for name in ("spec", "report"):
        (tmp_path / f"runs/first/{name}.json").write_text("{}")
    gate = WRONG["a summary over stages of one stage"][0]
    checked({**document, **gate, "model": {"path": "run:first"}}, write, found)


@pytest.mark.parametrize("name", ["", "  ", "x" * 5000])
def test_what_is_no_name_of_a_run_is_bad_input_like_any_other(document, refused, name):
    (line,) = refused("validate", {**document, "model": {"path": f"run:{name}"}})
    assert ("there is no run" if name.strip() else "no run is named") in line


def test_an_earlier_run_must_have_a_result(document, refused, tmp_path):
    given = {**document, "model": {"path": "run:first"}}
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/first/spec.json").write_text("{}")
    assert (
        "has no result: it did not finish; resume it: harness run --resume"
        in refused("validate", given)[0]
    )
    (tmp_path / "runs/first/arms/naive").mkdir(parents=True)
    (line,) = refused("validate", given)
    assert "is an experiment of several runs; none of its arms has a result yet" in line
    (tmp_path / "runs/first/arms/naive/report.json").write_text("{}")
    assert refused("validate", given)[0].endswith("name the folder of one of its arms: naive")


# -- two metrics, one name --------------------------------------------------------------------------------------------


def test_two_metrics_of_one_suite_that_give_one_score_are_refused(document, write, found):
    both = {"exact_match": {}, "same_words": {}}
    document["evaluate"] = {**SUITES, "desk": {"source": "desk_heldout", "metrics": both}}
    with pytest.raises(HarnessError) as caught:
        checked(document, write, found)
    assert caught.value.where.endswith("evaluate.desk.metrics.same_words")
    assert caught.value.what == "the metrics 'exact_match' and 'same_words' both produce the score 'desk/exact_match'"
    assert "in another suite on the same source" in caught.value.hint


def test_a_metric_that_names_a_score_twice_is_its_plugin_s_mistake(document, write, found, monkeypatch):
    from harness_metrics.exact_match import ExactMatch

    monkeypatch.setattr(ExactMatch, "score_names", ("exact_match", "exact_match"))
    document["evaluate"] = {**SUITES, "desk": {"source": "desk_heldout", "metrics": "exact_match"}}
    with pytest.raises(HarnessError, match="'exact_match' produces the score 'exact_match' twice; fix the plugin"):
        checked(document, write, found)


def test_in_suites_of_their_own_both_may_be_measured_and_summaries_tell_them_apart(document, write, found):
    document["evaluate"] = {
        **SUITES,
        "desk": {"source": "desk_heldout", "metrics": "exact_match"},
        "again": {"source": "desk_heldout", "metrics": "same_words", "role": "general"},
    }
    document["gate"] = [
        {"score": "again/exact_match", "at_least": 0},
        {"score": "same_words.exact_match", "summary": "general_ability_delta", "at_least": -1},
    ]
    checked(document, write, found)
    document["gate"][1]["score"] = "exact_match"
    with pytest.raises(HarnessError, match=r"available: exact_match\.exact_match, .*same_words\.exact_match"):
        checked(document, write, found)


# -- what arms are compared by ----------------------------------------------------------------------------------------


def arms(document, **given):
    return {**document, "arms": {"named": {"naive": {}, "slow": {"train.learning_rate": 1e-5}}, **given}}


def test_the_scores_that_arms_are_compared_by_are_foreseen(document, refused, write, capsys):
    assert main.main(["validate", str(write(arms(document)))]) == 0
    summary = {"forgetting": "relative_forgetting:response_nll"}
    assert main.main(["validate", str(write(arms(document, **summary)))]) == 0
    assert "warning" not in capsys.readouterr().err
    (line,) = refused("validate", arms(document, gain="desk/rougeL"))
    assert "arms.gain: no arm has a score 'desk/rougeL' with a direction; available: desk/chrf, chat/" in line
    assert "no arm has a score 'desk/length_ratio'" in refused("run", arms(document, gain="desk/length_ratio"))[0]
    (line,) = refused("validate", arms(document, forgetting="forgetting:rougeL"))
    assert "arms.forgetting: no arm has a score 'rougeL'" in line


def test_a_summary_over_stages_needs_arms_of_several_and_a_joint_arm_may_have_one(document, refused, write, capsys):
    stages = [{"name": name, "domain": [name]} for name in ("desk", "shop")]
    document["sources"] = {**document["sources"], "shop": {"jsonl": {"path": "shop.jsonl"}}}
    both = {"mode": {"continual": {"stages": stages}}}
    named = {"seq": both, "all": {"mode": {"domain": {"sources": ["desk", "shop"]}}}}
    given = {"named": named, "forgetting": "forgetting:chrf"}
    (line,) = refused("validate", arms(document, **given))
    assert "'forgetting:chrf' needs several stages, but 'all' has one" in line
    document["gate"] = [{"score": "chrf", "summary": "forgetting", "at_most": 1}]
    assert main.main(["validate", str(write(arms(document, joint="all", **given)))]) == 0
    capsys.readouterr()
    del given["forgetting"], named["seq"]
    (line,) = refused("validate", arms(document, **given))
    assert "gate.0.summary: 'forgetting' needs several stages, but the run has one" in line


def test_a_model_that_is_only_measured_is_judged_by_no_gate(document, write, found):
    """`harness evaluate` of a run whose spec says what this version would refuse to begin."""
    document |= {**WRONG["a gate's score"][0], **WRONG["stopping without a measurement"][0]}
    document |= WRONG["one server for two models"][0]
    loaded = spec.load_spec(write(document), schema.compose_schema(found))
    made = preflight.preflight(loaded, plan.build_plan(loaded, found), found, will_train=False)
    assert set(made) == {"desk", "chat"}


def test_arms_of_other_seeds_are_told_that_their_held_out_rows_are_others(document, write, capsys):
    document["sources"] = {**document["sources"], "desk": {"jsonl": {"path": "desk.jsonl", "held_out": 0.1}}}
    document["evaluate"] = {**SUITES, "desk": {**SUITES["desk"], "source": "desk"}}
    assert main.main(["validate", str(write(arms(document, matrix={"seed": [0, 1]})))]) == 0
    assert "warning: the arms have different seeds, so they hold out different rows of 'desk'" in capsys.readouterr().err


def test_an_arm_that_replaces_all_settings_is_told_so(document, write, capsys):
    document["train"] = {**document["train"], "weight_decay": 0.1}
    named = {"naive": {}, "slow": {"train": {"learning_rate": 1e-5}}}
    assert main.main(["validate", str(write(arms(document, named=named)))]) == 0
    assert (
        "the arm 'slow' replaces all of 'train', which resets weight_decay to the default" in capsys.readouterr().err
    )


def test_an_arm_s_key_into_a_value_is_named_and_not_looked_for_in_the_file(document, refused):
    (line,) = refused("validate", arms(document, named={"naive": {}, "odd": {"seed.x": 1}}))
    assert line.startswith("arm 'odd': seed.x=1: seed: ")


def test_a_summary_that_no_arm_or_one_of_them_cannot_come_to_is_refused_before_they_run(
    document, refused, write, capsys
):
    """It would be missed when all of them have been trained."""
    document["sources"] = {**document["sources"], "shop": {"jsonl": {"path": "shop.jsonl"}}}
    stages = [{"name": name, "domain": [name]} for name in ("desk", "shop")]
    document["mode"] = {"continual": {"stages": stages}}
    assert main.main(["validate", str(write(arms(document, forgetting="forgetting:chrf")))]) == 0
    capsys.readouterr()
    (line,) = refused("validate", arms(document, forgetting="forgetting:response_nll"))
    assert (
        "arms.forgetting: 'naive', 'slow' cannot produce 'forgetting:response_nll': no suite with the score "
        "'response_nll' measures what a stage before the last one taught; add such a suite"
    ) in line
    (line,) = refused("validate", arms(document, forgetting="relative_forgetting:chrf"))
    assert "'relative_forgetting' needs a general suite, but none measures 'chrf'" in line
    turned = {"named": {"naive": {}, "turned": {"mode": {"continual": {"stages": stages[::-1]}}}}}
    (line,) = refused("validate", arms(document, forgetting="forgetting:chrf", **turned))
    assert "arms.forgetting: 'turned' cannot produce 'forgetting:chrf'" in line
    document["gate"] = [{"score": "chrf", "summary": "forward_transfer", "at_least": 0}]
    (line,) = refused("validate", document)
    assert "gate.0.summary: no suite with the score 'chrf' measures what a stage after the first taught" in line
    assert main.main(["validate", str(write(arms(document, gain="desk/chrf", **turned)))]) == 0, "one arm passes"


def test_an_arm_that_measures_by_other_options_what_arms_are_compared_by_is_named(document, refused, write):
    named = {"naive": {}, "words": {"evaluate.desk.metrics.chrf.word_order": 2}}
    (line,) = refused("validate", arms(document, named=named))
    assert (
        "arms.gain: the arms are compared by 'desk/chrf', but 'words' measures it with other options than 'naive'; give its "
        "metric the same options in every arm, or name another score in arms.gain"
    ) in line
    given = arms(document, named=named, gain="chat/response_nll")
    assert main.main(["validate", str(write(given))]) == 0, "what they are not compared by may differ"


def test_an_arm_that_will_not_measure_what_arms_are_compared_by_is_named(document, refused):
    given = arms(document, named={"naive": {}, "blind": {"evaluate.chat": None}})
    (line,) = refused("run", given)
    assert (
        "arms.forgetting: the arms are compared by 'chat/response_perplexity', which 'blind' does not measure" in line
    )


def test_arms_without_a_general_suite_are_told_so_before_they_run(document, refused):
    document["evaluate"] = {"desk": SUITES["desk"]}
    (line,) = refused("run", arms(document))
    assert "gain and forgetting need a domain suite and a general suite" in line


def test_what_is_foreseen_of_an_arm_names_it(document, refused):
    given = arms(document, named={"naive": {}, "odd": {"train.early_stopping": STOPPING}})
    (line,) = refused("validate", given)
    assert line.startswith("arm 'odd': ")
    assert "no mid-stage evaluation is configured that could stop the stage" in line


def test_a_run_s_gate_is_judged_by_the_run_and_not_by_the_metrics_of_the_spec(document, write, capsys, tmp_path):
    """The limits may come from another spec than the run's; what the run lacks is said by its scores."""
    place = tmp_path / "runs/first"
    place.mkdir(parents=True)
    (place / "spec.json").write_text("{}")
    (place / "report.json").write_text(json.dumps({"stages": ["base", "a"], "changes": [], "forgetting": []}))
    file = write({**document, "gate": [{"score": "desk/bleu", "at_least": 1}]})
    assert main.main(["gate", "first", str(file)]) == 2
    assert "the run has no score 'desk/bleu'; it has: none" in capsys.readouterr().err


# -- harness gate -----------------------------------------------------------------------------------------------------


def test_a_missing_run_is_named_before_what_is_wrong_with_the_spec(document, write, capsys):
    file = write({**document, "trian": {}})
    assert main.main(["gate", "nosuch", str(file)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "harness: run nosuch: there is no such run; there is none in runs"
    assert "unknown key 'trian'" in second
    assert main.main(["gate", "nosuch", str(write(document))]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "there is no such run" in first
    assert "the spec has no gate" in second
