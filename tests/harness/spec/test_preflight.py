"""Every command reports a preflight error with the same line, before a model or data is loaded."""

from __future__ import annotations

import json
import re

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
CHAT_SERVER = {"url": "http://127.0.0.1:1/v1", "model": "m-{stage}", "chat": True}


@pytest.fixture(autouse=True)
def _isolated_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", "1")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def document(tmp_path):
    """A valid spec of built-in components; its data files have one row, and its model does not exist."""
    for name in ("desk", "desk_heldout", "chat_heldout", "shop"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
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
def plugin_registry():
    """The installed components and `same_words`, a third-party metric that also produces the score `exact_match`."""
    components = registry.discover_plugins()
    components.add("metrics", "same_words", harness_metrics.harness_metrics()["exact_match"], "somebody-else")
    return components


@pytest.fixture
def get_error_lines(capsys, write):
    """Run a command that must fail; return its error lines without the name of the spec file."""

    def get_error_lines(command, spec_document, *arguments):
        file = write(spec_document)
        assert main.main([command, str(file), *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        lines = [line for line in captured.err.splitlines() if not line.startswith("warning: ")]
        assert all(line.startswith("harness: ") for line in lines)
        return [line.removeprefix("harness: ").replace(f"{file}:", "") for line in lines]

    return get_error_lines


def run_preflight(document, write, plugin_registry):
    loaded = spec.load_spec(write(document), schema.compose_schema(plugin_registry))
    spec_plan = plan.build_plan(loaded, plugin_registry)
    metrics = preflight.preflight(loaded, spec_plan, plugin_registry)
    preflight.preflight_summaries(loaded, [(spec_plan, metrics)])


EARLY_STOPPING = {"scores": {"chat/response_nll": 1}}
INVALID_CHANGES = {
    "several greedy answers": (
        {"evaluate": {"desk": {**SUITES["desk"], "samples": 4}, "chat": SUITES["chat"]}},
        "evaluate.desk.samples: with temperature 0, all 4 answers to a prompt are equal; set "
        'evaluate.desk.temperature, e.g. to 0.8, or "samples" to 1',
    ),
    "fewer answers than a metric needs": (
        {"evaluate": {"desk": {**SUITES["desk"], "metrics": {"pass_at_k": {"k": [1, 10]}}}, "chat": SUITES["chat"]}},
        "evaluate.desk.samples: the metric 'pass_at_k' needs 10 answers to each prompt, but gets 1; set \"samples\" to "
        "10 or more",
    ),
    "a gate without a test on another than the primary score": (
        {"gate": [{"score": "chat/response_nll"}]},
        "gate.0: 'chat/response_nll' is not the primary score of its suite, so the condition needs a test; use one "
        "of rises_at_most, rises_at_least, falls_at_most, falls_at_least, gains_at_least, loses_at_most, at_least, "
        "at_most",
    ),
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
        {"train": {"learning_rate": 2e-5, "early_stopping": EARLY_STOPPING}},
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
    "sampled answers that a chat server is compared by": (
        {"evaluate": {**SUITES, "desk": {**SUITES["desk"], "server": CHAT_SERVER, "temperature": 0.5}}},
        "evaluate.desk.temperature: with server.chat, greedy answers are compared with those of the run, and these are "
        'sampled; set "temperature" to 0, or remove chat',
    ),
    "plain prompts for a chat server": (
        {"evaluate": {**SUITES, "desk": {**SUITES["desk"], "server": CHAT_SERVER, "plain": True}}},
        "evaluate.desk.plain: with server.chat, the server renders the prompts, and these are plain text; remove "
        '"plain" or chat',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", INVALID_CHANGES)
def test_every_command_reports_an_invalid_spec_with_the_same_line(document, get_error_lines, kind):
    change, message = INVALID_CHANGES[kind]
    lines_of_command = {
        command: get_error_lines(command, {**document, **change}) for command in ("validate", "plan", "check", "run")
    }
    (line,) = lines_of_command["validate"]
    assert line.partition(" ")[2] == message
    assert line.partition(" ")[0].replace(":", "").isdigit(), "line and column"
    assert all(lines == [line] for lines in lines_of_command.values())


def test_all_preflight_errors_are_reported_together(document, get_error_lines):
    changes = {
        **INVALID_CHANGES["a gate's score"][0],
        **INVALID_CHANGES["stopping without a measurement"][0],
        **INVALID_CHANGES["an earlier run"][0],
    }
    assert len(get_error_lines("validate", {**document, **changes})) == 3


def test_valid_gate_and_early_stopping_pass(document, write, capsys):
    valid_document = {
        **document,
        "gate": [{"score": "chat/response_nll", "rises_at_most": 1}, {"score": "desk/length_ratio", "at_least": 1}],
        "train": {"learning_rate": 2e-5, "evaluate_steps": 5, "early_stopping": EARLY_STOPPING},
    }
    assert main.main(["validate", str(write(valid_document))]) == 0
    assert "is valid" in capsys.readouterr().out


def test_run_that_continues_another_has_the_stages_of_both(document, write, plugin_registry, tmp_path):
    (tmp_path / "runs/first").mkdir(parents=True)
    for name in ("spec", "report"):
        (tmp_path / f"runs/first/{name}.json").write_text("{}")
    gate = INVALID_CHANGES["a summary over stages of one stage"][0]
    run_preflight({**document, **gate, "model": {"path": "run:first"}}, write, plugin_registry)


@pytest.mark.parametrize("name", ["", "  ", "x" * 5000])
def test_invalid_run_name_is_one_error_line(document, get_error_lines, name):
    (line,) = get_error_lines("validate", {**document, "model": {"path": f"run:{name}"}})
    assert ("there is no run" if name.strip() else "no run is named") in line


def test_earlier_run_must_have_a_result(document, get_error_lines, tmp_path):
    continued_document = {**document, "model": {"path": "run:first"}}
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/first/spec.json").write_text("{}")
    assert (
        "has no result: it did not finish; resume it: harness run --resume"
        in get_error_lines("validate", continued_document)[0]
    )
    (tmp_path / "runs/first/arms/naive").mkdir(parents=True)
    (line,) = get_error_lines("validate", continued_document)
    assert "is an experiment of several runs; none of its arms has a result yet" in line
    (tmp_path / "runs/first/arms/naive/report.json").write_text("{}")
    assert get_error_lines("validate", continued_document)[0].endswith("name the folder of one of its arms: naive")


# -- two metrics with the same score name -----------------------------------------------------------------------------


def test_two_metrics_of_a_suite_that_produce_the_same_score_are_an_error(document, write, plugin_registry):
    both_metrics = {"exact_match": {}, "same_words": {}}
    document["evaluate"] = {**SUITES, "desk": {"source": "desk_heldout", "metrics": both_metrics}}
    with pytest.raises(HarnessError) as caught:
        run_preflight(document, write, plugin_registry)
    assert caught.value.where.endswith("evaluate.desk.metrics.same_words")
    assert caught.value.what == "the metrics 'exact_match' and 'same_words' both produce the score 'desk/exact_match'"
    assert "in another suite on the same source" in caught.value.hint


def test_metric_that_names_a_score_twice_is_reported_as_a_plugin_error(document, write, plugin_registry, monkeypatch):
    from harness_metrics.exact_match import ExactMatch

    monkeypatch.setattr(ExactMatch, "score_names", ("exact_match", "exact_match"))
    document["evaluate"] = {**SUITES, "desk": {"source": "desk_heldout", "metrics": "exact_match"}}
    with pytest.raises(HarnessError, match="'exact_match' produces the score 'exact_match' twice; fix the plugin"):
        run_preflight(document, write, plugin_registry)


def test_metrics_with_the_same_score_may_be_in_two_suites_and_summaries_distinguish_them(
    document, write, plugin_registry
):
    document["evaluate"] = {
        **SUITES,
        "desk": {"source": "desk_heldout", "metrics": "exact_match"},
        "again": {"source": "desk_heldout", "metrics": "same_words", "role": "general"},
    }
    document["gate"] = [
        {"score": "again/exact_match", "at_least": 0},
        {"score": "same_words.exact_match", "summary": "general_ability_delta", "at_least": -1},
    ]
    run_preflight(document, write, plugin_registry)
    document["gate"][1]["score"] = "exact_match"
    with pytest.raises(HarnessError, match=r"available: exact_match\.exact_match, .*same_words\.exact_match"):
        run_preflight(document, write, plugin_registry)


# -- scores that compare arms -----------------------------------------------------------------------------------------


def add_arms(document, **keys):
    return {**document, "arms": {"named": {"naive": {}, "slow": {"train.learning_rate": 1e-5}}, **keys}}


def test_scores_that_compare_arms_are_validated_before_the_run(document, get_error_lines, write, capsys):
    assert main.main(["validate", str(write(add_arms(document)))]) == 0
    summary = {"forgetting": "relative_forgetting:response_nll"}
    assert main.main(["validate", str(write(add_arms(document, **summary)))]) == 0
    assert "warning" not in capsys.readouterr().err
    (line,) = get_error_lines("validate", add_arms(document, gain="desk/rougeL"))
    assert "arms.gain: no arm has a score 'desk/rougeL' with a direction; available: desk/chrf, chat/" in line
    assert (
        "no arm has a score 'desk/length_ratio'"
        in get_error_lines("run", add_arms(document, gain="desk/length_ratio"))[0]
    )
    (line,) = get_error_lines("validate", add_arms(document, forgetting="forgetting:rougeL"))
    assert "arms.forgetting: no arm has a score 'rougeL'" in line


def test_summary_over_stages_needs_arms_with_several_stages_except_the_joint_arm(
    document, get_error_lines, write, capsys
):
    stages = [{"name": name, "domain": [name]} for name in ("desk", "shop")]
    document["sources"] = {**document["sources"], "shop": {"jsonl": {"path": "shop.jsonl"}}}
    continual_mode = {"mode": {"continual": {"stages": stages}}}
    named = {"seq": continual_mode, "all": {"mode": {"domain": {"sources": ["desk", "shop"]}}}}
    arms_section = {"named": named, "forgetting": "forgetting:chrf"}
    (line,) = get_error_lines("validate", add_arms(document, **arms_section))
    assert "'forgetting:chrf' needs several stages, but 'all' has one" in line
    document["gate"] = [{"score": "chrf", "summary": "forgetting", "at_most": 1}]
    assert main.main(["validate", str(write(add_arms(document, joint="all", **arms_section)))]) == 0
    capsys.readouterr()
    del arms_section["forgetting"], named["seq"]
    (line,) = get_error_lines("validate", add_arms(document, **arms_section))
    assert "gate.0.summary: 'forgetting' needs several stages, but the run has one" in line


def test_gate_is_not_validated_for_a_model_that_is_only_evaluated(document, write, plugin_registry):
    """`harness evaluate` accepts a run whose spec this version would not train."""
    document |= {**INVALID_CHANGES["a gate's score"][0], **INVALID_CHANGES["stopping without a measurement"][0]}
    document |= INVALID_CHANGES["one server for two models"][0]
    loaded = spec.load_spec(write(document), schema.compose_schema(plugin_registry))
    metrics = preflight.preflight(loaded, plan.build_plan(loaded, plugin_registry), plugin_registry, will_train=False)
    assert set(metrics) == {"desk", "chat"}


def test_seeds_get_a_warning_that_held_out_rows_differ(document, write, capsys):
    document["sources"] = {**document["sources"], "desk": {"jsonl": {"path": "desk.jsonl", "held_out": 0.1}}}
    document["evaluate"] = {**SUITES, "desk": {**SUITES["desk"], "source": "desk"}}
    assert main.main(["validate", str(write(add_arms(document, seeds=[0, 1])))]) == 0
    assert "warning: each seed holds out other rows of 'desk'" in capsys.readouterr().err


def test_seeds_get_no_warning_if_rows_are_held_out_by_time(document, write, capsys):
    held_out = {"column": "date", "from": "2026-01-31"}
    document["sources"] = {**document["sources"], "desk": {"jsonl": {"path": "desk.jsonl", "held_out": held_out}}}
    document["evaluate"] = {**SUITES, "desk": {**SUITES["desk"], "source": "desk"}}
    main.main(["validate", str(write(add_arms(document, seeds=[0, 1])))])
    assert "each seed holds out" not in capsys.readouterr().err


def test_arm_that_replaces_all_settings_gets_a_warning(document, write, capsys):
    document["train"] = {**document["train"], "weight_decay": 0.1}
    named = {"naive": {}, "slow": {"train": {"learning_rate": 1e-5}}}
    assert main.main(["validate", str(write(add_arms(document, named=named)))]) == 0
    assert "the arm 'slow' replaces all of 'train', which resets weight_decay to the default" in capsys.readouterr().err


def test_arm_key_inside_a_plain_value_is_reported_at_the_arm(document, get_error_lines):
    (line,) = get_error_lines("validate", add_arms(document, named={"naive": {}, "odd": {"seed.x": 1}}))
    assert line.startswith("arm 'odd': seed.x=1: seed: ")


def test_summary_that_an_arm_cannot_produce_is_an_error_before_the_arms_run(document, get_error_lines, write, capsys):
    """Otherwise the report would lack it after all arms are trained."""
    document["sources"] = {**document["sources"], "shop": {"jsonl": {"path": "shop.jsonl"}}}
    stages = [{"name": name, "domain": [name]} for name in ("desk", "shop")]
    document["mode"] = {"continual": {"stages": stages}}
    assert main.main(["validate", str(write(add_arms(document, forgetting="forgetting:chrf")))]) == 0
    capsys.readouterr()
    (line,) = get_error_lines("validate", add_arms(document, forgetting="forgetting:response_nll"))
    assert (
        "arms.forgetting: 'naive', 'slow' cannot produce 'forgetting:response_nll': no suite with the score "
        "'response_nll' measures what a stage before the last one taught; add such a suite"
    ) in line
    (line,) = get_error_lines("validate", add_arms(document, forgetting="relative_forgetting:chrf"))
    assert "'relative_forgetting' needs a general suite, but none measures 'chrf'" in line
    reversed_arms = {"named": {"naive": {}, "turned": {"mode": {"continual": {"stages": stages[::-1]}}}}}
    (line,) = get_error_lines("validate", add_arms(document, forgetting="forgetting:chrf", **reversed_arms))
    assert "arms.forgetting: 'turned' cannot produce 'forgetting:chrf'" in line
    document["gate"] = [{"score": "chrf", "summary": "forward_transfer", "at_least": 0}]
    (line,) = get_error_lines("validate", document)
    assert "gate.0.summary: no suite with the score 'chrf' measures what a stage after the first taught" in line
    assert main.main(["validate", str(write(add_arms(document, gain="desk/chrf", **reversed_arms)))]) == 0, (
        "one arm passes"
    )


def test_arm_that_measures_the_compared_score_with_other_options_is_reported(document, get_error_lines, write):
    named = {"naive": {}, "words": {"evaluate.desk.metrics.chrf.word_order": 2}}
    (line,) = get_error_lines("validate", add_arms(document, named=named))
    assert (
        "arms.gain: the arms are compared by 'desk/chrf', but 'words' measures it with other options than 'naive'; "
        "give its metric the same options in every arm, or name another score in arms.gain"
    ) in line
    document_with_arms = add_arms(document, named=named, gain="chat/response_nll")
    assert main.main(["validate", str(write(document_with_arms))]) == 0, "options of other scores may differ"


def test_arm_that_does_not_measure_the_compared_score_is_reported(document, get_error_lines):
    document_with_arms = add_arms(document, named={"naive": {}, "blind": {"evaluate.chat": None}})
    (line,) = get_error_lines("run", document_with_arms)
    assert (
        "arms.forgetting: the arms are compared by 'chat/response_perplexity', which 'blind' does not measure" in line
    )


def test_arms_without_a_general_suite_are_an_error_before_they_run(document, get_error_lines):
    document["evaluate"] = {"desk": SUITES["desk"]}
    (line,) = get_error_lines("run", add_arms(document))
    assert "gain and forgetting need a domain suite and a general suite" in line


def test_preflight_error_of_an_arm_names_the_arm(document, get_error_lines):
    document_with_arms = add_arms(document, named={"naive": {}, "odd": {"train.early_stopping": EARLY_STOPPING}})
    (line,) = get_error_lines("validate", document_with_arms)
    assert line.startswith("arm 'odd': ")
    assert "no mid-stage evaluation is configured that could stop the stage" in line


def test_gate_uses_the_scores_of_the_run_and_not_the_metrics_of_the_spec(document, write, capsys, tmp_path):
    """The limits may come from another spec; a missing score is looked up in the report of the run."""
    run_folder = tmp_path / "runs/first"
    run_folder.mkdir(parents=True)
    (run_folder / "spec.json").write_text("{}")
    (run_folder / "report.json").write_text(json.dumps({"stages": ["base", "a"], "changes": [], "forgetting": []}))
    file = write({**document, "gate": [{"score": "desk/bleu", "at_least": 1}]})
    assert main.main(["gate", "first", str(file)]) == 2
    assert "the run has no score 'desk/bleu'; it has: none" in capsys.readouterr().err


# -- harness gate -----------------------------------------------------------------------------------------------------


def test_missing_run_is_reported_before_errors_of_the_spec(document, write, capsys):
    file = write({**document, "trian": {}})
    assert main.main(["gate", "nosuch", str(file)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == "harness: run nosuch: there is no such run; there is none in runs"
    assert "unknown key 'trian'" in second
    assert main.main(["gate", "nosuch", str(write(document))]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "there is no such run" in first
    assert "the spec has no gate" in second


@pytest.mark.parametrize(
    ("metric", "where", "what"),
    [
        ({"regex": {"pattern": "("}}, "evaluate.a.metrics.regex.pattern", "'(' is not a regular expression"),
        ({"json_valid": {"schema": {"type": 5}}}, "evaluate.a.metrics.json_valid.schema", "is not a JSON Schema"),
    ],
)
def test_an_option_that_only_its_metric_can_judge_has_its_place_in_the_spec(tmp_path, capsys, metric, where, what):
    document = {
        "name": "x",
        "model": {"path": "m"},
        "sources": {"a": {"jsonl": {"path": "a.jsonl", "held_out": 0.5}}},
        "mode": {"domain": {"sources": ["a"]}},
        "mitigations": {"replay": {}},
        "evaluate": {"a": {"source": "a", "metrics": metric}},
    }
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(document, indent=1))
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    assert main.main(["validate", str(file)]) == 2
    error = capsys.readouterr().err
    assert re.match(rf"harness: {re.escape(str(file))}:\d+:\d+ {re.escape(where)}: {re.escape(what)}", error), error


def test_replay_of_a_single_stage_is_a_warning(tmp_path, capsys):
    document = {
        "name": "x",
        "model": {"path": "m"},
        "sources": {"a": {"jsonl": {"path": "a.jsonl"}}},
        "mode": {"domain": {"sources": ["a"]}},
        "mitigations": {"replay": {}},
    }
    file = tmp_path / "spec.json"
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    file.write_text(json.dumps(document))
    assert main.main(["validate", str(file)]) == 0
    output = capsys.readouterr()
    assert "mitigations.replay changes no stage; remove it" in " ".join((output.out + output.err).split())


SHARDED_ERRORS = [
    ({"optimizer": {"muon": {}}}, {}, "the optimizer 'muon' needs whole weights; use 'adamw' or 'lion'"),
    ({"compile": True}, {}, "sharded layers are not compiled; set train.compile to false"),
    ({"precision": "float16"}, {}, "the loss scale of float16 needs whole gradients"),
    ({}, {"mitigations": {"ema": {}}}, "the mitigation 'ema' reads or changes whole weights, or runs the model again"),
    (
        {},
        {"mitigations": {"freeze": {"columns": 0.5, "source": "desk"}}},
        "the mitigation 'freeze' reads or changes whole weights, or runs the model again",
    ),
    (
        {},
        {
            "mitigations": {"lora": {}},
            "model": {"path": "./model", "quantization": {"bitsandbytes": {"bits": 8}}},
        },
        "weights of 8 bits cannot be divided; set model.quantization.bitsandbytes.bits to 4",
    ),
]


@pytest.mark.parametrize(("train", "changes", "message"), SHARDED_ERRORS)
def test_what_needs_whole_weights_is_refused_with_sharding(document, get_error_lines, train, changes, message):
    document |= changes
    document["train"] |= {"sharding": "fsdp2", **train}
    (line,) = get_error_lines("validate", document)
    assert f"train.sharding: {message}" in line
    assert "set train.sharding to null" in line


@pytest.mark.parametrize("checkpointing", [False, "auto"])
def test_activations_are_offloaded_with_gradient_checkpointing_only(document, get_error_lines, checkpointing):
    document["train"] |= {"offload_activations": True, "gradient_checkpointing": checkpointing}
    (line,) = get_error_lines("validate", document)
    assert "train.offload_activations: the stage " in line
    assert "may keep more than the input of each layer; set train.gradient_checkpointing to true" in line


def test_there_are_no_shards_to_offload_without_sharding(document, get_error_lines):
    document["train"] |= {"offload_shards": True}
    (line,) = get_error_lines("validate", document)
    assert "train.offload_shards: there are no shards without train.sharding; set train.sharding to 'fsdp2'" in line


@pytest.mark.parametrize("mitigation", ["lora", "reweight", "freeze", "lr_scale"])
def test_mitigations_that_leave_weights_alone_may_be_sharded(document, write, mitigation, capsys):
    document |= {"mitigations": {mitigation: {}}}
    document["train"] |= {"sharding": "fsdp2"}
    assert main.main(["validate", str(write(document))]) == 0


NARROW_ERRORS = [
    ({"precision": "float32"}, {}, "weights in bfloat16 are not computed with in float32; set train.precision to 'bfl"),
    ({}, {"mitigations": {"lora": {}}}, "the adapter of 'lora' is trained in float32"),
    ({}, {"mitigations": {"ema": {}}}, "the mitigation 'ema' reads or changes trained weights, which it expects in fl"),
    ({"sharding": "fsdp2"}, {}, "weights in bfloat16 are not sharded"),
    ({"optimizer": {"muon": {}}}, {}, "the optimizer 'muon' needs all weights at once; use 'adamw' or 'lion'"),
]


@pytest.mark.parametrize(("train", "changes", "message"), NARROW_ERRORS)
def test_what_needs_float32_is_refused_with_weights_in_bfloat16(document, get_error_lines, train, changes, message):
    document |= changes
    document["train"] |= {"weights": "bfloat16", **train}
    lines = [line for line in get_error_lines("validate", document) if "train.weights: " in line]
    assert any(f"train.weights: {message}" in line for line in lines)
    assert all("set train.weights to 'float32'" in line for line in lines)


def test_compiled_layers_with_a_router_loss_are_refused(document, get_error_lines):
    document["train"] |= {"router_loss": "config", "compile": True}
    (line,) = get_error_lines("validate", document)
    assert "train.router_loss: the compiled layers of the stage " in line
    assert "do not return what their routers computed; set train.compile to false" in line


@pytest.mark.parametrize("value", [-0.1, "model"])
def test_a_router_loss_is_a_factor_or_that_of_the_config(document, get_error_lines, value):
    document["train"] |= {"router_loss": value}
    (line,) = get_error_lines("validate", document)
    assert "train.router_loss" in line
