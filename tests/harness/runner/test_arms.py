"""Arms of an experiment and the gate: what runs, what is shared, what is refused, and exit codes."""

from __future__ import annotations

import json
import shutil

import pytest
from support import html_reader

from harness import registry
from harness.distributed.processes import Processes
from harness.errors import HarnessError, RunError
from harness.report import finished_run
from harness.runner import arm_run, prepare_arms, resume
from harness.runner.folder import RunFolder
from harness.spec import arms as arms_of
from harness.spec import schema
from harness.spec import spec as spec_module

GATE = [{"score": "general/response_perplexity", "falls_at_least": 1e9}]
OPEN = [{"score": "general/response_perplexity", "at_least": 0, "judge_by": "value"}]


def errors(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("harness: ")]


@pytest.fixture(scope="module")
def arms(desk):
    """A spec of two arms."""

    def document(**more):
        given = {"named": {"naive": {}, "lora": {"mitigations.lora": {"rank": 2}}}, **more}
        return desk.document(arms=given)

    return document


@pytest.fixture(scope="module")
def finished(desk, arms):
    """The folder of an experiment of two arms, and how many prompts were generated for."""
    from harness.evaluation import answers

    seen: list[int] = []
    real = answers.generate_answers

    def counted(model, tokenizer, prompts, **more):
        seen.append(len(prompts))
        return real(model, tokenizer, prompts, **more)

    answers.generate_answers = counted
    try:
        assert desk.command("run", "--quiet", desk.write(arms())) == 0
    finally:
        answers.generate_answers = real
    return desk.newest(), sum(seen)


@pytest.mark.slow
def test_arms_are_compared_and_write_their_files(finished):
    place, _ = finished
    made = json.loads((place / "arms.json").read_text())
    assert list(made["arms"]) == ["naive", "lora"]
    assert made["missing"] == {}
    assert (place / "report.html").is_file()
    assert (place / "arms/naive/model/model.safetensors").is_file()
    assert (place / "arms/lora/model/adapter_model.safetensors").is_file()
    for arm in ("naive", "lora"):
        report = json.loads((place / "arms" / arm / "report.json").read_text())
        scores = {(one["suite"], one["score"]): one for one in made["scores"] if one["arm"] == arm}
        for change in report["changes"]:
            assert scores[change["suite"], change["name"]]["after"]["value"] == change["after"]["value"]
    assert {one["arm"] for one in made["scores"] if one["against"] is None} == {"naive"}
    assert json.loads((place / "arms/lora/spec.json").read_text())["arms"] is None


def test_base_model_generates_once_for_all_arms(finished):
    place, prompts = finished
    items = len((place / "arms/naive/predictions/domain-stage0.jsonl").read_text().splitlines())
    assert prompts == 3 * items, "the base once, and each of the two arms"
    both = [
        sorted((place / f"arms/{arm}/predictions/domain-stage0.jsonl").read_text().splitlines())
        for arm in ("naive", "lora")
    ]
    strip = [[{k: v for k, v in json.loads(one).items() if k != "keys"} for one in lines] for lines in both]
    assert strip[0] == strip[1]


