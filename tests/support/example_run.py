"""A finished run with fixed numbers: its plan, evaluations, metrics and report, and the events that it emits."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

from harness import events
from harness.interfaces.metric import Metric
from harness.report import run_report
from harness.types import Evaluation, Item, Plan, Score, Share, Stage, StageSource, Suite

SUITES = (("helpdesk", "domain"), ("general", "general"))


class Rouge(Metric):
    """A mean over items; higher is better."""

    requires = "answer"
    score_names = ("rougeL",)

    def signature(self):
        return "mean|of:test"

    def aggregate(self, name, total):
        return total[0] / total[1] if total[1] else math.nan


class Perplexity(Metric):
    """exp of a mean over tokens; lower is better."""

    requires = "likelihood"
    score_names = ("response_perplexity",)
    higher_is_better = False

    def signature(self):
        return "ppl|of:test"

    def aggregate(self, name, total):
        return math.exp(total[0] / total[1]) if total[1] else math.nan


METRICS = {"rouge": Rouge(), "response_perplexity": Perplexity()}


def made_plan(stages=1, **changes):
    """A plan over two suites, `helpdesk` (domain) and `general`."""
    parts, shares = (StageSource("helpdesk", "domain"), StageSource("general", "general")), (Share(("general",), 0.1),)
    facts = {
        "name": "mixed-sft",
        "seed": 0,
        "model": {"path": "some/model"},
        "template": ("chatml", {}),
        "sources": {name: ("jsonl", {"path": f"data/{name}.jsonl"}) for name, _ in SUITES},
        "mitigations": {"mixing": {"share": 0.1}},
        "stages": tuple(Stage(f"stage-{k}", parts, {"learning_rate": 2e-4}, shares) for k in range(1, stages + 1)),
        "suites": tuple(Suite(name, name, role, {key: {} for key in METRICS}, None, 64, 8) for name, role in SUITES),
    }
    return Plan(**{**facts, **changes})


def made_evaluation(stage, suite, rouge, nll, answer="an answer", finish="eos"):
    """rouge: one value an item; nll: nats an item, over 10 tokens each."""
    items = tuple(
        Item(f"id{i}", f"question {i}?", f"reference {i}", f"{answer} {i}", finish, value, 10)
        for i, value in enumerate(nll)
    )
    statistics = {"rouge": [(value, 1.0) for value in rouge], "response_perplexity": [(value, 10.0) for value in nll]}
    scores = []
    for name, vectors in statistics.items():
        metric = METRICS[name]
        value = metric.aggregate(metric.score_names[0], [sum(column) for column in zip(*vectors, strict=True)])
        scores.append(
            Score(
                stage=stage, suite=suite, metric=name, name=metric.score_names[0], value=value, n=len(items),
                stderr=0.1, low=value - 0.2, high=value + 0.2, higher_is_better=metric.higher_is_better,
                signature=metric.signature(), statistics=tuple(vectors),
            )
        )  # fmt: skip
    return Evaluation(stage, suite, items, tuple(scores))


def made_evaluations(stages=1, items=40):
    """The evaluations of the base model and of each stage.

    `helpdesk` gains 0.2 ROUGE-L a stage and 10 nats an item; the scores of `general` change, but not their mean.
    """
    evaluations = []
    for stage in range(stages + 1):
        wobble = [0.05 * stage * (-1) ** i for i in range(items)]
        evaluations.append(
            (
                made_evaluation(
                    stage, "helpdesk", [0.2 + 0.2 * stage + 0.01 * (i % 5) for i in range(items)],
                    [30.0 - 10.0 * stage + i % 3 for i in range(items)], f"stage {stage} says",
                ),
                made_evaluation(stage, "general", [0.5 + one for one in wobble], [20.0 + 10 * one for one in wobble]),
            )
        )  # fmt: skip
    return evaluations


def made_report(folder, stages=1, uri=None, **run_info):
    """The report of this run."""
    return run_report.build_report(
        made_plan(stages),
        made_evaluations(stages),
        {name: METRICS for name, _ in SUITES},
        seed=0,
        run_info={
            "id": Path(folder).name,
            "folder": str(folder),
            "seconds": 187.0,
            "uri": uri,
            "spec": {"not": "shown"},
            **run_info,
        },
    )


def feed(
    listener,
    folder,
    *,
    settings=None,
    stages=1,
    steps=50,
    fail=False,
    plan=None,
    started=None,
    data=None,
    measured=0,
    error="RuntimeError: out of memory",
):
    """Emit all events of a run to a listener, as `harness.run` does.

    settings: changes of the spec. fail: whether the first stage fails, with `error`. started, data: other fields of
    `RunStarted` and `DataPrepared`. measured: steps between two evaluations within a stage; 0 for none.
    """
    folder = Path(folder)
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    (folder / "predictions" / "helpdesk-stage0.jsonl").write_text('{"id": "id0", "prompt": "q", "reference": "r"}\n')
    plan = made_plan(stages) if plan is None else plan
    spec = {
        "name": plan.name,
        "seed": 0,
        "model": {"path": "some/model"},
        "template": {"chatml": {}},
        "mode": {"mixed": {"domain": ["helpdesk"]}},
        "mitigations": {"mixing": {"share": 0.1}, "lora": {"rank": 16}},
        "train": {"learning_rate": 2e-4},
        **(settings or {}),
    }
    evaluations = made_evaluations(stages)

    def emit(event_class, stage_index=0, /, **fields):
        listener.harness_on_event(event_class(stage_index=stage_index, **fields))

    def emit_progress(phase, total, unit):
        for done in range(total + 1):
            emit(events.ProgressUpdated, phase=phase, done=done, total=total, unit=unit)

    emit(
        events.RunStarted,
        name=plan.name,
        id=folder.name,
        folder=str(folder),
        spec=spec,
        plan=plan,
        **{"environment": {"python": "3"}, **(started or {})},
    )
    fields = {
        "counts": {"helpdesk": {"read": 60, "held_out": 12, "used": 48}, "general": {"read": 90, "used": 6}},
        "stages": list(plan.stages),
        "shares": [{"helpdesk": {"loss_tokens": 0.898}, "general": {"loss_tokens": 0.102}} for _ in plan.stages],
        "epoch_shares": [
            [{"helpdesk": {"loss_tokens": 1 - part}, "general": {"loss_tokens": part}} for part in (0.101, 0.103)]
            for _ in plan.stages
        ],
        "efficiency": [0.93 for _ in plan.stages],
        "digests": {"helpdesk": "sha256:" + "a" * 64, "general": "b" * 64},
        "template": "f" * 64,
    }
    emit(events.DataPrepared, **{**fields, **(data or {})})
    emit_progress("evaluate helpdesk", 40, "rows")
    emit(events.SuitesEvaluated, 0, evaluations=evaluations[0])
    for stage_index in range(1, stages + 1):
        stage = plan.stages[stage_index - 1]
        emit(events.StageStarted, stage_index, stage=stage, steps=steps)
        for step in range(1, steps + 1):
            metrics = {"loss": 3.0 / step, "learning_rate": 2e-4, "penalty/ewc": 0.1}
            emit(events.StepLogged, stage_index, step=step, metrics=metrics)
            if measured and step % measured == 0:
                scores = {"helpdesk/rougeL": step / 100}
                evaluation = {"scores": scores, "combined": step / 50, "best": True, "mitigations": {"repair/pulls": 1}}
                emit(events.MidStageEvaluated, stage_index, step=step, **evaluation)
        emit_progress("train", steps, "steps")
        if fail:
            emit(events.RunFailed, stage_index, error=error, folder=str(folder))
            return
        emit(events.SuitesEvaluated, stage_index, evaluations=evaluations[stage_index])
        totals = SimpleNamespace(steps=steps, loss=0.8, seconds=3.0, tokens=100)
        emit(events.StageFinished, stage_index, stage=stage, trained=totals, folder=str(folder))
    report = made_report(folder, stages)
    report.write(folder)
    emit(events.RunFinished, stages, report=report, seconds=187.0)


BY_SUITE = {name: METRICS for name, _ in SUITES}
