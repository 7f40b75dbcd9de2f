"""The events of a small run with invented numbers, for the tests of trackers and listeners."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from harness import events
from harness.interfaces.metric import Metric
from harness.report import run_report
from harness.types import Evaluation, Item, Plan, Score, Share, Stage, StageSource, Suite

STEPS = 3
ITEMS = 40


class _Perplexity(Metric):
    requires, score_names, higher_is_better = "likelihood", ("response_perplexity",), False

    def signature(self) -> str:
        return "response_perplexity|version:example"

    def aggregate(self, name: str, total: tuple[float, ...]) -> float:  # type: ignore[override]
        return math.exp(total[0] / total[1])


def build_example_plan() -> Plan:
    """Return a plan of one stage with a domain and a general source, and a suite of each."""
    train = {"learning_rate": 1e-4, "steps": STEPS, "save_steps": None}
    sources = (StageSource("desk", "domain"), StageSource("general", "general"))
    suites = [Suite(name, name, role, {"response_perplexity": {}}, None, 8, 4)  # type: ignore[arg-type]
              for name, role in (("desk", "domain"), ("general", "general"))]  # fmt: skip
    return Plan(
        name="example",
        seed=0,
        model={"path": "./model"},
        template=("chatml", {}),
        sources={name: ("jsonl", {"path": f"{name}.jsonl"}) for name in ("desk", "general")},
        mitigations={},
        stages=(Stage("first", sources, train, (Share(("general",), 0.1),)),),
        suites=tuple(suites),
        train=train,
        mode=("mixed", {"domain": ["desk"], "general": ["general"]}),
    )


def iter_example_events(folder: Path, *, resuming: bool = False, fails: bool = False) -> Iterator[events.Event]:
    """Yield the events of a run, each kind that a run of one stage has.

    Args:
        folder: The folder of the run, which exists.
        resuming: Whether the run was interrupted after the first step and is resumed.
        fails: Whether the run fails in its stage.
    """
    from harness.training.train_stage import StageResult  # imports torch

    plan = build_example_plan()
    (stage,) = plan.stages
    shares = {"desk": {"loss_tokens": 0.9}, "general": {"loss_tokens": 0.1}}
    spec = {
        "name": "example",
        "seed": 0,
        "model": {"path": "./model"},
        "mode": {"mixed": {}},
        "mitigations": {},
        "train": {"learning_rate": 1e-4},
        "track": {"enabled": True},
    }
    yield events.RunStarted(
        name=plan.name,
        id=folder.name,
        folder=str(folder),
        spec=spec,
        plan=plan,
        environment={"python": "3"},
        resuming=resuming,
    )
    yield events.DataPrepared(
        counts={name: {"read": 60, "held_out": 40, "used": 20} for name in ("desk", "general")},
        stages=plan.stages,
        shares=[shares],
        epoch_shares=[[shares]],
        efficiency=[1.0],
        digests={"desk": "0" * 64, "general": "1" * 64},
        template="2" * 64,
    )
    yield events.WarningRaised(text="an example of a warning")
    yield events.ProgressUpdated(phase="evaluate desk", done=1, total=2, unit="rows")
    evaluations = [tuple(_evaluate(index, suite.name) for suite in plan.suites) for index in (0, 1)]
    yield events.SuitesEvaluated(evaluations=evaluations[0])
    yield events.StageStarted(stage_index=1, stage=stage, steps=STEPS)
    for step in range(2 if resuming else 1, STEPS + 1):
        yield events.StepLogged(stage_index=1, step=step, metrics={"loss": 2.0 / step, "learning_rate": 1e-4})
    yield events.MidStageEvaluated(
        stage_index=1,
        step=STEPS,
        scores={"desk/response_perplexity": 5.0},
        best=True,
        mitigations={"example/changes": 1.0},
    )
    if fails:
        yield events.RunFailed(stage_index=1, error="RuntimeError: an example", folder=str(folder))
        return
    yield events.SuitesEvaluated(stage_index=1, evaluations=evaluations[1])
    result = StageResult(steps=STEPS, loss=0.7, seconds=1.0, tokens=300, log=())
    yield events.StageFinished(stage_index=1, stage=stage, trained=result, folder=str(folder))
    metrics = {suite.name: {"response_perplexity": _Perplexity()} for suite in plan.suites}
    run_info = {"id": folder.name, "folder": str(folder), "seconds": 2.0, "uri": None, "spec": spec}
    report = run_report.build_report(plan, evaluations, metrics, seed=0, run_info=run_info)
    yield events.RunFinished(stage_index=1, report=report, seconds=2.0)


def _evaluate(stage_index: int, suite: str) -> Evaluation:
    nll = [20.0 - 5 * stage_index + index % 3 for index in range(ITEMS)]
    items = tuple(
        Item(f"{index:016x}", f"question {index}", "reference", "answer", "eos", value, 10)
        for index, value in enumerate(nll)
    )
    value = math.exp(sum(nll) / (10 * ITEMS))
    score = Score(
        stage=stage_index,
        suite=suite,
        metric="response_perplexity",
        name="response_perplexity",
        value=value,
        n=ITEMS,
        stderr=0.1,
        low=value - 0.2,
        high=value + 0.2,
        higher_is_better=False,
        signature="response_perplexity|version:example",
        statistics=tuple((each, 10.0) for each in nll),
    )
    return Evaluation(stage_index, suite, items, (score,))