@pytest.mark.slow
def test_seeds_of_an_arm_are_pooled_and_an_interrupted_experiment_is_resumed(desk, arms, capsys):
    """One arm runs alone with both seeds; the rest is resumed; nothing is compared with another seed's baseline."""
    document = arms(seeds=[0, 1])
    assert desk.command("run", "--quiet", desk.write(document), "--arm", "naive", "--arm", "lora,seed=1") == 0
    place = desk.newest()
    assert {one.name for one in (place / "arms").iterdir()} == {"naive,seed=0", "naive,seed=1", "lora,seed=1"}
    made = json.loads((place / "arms.json").read_text())
    assert set(made["missing"]) == {"lora,seed=0"}
    assert {arm: list(runs) for arm, runs in made["arms"].items()} == {"naive": ["0", "1"], "lora": ["1"]}
    assert json.loads((place / "arms/naive,seed=1/spec.json").read_text())["seed"] == 1
    assert any("lora has a result for seed 1 only" in note for note in made["notes"])
    capsys.readouterr()
    assert desk.command("run", "--resume", place, "--arm", "nobody") == 2
    assert "there is no such arm" in errors(capsys)[0]

    assert desk.command("run", "--quiet", "--resume", place) == 0
    made = json.loads((place / "arms.json").read_text())
    assert made["missing"] == {}
    assert [point["seeds"] for point in made["points"]] == [[0, 1], [0, 1]]
    assert {score["arm"] for score in made["scores"]} == {"naive", "lora"}
    runs = {
        (arm, seed): finished_run.load_finished_run(place / f"arms/{arm},seed={seed}")
        for arm in ("naive", "lora")
        for seed in (0, 1)
    }
    for score in made["scores"]:
        assert score["seeds"] == 2
        if score["arm"] == "lora":
            by_seed = [
                {
                    arm: next(
                        one.value
                        for one in runs[arm, seed].last_evaluation(score["suite"]).scores
                        if one.name == score["score"]
                    )
                    for arm in ("naive", "lora")
                }
                for seed in (0, 1)
            ]
            expected = sum(values["lora"] - values["naive"] for values in by_seed) / 2
            assert score["against"]["value"] == pytest.approx(expected)
            assert score["test"] == "t over seeds and items"
    assert len({score["p_holm"] for score in made["scores"] if score["arm"] == "naive"}) == 1, "no p of the baseline"
    root = html_reader.parse_html((place / "report.html").read_text(encoding="utf-8"))
    assert root.find("tr", data_seeds="lora:gain")
    rows = [row for name in ("arms", "differences", "scores") for row in root.find("section", id=name).find_all("th")]
    assert not [row for row in rows if "seed=" in row.text], "a seed is not an arm"


@pytest.mark.slow
def test_resumed_experiment_runs_arms_without_result(desk, arms, finished, tmp_path, monkeypatch, listener):
    """One arm fails while it runs and one has not started; both run when the experiment is resumed."""
    document = arms(named={"naive": {}, "lora": {"mitigations.lora": {"rank": 2}}, "l2sp": {"mitigations.l2sp": {}}})
    real = arm_run.run_stages

    def failing(context):
        if "lora" in context.spec.document["mitigations"]:
            raise RunError("stage 'domain'", "memory ran out", "buy some")
        if "l2sp" in context.spec.document["mitigations"]:
            raise KeyboardInterrupt
        return real(context)

    with monkeypatch.context() as patched:
        patched.setattr(arm_run, "run_stages", failing)
        assert desk.command("run", "--quiet", desk.write(document)) == 130
    place = desk.newest()
    assert not (place / "arms.json").exists()

    with monkeypatch.context() as patched:
        patched.setattr(
            arm_run,
            "run_stages",
            lambda context: (failing if "lora" in context.spec.document["mitigations"] else real)(context),
        )
        assert desk.command("run", "--quiet", "--resume", place) == 1
    made = json.loads((place / "arms.json").read_text())
    assert made["missing"] == {"lora": "memory ran out"}
    assert list(made["arms"]) == ["naive", "l2sp"]

    before = (place / "arms/naive/model/model.safetensors").stat().st_mtime_ns
    assert desk.command("run", "--quiet", "--resume", place) == 0
    assert list(json.loads((place / "arms.json").read_text())["arms"]) == ["naive", "lora", "l2sp"]
    assert not (place / "error.txt").exists()
    assert (place / "arms/naive/model/model.safetensors").stat().st_mtime_ns == before
    for name in ("model/adapter_model.safetensors", "scores.json"):
        assert (place / "arms/lora" / name).read_bytes() == (finished[0] / "arms/lora" / name).read_bytes()


