"""Two processes that share a run: one folder, one report, the weights of one process, and a common end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.launched import ENOUGH, start

from harness.tracking import mlflow_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROW_RECORDER = Path(__file__).with_name("command_that_records_rows.py")
SHARE_RECORDER = Path(__file__).with_name("command_that_records_shares.py")


def steps(place):
    """Stage -> the updates that were written down."""
    found = {}
    for file in sorted(place.glob("stages/*/steps.jsonl")):
        found[file.parent.name] = [json.loads(line) for line in file.read_text().splitlines()]
    return found


def client(folder):
    """A client of the tracking store in `folder`."""
    return mlflow_store.open_store(f"sqlite:///{folder}/mlflow.db")


def scores(place):
    """(stage, suite, score) -> its value."""
    return {
        (stage["name"], suite, score["name"]): score["value"]
        for stage in json.loads((place / "scores.json").read_text())["stages"]
        for suite, found in stage["suites"].items()
        for score in found["scores"]
    }


def equal(one, two):
    """Two runs made the same updates, up to rounding."""
    (first, second) = steps(one), steps(two)
    assert first.keys() == second.keys()
    assert first
    for name, lines in first.items():
        assert [line["step"] for line in lines] == [line["step"] for line in second[name]]
        for line, other in zip(lines, second[name], strict=True):
            keys = {key for key in line if key.startswith("penalty/")} | {"loss", "grad_norm", "learning_rate", "epoch"}
            assert {key: other[key] for key in keys} == pytest.approx({key: line[key] for key in keys}, rel=1e-3)
    for file in one.glob("model/*.safetensors"):
        weights, others = load_file(file), load_file(two / "model" / file.name)
        assert weights.keys() == others.keys()
        for name, weight in weights.items():
            assert others[name].numpy() == pytest.approx(weight.numpy(), rel=1e-3, abs=1e-5), name
    assert scores(two) == pytest.approx(scores(one), rel=1e-3)


def halved(document):
    """The document for two processes: each adds up the gradients of half the batches."""
    return {**document, "train": {**document["train"], "accumulation": document["train"]["accumulation"] // 2}}


KINDS = {
    "full": {
        "ewc": {"source": "general", "samples": 4},
        "kl": {"source": "general", "rows": 3},
        "ema": {"decay": 0.5},
        "replay": {"share": 0.25, "unit": "rows"},
        "wise_ft": {"alpha": 0.8, "alphas": [0.5]},
    },
    "lora": {
        "lora": {"rank": 2, "start": "pissa"},
        "l2sp": {},
        "token_masking": {"quantile": 0.8, "source": "domain"},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_result_of_one(desk, kind):
    document = desk.continual(mitigations=KINDS[kind])
    document["train"] |= {"accumulation": 4, "engine": "transformers"}
    one = desk.start(document)
    ended = start("run", desk.write(halved(document)))
    assert ended.codes == (0, 0), ended.errors
    two = desk.newest()
    equal(one, two)
    assert ended.out.count("run folder") == 1, ended.out
    assert len([line for line in ended.out.splitlines() if line.startswith("read: ")]) <= 3, "once for each source"
    assert json.loads((two / "environment.json").read_text())["processes"] == 2
    assert not list(two.glob("stages/*/begun"))


def test_sharded_weights_give_the_result_of_one_process(desk):
    document = desk.continual(mitigations={"lora": {"rank": 2}})
    document["train"] |= {"accumulation": 4, "engine": "transformers", "evaluate_steps": 1, "save_steps": 1}
    one = desk.start(document)
    sharded = halved(document)
    sharded["train"]["sharding"] = "fsdp2"
    ended = start("run", desk.write(sharded))
    assert ended.codes == (0, 0), ended.errors
    equal(one, desk.newest())


WRITING = {"max_new_tokens": 90, "max_repetition": 1.0}
WRITERS = {
    "mixing": ["general"],
    "replay and kl": ["general", "domain"],
}
"""Mitigations whose rows a model writes -> the sources of the rows, in the order of writing."""


@pytest.mark.parametrize("kind", WRITERS)
def test_rows_are_written_once_and_are_the_same_in_both_processes(desk, tmp_path, kind):
    written = {"unit": "rows", "answers": "model", "writing": WRITING}
    if kind == "mixing":
        mixing = {"share": 4 / 15, "upsample": True, **written}
        mode = {"mixed": {"domain": ["domain"], "general": ["general"]}}
        document = desk.document(mode=mode, mitigations={"mixing": mixing})
    else:
        kl = {"source": "general", "rows": 3, "answers": "model", "writing": WRITING}
        document = desk.continual(mitigations={"replay": {"share": 0.25, **written}, "kl": kl})
    document["train"] |= {"steps": None, "epochs": 2, "batch_size": 1, "accumulation": 4, "engine": "transformers"}
    one = desk.start(document)
    recorder = (ROW_RECORDER, tmp_path)
    ended = start("run", desk.write(halved(document)), record=recorder, environment={"HARNESS_EVALUATION_CACHE": 0})
    assert ended.codes == (0, 0), ended.errors
    two = desk.newest()
    writes = [json.loads(line) for line in (tmp_path / "writes.jsonl").read_text().splitlines()]
    assert writes == [[0, source] for source in WRITERS[kind]], "the main process writes, once"
    records = [sorted(file.relative_to(run) for file in run.rglob("written/**/*.jsonl")) for run in (one, two)]
    assert records[0] == records[1]
    assert len(records[0]) == 2 * len(WRITERS[kind]), "the rows, and those that are not used"
    for file in records[0]:
        assert (two / file).read_text() == (one / file).read_text(), file
    for stage_index in range(1, 1 + len(steps(two))):
        main, worker = (json.loads((tmp_path / f"rows-{rank}-{stage_index}.json").read_text()) for rank in (0, 1))
        assert main == worker
        assert all(main.values()), "no list is empty"
        assert main.keys() == {"trained"} | ({"kl, general"} if kind != "mixing" else set())
    equal(one, two)


def test_each_item_is_measured_in_one_of_the_processes(desk, tmp_path):
    document = desk.document(mitigations={"wise_ft": {"alphas": [0.5]}})
    metrics = {"response_perplexity": {}, "kl_to_base": {}, "chrf": {}}
    sampled = {"source": "second", "metrics": {"chrf": {}}, "max_new_tokens": 8, "temperature": 1.0, "samples": 2}
    document["evaluate"]["domain"] |= {"metrics": metrics, "max_new_tokens": 8}
    document["evaluate"]["sampled"] = sampled
    document["train"] |= {"accumulation": 2, "engine": "transformers", "evaluate_steps": 1}
    one = desk.start(document)
    environment = {"HARNESS_EVALUATION_CACHE": 0}
    ended = start("run", desk.write(halved(document)), record=(SHARE_RECORDER, tmp_path), environment=environment)
    assert ended.codes == (0, 0), ended.errors
    two = desk.newest()
    equal(one, two)
    for file in ("domain-stage0.jsonl", "sampled-stage0.jsonl", "domain-stage1.jsonl"):
        items, of_two = (
            [json.loads(line) for line in (place / "predictions" / file).read_text().splitlines()]
            for place in (one, two)
        )
        assert [item["id"] for item in items] == [item["id"] for item in of_two]
        if "stage0" in file:  # the same weights
            assert [item["answer"] for item in items] == [item["answer"] for item in of_two]
            assert [item["more_answers"] for item in items] == [item["more_answers"] for item in of_two]
        if "domain" in file:
            for name in ("nll", "kl"):
                assert [item[name] for item in of_two] == pytest.approx([item[name] for item in items], rel=1e-3)
    shares = [
        [tuple(json.loads(line)) for line in (tmp_path / f"shares-{rank}.jsonl").read_text().splitlines()]
        for rank in (0, 1)
    ]
    for rank, share in enumerate(shares):
        assert {index % 2 for *_, index in share} == {rank}
        assert {(stage, suite, kind) for stage, suite, kind, _ in share} >= {
            (1, "domain", "ResponseLikelihoods"), (1, "domain", "BaseDivergences"), (1, "domain", "GeneratedAnswers"),
            (0, "sampled", "GeneratedAnswers"),
        }  # fmt: skip
    within, at_end = (2, 1)  # evaluations after step 1 and the last step, and after the stage
    counts = Counter(entry for share in shares for entry in share)
    assert {count for (stage, *_), count in counts.items() if stage == 0} == {1}
    assert max(counts.values()) <= within + at_end


def test_torchrun_stops_early_where_one_process_does(desk, tmp_path):
    watched = {"evaluate_steps": 2, "early_stopping": {"scores": {"domain/response_perplexity": 1}, "patience": 1}}
    document = desk.document(mitigations={"ewc": {"source": "general", "samples": 4, "coupling": "loss"}})
    document["train"] |= {"steps": 10, "accumulation": 2, "learning_rate": 0.3, **watched}
    document["track"] = {"mlflow": {"uri": f"sqlite:///{tmp_path}/mlflow.db"}}
    one = desk.start(document)
    spec = desk.write(halved(document))
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "harness"]
    ended = subprocess.run(
        [sys.executable, "-m", *launcher, "run", spec], capture_output=True, text=True, timeout=ENOUGH, check=False
    )
    assert ended.returncode == 0, ended.stderr
    two = desk.newest()
    equal(one, two)
    assert len(steps(two)["domain"]) < 10, "it ended early"
    its, ours = ((place / "stages/domain/evaluations.jsonl").read_text().splitlines() for place in (one, two))
    assert [json.loads(line)["step"] for line in its] == [json.loads(line)["step"] for line in ours]
    tracked = json.loads((two / "mlflow.json").read_text())["run_id"]
    experiment = client(tmp_path).get_run(tracked).info.experiment_id
    runs = client(tmp_path).search_runs([experiment])
    kinds = [
        (run.data.tags["harness.kind"], run.info.status) for run in runs if run.data.tags["harness.kind"] != "system"
    ]
    assert sorted(kinds) == [("run", "FINISHED")] * 2 + [("stage", "FINISHED")] * 2


def test_both_processes_repair_alike(desk):
    document = desk.continual(mitigations={"lora": {"rank": 2}, "repair": {"suites": ["domain"], "tolerance": 0}})
    watched = {"evaluate_steps": 1, "learning_rate": 0.1}
    document["train"] |= {"accumulation": 4, "engine": "transformers", **watched}
    one = desk.start(document)
    ended = start("run", desk.write(halved(document)))
    assert ended.codes == (0, 0), ended.errors
    two = desk.newest()
    equal(one, two)
    for name in ("a", "b"):
        ours, theirs = (
            [json.loads(line)["mitigations"] for line in (place / f"stages/{name}/evaluations.jsonl").open()]
            for place in (one, two)
        )
        assert [stats["repair/pulls"] for stats in ours] == [stats["repair/pulls"] for stats in theirs]
    assert ours[-1]["repair/pulls"] > 0, "the suite of the first stage gets worse in the second one"


def test_gpus_starts_the_processes_and_gives_the_result_of_one(desk):
    document = desk.continual(mitigations=KINDS["lora"])
    document["train"] |= {"accumulation": 4, "engine": "transformers"}
    one = desk.start(document)
    command = [sys.executable, "-m", "harness", "run", str(desk.write(halved(document))), "--gpus", "2", "--json"]
    environment = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=ENOUGH)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout), "the report, once"
    two = desk.newest()
    equal(one, two)
    assert json.loads((two / "environment.json").read_text())["processes"] == 2


def test_run_of_two_processes_resumes_only_with_two(desk, same):
    document = desk.continual(mitigations={"lora": {"rank": 2}, "ewc": {"source": "general", "samples": 4}})
    document["train"] |= {"engine": "transformers"}
    assert start("run", desk.write(document)).codes == (0, 0)
    whole = desk.newest()
    ended = start("run", desk.write(document), fault=("interrupt", 0, 7))
    assert ended.codes == (130, 0), ended.errors
    place = desk.newest()
    (complaint,) = ended.complaints()
    command = f"harness run --resume {place} --gpus 2"
    assert complaint == f"harness: interrupted; to resume: {command}"
    assert desk.command("run", "--resume", place) == 2, "an update of one process would be another one"
    ended = start("run", "--resume", place)
    assert ended.codes == (0, 0), ended.errors
    same(whole, place)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (("run error", 1, 2), "harness: process 2 of 2: here: it went wrong; fix it"),
        (("bug", 1, 2), "harness: process 2 of 2: ValueError: a bug"),
        (("run error", 0, 2), "harness: here: it went wrong; fix it"),
    ],
)
def test_failure_in_one_process_ends_all_with_one_line(desk, tmp_path, fault, said):
    document = desk.document(track={"mlflow": {"uri": f"sqlite:///{tmp_path}/mlflow.db"}})
    document["train"] |= {"engine": "transformers"}
    ended = start("run", desk.write(document), fault=fault, waits=60)
    assert ended.codes == (1, 0), ended.errors
    assert ended.complaints() == [said]
    assert ended.errors.count("Traceback") == (1 if fault[0] == "bug" else 0)
    assert ended.out.count("stopped; to resume: harness run --resume") == 1
    tracked = json.loads((desk.newest() / "mlflow.json").read_text())
    assert client(tmp_path).get_run(tracked["run_id"]).info.status == "FAILED"


def test_failure_in_both_processes_is_reported_once(desk):
    document = desk.document()
    document["train"] |= {"engine": "transformers", "learning_rate": 1e30, "steps": 5, "max_grad_norm": 1e30}
    ended = start("run", desk.write(document), waits=60)
    assert ended.codes == (1, 0), ended.errors
    (line,) = ended.complaints()
    assert "would destroy the weights" in line
    assert "process" not in line


def test_invalid_input_is_reported_once(desk):
    for document, said in (
        (desk.document(seed="none"), "seed"),
        (desk.document(model={"path": "./nowhere"}), "model.path"),
    ):
        spec = desk.write(document)
        ended = start("run", spec, waits=1)
        assert ended.codes[0] == 2, ended.errors
        (line,) = ended.complaints()
        assert said in line
        assert not list((desk.folder / f"out{desk.count}").glob("tiny-*"))


def test_arms_run_in_sequence_in_two_processes(desk):
    every = {"naive": {}, "held": {"mitigations.l2sp": {}}, "bad": {"train.learning_rate": 1e30}}
    document = desk.document(arms={"named": every, "baseline": "naive"})
    document["train"] |= {"engine": "transformers", "steps": 4, "max_grad_norm": 1e30}
    ended = start("run", desk.write(document), waits=60)
    assert ended.codes == (1, 0), ended.errors
    (line,) = ended.complaints()
    assert "would destroy the weights" in line
    place = desk.newest()
    done = {file.parent.name for file in place.glob("arms/*/report.json")}
    assert done == {"naive", "held"}
    ended = start("run", "--resume", place, "--arm", "naive", "--arm", "held")
    assert ended.codes == (0, 0), ended.errors
    assert (place / "arms.json").is_file()


def test_worker_failure_fails_arm_and_experiment_in_mlflow(desk, tmp_path):
    document = desk.document(
        arms={"named": {"naive": {}}}, track={"mlflow": {"uri": f"sqlite:///{tmp_path}/mlflow.db"}}
    )
    document["train"] |= {"engine": "transformers"}
    ended = start("run", "--json", desk.write(document), fault=("run error", 1, 2), waits=60)
    assert ended.codes == (1, 0), ended.errors
    assert json.loads(ended.out)["error"] == "process 2 of 2: here: it went wrong; fix it"
    for place in (desk.newest(), desk.newest() / "arms/naive"):
        tracked = json.loads((place / "mlflow.json").read_text())["run_id"]
        assert client(tmp_path).get_run(tracked).info.status == "FAILED", place
