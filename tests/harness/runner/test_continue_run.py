"""A spec that starts from an earlier run: its adapter, its matrix, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
from support.event_recorder import EventRecorder

from harness import events, registry
from harness.errors import HarnessError
from harness.runner import api, evaluate_model
from harness.spec import schema, spec

WORDS = ("amber", "basil", "clay", "dune", "ember", "fern", "grove", "hazel", "iris", "jade", "kelp", "lilac", "moss")
A, B = {"name": "a", "domain": ["a"]}, {"name": "b", "domain": ["b"]}


@pytest.fixture
def document(tmp_path, monkeypatch, tiny_model, tokenizer):
    """A spec of two sources and three suites, without its mode."""
    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    texts = {"a": "Where is {}?|{} is here", "b": "Turn {} round|{} turned", "general": "Spell {}|{}"}
    for name, text in texts.items():
        question, answer = text.split("|")
        rows = [{"instruction": question.format(word), "output": answer.format(word)} for word in WORDS]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = {"response_perplexity": {}}
    return {
        "name": "tiny",
        "model": {"path": "./tiny"},
        "template": "chatml",
        "sources": {name: {"jsonl": {"path": f"{name}.jsonl", "held_out": 0.3}} for name in texts},
        "mitigations": {"lora": {"rank": 2}},
        "train": {"steps": 3, "batch_size": 2, "learning_rate": 0.05, "scheduler": "constant"},
        "evaluate": {
            "a": {"source": "a", "metrics": metrics},
            "b": {"source": "b", "metrics": metrics},
            "general": {"source": "general", "role": "general", "metrics": {**metrics, "kl_to_base": {}}},
        },
        "track": {"enabled": False},
    }


def start(document, tmp_path, *, stages=None, listener=None, **changes):
    """The report of a run of the document; its folder is in it. stages: of the mode `continual`."""
    given = {**document, **changes}
    if stages is not None:
        given["mode"] = {"continual": {"stages": stages}}
    (tmp_path / "spec.json").write_text(json.dumps(given))
    found = registry.discover_plugins()
    if listener is not None:
        found.manager.register(listener)
    return api.run(spec.load_spec(tmp_path / "spec.json", schema.compose_schema(found)), found)


def adapter(report):
    from pathlib import Path

    from safetensors.torch import load_file

    return load_file(Path(report.run_info["folder"]) / "model" / "adapter_model.safetensors")


@pytest.fixture
def first(document, tmp_path):
    return start(document, tmp_path, stages=[A])


def onto(report):
    return {"path": f"run:{report.run_info['id']}"}


def same_matrices(one, other):
    assert len(one.matrices) == len(other.matrices) > 0
    for ours, its in zip(one.matrices, other.matrices, strict=True):
        assert (ours.score, ours.suites, ours.learned, ours.general) == (
            its.score,
            its.suites,
            its.learned,
            its.general,
        )
        for row, wanted in zip(ours.values, its.values, strict=True):
            assert row == pytest.approx(wanted, rel=1e-6, abs=1e-9)
        assert ours.summaries.keys() == its.summaries.keys()
        for name, estimate in ours.summaries.items():
            for part in ("value", "stderr", "low", "high"):
                assert getattr(estimate, part) == pytest.approx(
                    getattr(its.summaries[name], part), rel=1e-5, abs=1e-8, nan_ok=True
                ), name


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["continue", "merge", "new"])
def test_two_runs_in_sequence_equal_one_continual_run(document, tmp_path, first, policy):
    last = {**B, "adapter": policy}
    whole = start(document, tmp_path, stages=[A, last])
    listener = EventRecorder()
    second = start(document, tmp_path, stages=[last], model=onto(first), listener=listener)
    assert second.stages == whole.stages == ("base", "a", "b")
    assert second.previous_run == first.run_info["folder"] or second.previous_run.endswith(first.run_info["id"])
    same_matrices(second, whole)
    bwt = next(one for one in second.matrices if one.score == "response_perplexity").summaries["backward_transfer"]
    assert bwt.value == bwt.value, "the earlier task counts as one of an earlier stage"
    for ours, its in zip(second.changes, whole.changes, strict=True):
        assert (ours.suite, ours.name, ours.verdict) == (its.suite, its.name, its.verdict)
        assert ours.difference.value == pytest.approx(its.difference.value, rel=1e-5, abs=1e-9)
    assert not [text for text in listener.warnings() if "measure differently" in text or "starts with this run" in text]
    if policy == "continue":
        import torch

        ours, its = adapter(second), adapter(whole)
        assert ours.keys() == its.keys()
        assert all(torch.equal(ours[name], its[name]) for name in ours)


@pytest.mark.slow
def test_osf_continues_from_run_saved_as_full_model(document, tmp_path):
    """The second run decomposes the weights of the first, as the second stage of one run does."""
    from pathlib import Path

    from safetensors.torch import load_file

    document["mitigations"] = {"osf": {}}
    whole = start(document, tmp_path, stages=[A, B])
    first = start(document, tmp_path, stages=[A])
    second = start(document, tmp_path, stages=[B], model=onto(first))
    ours, its = (load_file(Path(one.run_info["folder"]) / "model/model.safetensors") for one in (second, whole))
    began = load_file(Path(first.run_info["folder"]) / "model/model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert float((ours[name] - began[name]).norm()) > 0.1
    assert float((ours[name] - its[name]).norm()) < 1e-2
    with pytest.raises(HarnessError, match="the earlier run's model has no adapter"):
        start(document, tmp_path, stages=[{**B, "adapter": "new"}], model=onto(first))


@pytest.mark.slow
def test_third_run_carries_over_scores_of_both_earlier_runs(document, tmp_path, first):
    from harness.report import finished_run

    second = start(document, tmp_path, stages=[B], model=onto(first))
    third = start(document, tmp_path, stages=[{"name": "c", "general": ["general"]}], model=onto(second))
    assert third.stages == ("base", "a", "b", "c")
    matrix = next(one for one in third.matrices if one.score == "response_perplexity")
    assert dict(zip(matrix.suites, matrix.learned, strict=True)) == {"a": 1, "b": 2, "general": 3}
    assert finished_run.load_finished_run(third.run_info["folder"]).stages == ("base", "a", "b", "c")


@pytest.mark.slow
def test_other_modes_merge_the_earlier_adapter(document, tmp_path, first):
    from transformers import AutoModelForCausalLM

    document["evaluate"].pop("b")
    listener = EventRecorder()
    second = start(
        document, tmp_path, model=onto(first), mode={"domain": {"sources": ["b"]}},
        mitigations={"lora": {"rank": 3}}, listener=listener,
    )  # fmt: skip
    assert second.stages == ("base", "a", "domain")
    assert "the earlier run's suite 'b' is not measured in this run" in listener.warnings()
    model = AutoModelForCausalLM.from_pretrained(f"{second.run_info['folder']}/model")
    assert not hasattr(model, "peft_config")
    third = start(document, tmp_path, model=onto(second), mode={"domain": {"sources": ["b"]}}, mitigations={})
    assert third.stages == ("base", "a", "domain", "domain-2"), (
        "a whole model goes on; a name that is taken gets a number"
    )
    kl = next(one for one in third.changes if one.name.startswith("kl"))
    assert kl.before.value == pytest.approx(0, abs=1e-6), "the distance is still that from the first base model"
    assert kl.after_stages[2].value > 0.001


def test_new_or_changed_suite_starts_with_this_run(document, tmp_path, first):
    document["evaluate"]["fresh"] = {"source": "b", "metrics": {"response_perplexity": {}}, "role": "general"}
    document["evaluate"]["b"]["limit"] = 2
    listener = EventRecorder()
    second = start(document, tmp_path, stages=[B], model=onto(first), listener=listener)
    told = listener.warnings()
    assert "the suite 'fresh' starts with this run: the earlier run does not have it" in told
    assert not [text for text in told if "report.html" in text]
    assert (tmp_path / "runs" / second.run_info["id"] / "report.html").is_file()
    assert "the suite 'b' starts with this run: its items differ from those of the earlier run" in told
    change = next(one for one in second.changes if one.suite == "fresh")
    assert change.after_stages[0] is None
    assert change.after_stages[1] == change.before
    matrix = next(one for one in second.matrices if one.score == "response_perplexity")
    column = matrix.suites.index("fresh")
    assert matrix.values[0][column] != matrix.values[0][column], "nobody measured the base model on it"
    assert matrix.values[2][column] == pytest.approx(change.after.value)
    assert matrix.summaries["general_ability_delta"].value == matrix.summaries["general_ability_delta"].value
    written = json.loads((tmp_path / "runs" / second.run_info["id"] / "report.json").read_text())
    assert next(one for one in written["forgetting"] if one["score"] == matrix.score)["values"][0][column] is None


def test_score_mismatch_with_earlier_run_is_warned_of(document, tmp_path, first):
    import torch
    from safetensors.torch import load_file, save_file

    file = tmp_path / "runs" / first.run_info["id"] / "model" / "adapter_model.safetensors"
    weights = {name: one * 1.5 for name, one in load_file(file).items()}
    assert all(torch.isfinite(one).all() for one in weights.values())
    save_file(weights, file, metadata={"format": "pt"})
    listener = EventRecorder()
    start(document, tmp_path, stages=[B], model=onto(first), listener=listener)
    assert [text for text in listener.warnings() if "the two runs measure differently" in text]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mitigations", "told"),
    [
        ({"lora": {"rank": 3}}, "its r is 2, but 3 in this spec"),
        ({"lora": {"rank": 2, "alpha": 7}}, "its lora_alpha is 4, but 7 in this spec"),
        ({"lora": {"rank": 2, "target": ["q_proj"]}}, "its layers or shapes differ"),
        ({"lora": {"rank": 2, "start": "pissa"}}, "a mitigation resets its weights"),
        ({}, "no mitigation of this spec adds an adapter"),
    ],
)
def test_earlier_adapter_requires_same_shape(document, tmp_path, first, mitigations, told):
    with pytest.raises(HarnessError, match=told):
        start(document, tmp_path, stages=[B], model=onto(first), mitigations=mitigations)


def test_missing_or_unfinished_earlier_run_is_an_error(document, tmp_path, first):
    with pytest.raises(HarnessError, match=r"there is no run 'nowhere'.*" + first.run_info["id"]):
        start(document, tmp_path, stages=[B], model={"path": "run:nowhere"})
    folder = tmp_path / "runs" / first.run_info["id"]
    shutil.rmtree(folder / "model")
    with pytest.raises(HarnessError, match=r"has no model any more"):
        start(document, tmp_path, stages=[B], model={"path": f"run:{folder}"})
    (folder / "report.json").unlink()
    with pytest.raises(HarnessError, match=r"did not finish.*--resume"):
        start(document, tmp_path, stages=[B], model={"path": f"run:{folder}"})


def test_template_other_than_earlier_run_is_refused(document, tmp_path, first):
    with pytest.raises(HarnessError, match="trained with the template 'chatml'"):
        start(document, tmp_path, stages=[B], model=onto(first), template="alpaca")


def test_changed_adapter_changes_digest(document, tmp_path, first):
    from harness.model import locate

    settings = {"path": f"run:{first.run_info['folder']}", "revision": None, "trust_remote_code": False}
    before = locate.resolve_model(settings)
    assert before.kind == "run"
    assert before.base is not None
    file = tmp_path / "runs" / first.run_info["id"] / "model" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes() + b" ")
    assert locate.resolve_model(settings).digest != before.digest


@pytest.mark.slow
def test_evaluate_repeats_scores_of_continued_run(document, tmp_path, first):
    second = start(document, tmp_path, stages=[B], model=onto(first))
    found = registry.discover_plugins()
    place = tmp_path / "runs" / second.run_info["id"]
    shutil.rmtree(place / "predictions")
    _, measured = evaluate_model.evaluate_model(
        spec.load_spec(place / "spec.json", schema.compose_schema(found)), found, place
    )
    again = {f"{one.suite}/{score.name}": score.value for one in measured for score in one.scores}
    for change in second.changes:
        assert again[f"{change.suite}/{change.name}"] == pytest.approx(change.after.value, rel=1e-5)


@pytest.mark.slow
def test_arms_may_start_from_a_run(document, tmp_path, first):
    document["mode"] = {"continual": {"stages": [B]}}
    document["model"] = onto(first)
    document["arms"] = {"named": {"small": {}, "large": {"train.learning_rate": 0.1}}, "joint": "large"}
    (tmp_path / "spec.json").write_text(json.dumps(document))
    found = registry.discover_plugins()
    composed = schema.compose_schema(found)

    def of_arm(overrides):
        return spec.load_spec(tmp_path / "spec.json", composed, ["arms=null", *overrides])

    made = api.run_experiment(spec.load_spec(tmp_path / "spec.json", composed), found, of_arm)
    assert set(made.arms) == {"small", "large"}
    (one,) = [one for one in made.intransigence if one.score == "response_perplexity"]
    assert (one.arm, one.suites) == ("small", ("a", "b"))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["continue", "merge"])
def test_interrupted_continued_run_can_be_resumed(document, tmp_path, first, monkeypatch, policy):
    import torch

    from harness.runner import run_stages as run_stages_module

    document["model"] = onto(first)
    document["train"]["save_steps"] = 1
    last = {**B, "adapter": policy}
    whole = start(document, tmp_path, stages=[last])

    def broken(self, stage_index, checkpoint):
        def step(step, metrics):
            if step == 2:
                raise KeyboardInterrupt

        return step

    listener = EventRecorder()
    with monkeypatch.context() as patch:
        patch.setattr(run_stages_module.MainProcess, "_create_step_callback", broken)
        with pytest.raises(KeyboardInterrupt):
            start(document, tmp_path, stages=[last], listener=listener)
    place = tmp_path / next(one.folder for one in listener.events if isinstance(one, events.RunStarted))
    found = registry.discover_plugins()
    again = api.resume_run(spec.load_spec(place / "spec.json", schema.compose_schema(found)), found, place)
    same_matrices(again, whole)
    if policy == "continue":
        ours, its = adapter(again), adapter(whole)
        assert all(torch.equal(ours[name], its[name]) for name in its)