@pytest.mark.slow
def test_warnings_and_data_of_arms_are_printed_once(desk, arms, capsys, monkeypatch):
    """Three arms, into a pipe: one line for each prepared arm, every warning once, no line for short phases."""
    monkeypatch.setenv("HARNESS_BFLOAT16_RATIO", "2.0")
    short = {"train.max_length": 48, "train.warmup_ratio": 0.5}
    given = arms(named={"naive": {}, "lora": {"mitigations.lora": {"rank": 2}}, "short": short})
    rows = [json.loads(line) for line in (desk.folder / "domain.jsonl").read_text().splitlines()]
    again = [{"instruction": f"So, {row['instruction']}", "output": "There"} for row in rows]
    (desk.folder / "again.jsonl").write_text("".join(json.dumps(row) + "\n" for row in again))
    given["sources"]["again"] = {"jsonl": {"path": "again.jsonl"}}
    given["mode"] = {"mixed": {"domain": ["domain"], "general": ["general"]}}
    given["evaluate"]["domain"]["source"] = "again"
    given["checks"] = {"contamination": {"ngram": 3, "allowed": 1.0}}
    assert desk.command("run", desk.write(given)) == 0
    told = capsys.readouterr()
    warnings = [line for line in told.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == len(set(warnings))
    assert "warning: the source 'second' is not used" in warnings
    assert sum("bfloat16 matrices 2.0 times as fast" in line for line in warnings) == 1
    assert "warning: arm short: train.max_length is 48; usual is 2048 to 4096" in warnings
    assert any(line.startswith("warning: arms naive, lora: train.max_length is 64") for line in warnings)
    (prompts,) = (line for line in warnings if "prompts are in the training data" in line)
    assert prompts.endswith("completely or for the most part; rows: data.json in the run's folder, or harness check")
    assert max(map(len, warnings)) < 250
    place = desk.newest()
    for arm in ("naive", "lora", "short"):
        (full,) = (
            one
            for one in json.loads((place / "arms" / arm / "data.json").read_text())["warnings"]
            if "prompts are in the training data" in one
        )
        assert "again.jsonl:" in full.split("\n")[1]
    lines = [line for line in told.out.splitlines() if line.startswith("arm ")]
    assert [line.partition(",")[0] for line in lines] == [
        "arm 1 of 3 prepared: naive", "arm 2 of 3 prepared: lora", "arm 3 of 3 prepared: short",
        "arm 1 of 3: naive", "arm 2 of 3: lora", "arm 3 of 3: short",
    ]  # fmt: skip
    assert all(", finished in " in line for line in lines[3:])
    assert len(told.out.splitlines()) < 30, "an experiment is one line for each arm and one table"


def test_invalid_arm_prints_its_warnings_and_error(desk, arms, capsys):
    document = arms(named={"naive": {}, "odd": {"sources.domain.jsonl.path": str(desk.folder / "nothing.jsonl")}})
    assert desk.command("run", desk.write(document)) == 2
    told = capsys.readouterr().err.splitlines()
    assert told.count("warning: the source 'second' is not used") == 1
    assert told[-1].startswith("harness: arm 'odd': ")


def test_experiment_without_any_result_reports_first_failure(desk, arms, monkeypatch, capsys):
    def failing(*_, **__):
        raise RunError("stage 'domain'", "memory ran out", "buy some")

    monkeypatch.setattr(arm_run, "run_stages", failing)
    assert desk.command("run", "--quiet", desk.write(arms())) == 1
    (line,) = errors(capsys)
    assert "2 arm(s) failed, 'naive' first: memory ran out" in line
    assert "--resume" in line
    place = desk.newest()
    first_line, blank, *trace = (place / "error.txt").read_text().splitlines()
    assert "2 arm(s) failed, 'naive' first: memory ran out" in first_line
    assert [blank, trace[0][:9]] == ["", "Traceback"]
    assert desk.command("runs", place.parent) == 0
    listed = " ".join(capsys.readouterr().out.split())
    assert "experiment, failed, 0 of 2 arms" in listed
    assert f"harness run --resume {place}" in listed


def test_each_arm_is_prepared_once(desk, arms, monkeypatch):
    from harness.data import prepare

    prepared = []
    real = prepare.prepare_data

    def failing(context):
        raise RunError("stage 'domain'", "memory ran out", "buy some")

    monkeypatch.setattr(prepare, "prepare_data", lambda *a, **k: prepared.append(1) or real(*a, **k))
    monkeypatch.setattr(arm_run, "run_stages", failing)
    assert desk.command("run", "--quiet", desk.write(arms())) == 1
    assert len(prepared) == 2


@pytest.mark.slow
def test_null_removes_a_mitigation(desk, arms):
    document = {**arms(named={"with": {}, "without": {"mitigations.l2sp": None}}), "mitigations": {"l2sp": {}}}
    assert desk.command("run", "--quiet", desk.write(document)) == 0
    specs = {
        one.name: json.loads((one / "spec.json").read_text())["mitigations"]
        for one in (desk.newest() / "arms").iterdir()
    }
    assert set(specs["with"]) == {"l2sp"}
    assert specs["without"] == {}


@pytest.mark.parametrize("command", ["run", "validate", "plan", "check"])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train.learning_rate": -1}, "it must be above 0"),
        ({"mitigations.lorra": {}}, "lorra"),
        ({"evaluate.domain.source": "nowhere"}, "there is no source 'nowhere'"),
        ({"mitigations.mixing": {"share": 0.5}}, ""),
    ],
)
def test_invalid_arm_is_named_before_anything_runs(desk, arms, capsys, command, changes, told):
    document = arms(named={"naive": {}, "odd": changes})
    assert desk.command(command, desk.write(document)) == 2
    lines = errors(capsys)
    assert all(line.startswith("harness: arm 'odd': ") for line in lines)
    assert told in " ".join(lines)
    assert not (desk.folder / f"out{desk.count}").exists()


@pytest.mark.parametrize("command", ["run", "check"])
def test_invalid_data_of_arm_is_reported_before_anything_runs(desk, arms, capsys, command):
    document = arms(named={"naive": {}, "odd": {"sources.domain.jsonl.path": str(desk.folder / "nothing.jsonl")}})
    assert desk.command(command, desk.write(document)) == 2
    assert any(line.startswith("harness: arm 'odd': ") and "nothing.jsonl" in line for line in errors(capsys))
    assert not list((desk.folder / f"out{desk.count}").glob("*/arms"))


def test_commands_for_one_run_ignore_arms_with_a_note(desk, arms, capsys):
    file = desk.write(arms())
    assert desk.command("validate", file) == 0
    assert "2 arm(s) (naive, lora)" in capsys.readouterr().out
    for command in ("plan", "check", "preview"):
        assert desk.command(command, file) == 0
        assert "this shows the spec without their changes" in capsys.readouterr().err


def test_arm_option_is_refused_without_arms(desk, capsys):
    assert desk.command("run", desk.write(desk.document()), "--arm", "a") == 2
    assert "the spec has no arms" in errors(capsys)[0]


# -- the gate ---------------------------------------------------------------------------------------------------------


def test_failed_gate_exits_with_3_after_everything_is_saved(desk, capsys):
    assert desk.command("run", "--quiet", desk.write(desk.document(gate=[*OPEN, *GATE]))) == 3
    line, remedies = errors(capsys)
    assert "gate: NOT ENOUGH EVIDENCE: general/response_perplexity must fall by at least 1e+09" in line
    assert remedies.startswith("harness: to forget less, lower train.learning_rate")
    place = desk.newest()
    assert (place / "model/model.safetensors").is_file()
    report = json.loads((place / "report.json").read_text())
    assert [one["passed"] for one in report["gate"]] == [True, False]
    assert (place / "report.html").is_file()

    file = desk.write(desk.document(gate=[*OPEN, *GATE]))
    assert desk.command("gate", place, file, "--json") == 3
    assert json.loads(capsys.readouterr().out) == report["gate"]
    assert desk.command("gate", place, desk.write(desk.document(gate=OPEN))) == 0
    assert capsys.readouterr().out.startswith("passed: general/response_perplexity")
    assert desk.command("gate", place, desk.write(desk.document())) == 2
    assert "the spec has no gate" in errors(capsys)[0]


def test_passed_gate_exits_with_0(desk):
    assert desk.command("run", "--quiet", desk.write(desk.document(gate=OPEN))) == 0


def test_gate_on_unknown_score_is_refused_before_anything_runs(desk, capsys):
    gate = [{"score": "general/chrf", "at_least": 0}]
    assert desk.command("run", desk.write(desk.document(gate=gate))) == 2
    assert "no metric produces the score 'general/chrf'" in errors(capsys)[0]
    assert not (desk.folder / f"out{desk.count}").exists()


def test_gate_on_gain_without_direction_is_refused_before_anything_runs(desk, capsys):
    suites = {"general": {"source": "general", "role": "general", "metrics": {"length_ratio": {}}}}
    gate = [{"score": "general/length_ratio", "gains_at_least": 0}]
    assert desk.command("run", desk.write(desk.document(evaluate=suites, gate=gate))) == 2
    assert "'general/length_ratio' has no better direction" in errors(capsys)[0]
    assert not (desk.folder / f"out{desk.count}").exists()


def test_resume_refuses_another_base_model(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_json("environment.json", {"model": {"digest": "a"}})
    found = {"digests": {}, "template": "t"}
    resume.require_same_inputs(folder, found, {"model": {"digest": "a"}})
    with pytest.raises(HarnessError, match="the base model changed since the run was started"):
        resume.require_same_inputs(folder, found, {"model": {"digest": "b"}})


@pytest.mark.parametrize(("gate", "code"), [(OPEN, 0), (GATE, 3)])
def test_named_arm_decides_the_gate_of_an_experiment(desk, arms, finished, tmp_path, capsys, gate, code):
    place = shutil.copytree(finished[0], tmp_path / "again")
    document = json.loads((place / "spec.json").read_text())
    document["arms"]["gate"] = "lora"
    (place / "spec.json").write_text(json.dumps({**document, "gate": gate}))
    assert desk.command("run", "--quiet", "--resume", place) == code
    told = errors(capsys)
    made = json.loads((place / "arms.json").read_text())["gate"]
    assert (made["arm"], made["candidates"]) == ("lora", 1)
    assert set(made["outcomes"]) == {"naive", "lora"}
    if code:
        assert told[0] == f"harness: gate: {made['outcome']} by arm 'lora'"
        assert "gate of arm 'lora': " in told[1]
    else:
        assert told == []
        assert made["outcome"] == "passed"


def test_gate_of_an_experiment_without_a_recommended_arm_does_not_pass(desk, finished, tmp_path, capsys):
    """Its suites have fewer than 30 items, so no arm is recommended, and none passes by being the best of several."""
    place = shutil.copytree(finished[0], tmp_path / "again")
    document = json.loads((place / "spec.json").read_text())
    (place / "spec.json").write_text(json.dumps({**document, "gate": OPEN}))
    assert desk.command("run", "--quiet", "--resume", place) == 3
    assert errors(capsys) == ["harness: gate: not enough evidence: there is no arm to judge"]
    assert json.loads((place / "arms.json").read_text())["gate"]["outcomes"] == {"naive": "passed", "lora": "passed"}


@pytest.mark.slow
def test_resumed_finished_experiment_compares_again_with_one_json_document(desk, finished, tmp_path, capsys):
    place = shutil.copytree(finished[0], tmp_path / "again")
    (place / "arms.json").unlink()
    assert desk.command("run", "--json", "--resume", place) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((place / "arms.json").read_text())
    before = json.loads((finished[0] / "arms.json").read_text())
    assert told["scores"] == before["scores"]
    (place / "report.html").unlink()
    assert desk.command("report", place) == 0
    assert (place / "report.html").is_file()


@pytest.mark.slow
def test_reused_stage_keeps_its_mid_stage_evaluations(desk):
    slow = {"mode.continual.stages.1.train.learning_rate": 0.001}
    document = desk.continual(arms={"named": {"naive": {}, "slow": slow}})
    document["train"] |= {"save_steps": None, "evaluate_steps": 2}
    assert desk.command("run", "--quiet", desk.write(document)) == 0
    place = desk.newest() / "arms"
    first, second = ((place / arm / "stages/a/evaluations.jsonl").read_text() for arm in ("naive", "slow"))
    assert first == second != ""


def test_arms_are_checked_for_the_number_of_processes(desk):
    """A quarter of a step rounds to zero rows if the step has 2 rows, and to one row if it has 4."""
    document = desk.document(mitigations={"mixing": {"source": "general", "share": 0.25, "unit": "rows"}})
    rows = [{"instruction": f"Count to {number}", "output": f"{number} it is"} for number in range(12)]
    (desk.folder / "twelve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document["sources"]["twelve"] = {"jsonl": {"path": "twelve.jsonl"}}
    document |= {"mode": {"domain": {"sources": ["twelve"]}}, "train": {**document["train"], "steps": 1}}
    found = registry.discover_plugins()
    loaded = spec_module.load_spec(
        desk.write({**document, "arms": {"named": {"one": {}}}}), schema.compose_schema(found)
    )
    (arm,) = arms_of.expand_arms(loaded.document["arms"], loaded.where(("arms",)))
    specs = [(arm, spec_module.load_spec(desk.write(document), schema.compose_schema(found)))]
    prepare_arms.check_arms(specs, found, Processes(0, 2))
    with pytest.raises(HarnessError, match="arm 'one': "):
        prepare_arms.check_arms(specs, found)
