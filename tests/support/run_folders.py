"""Folders of finished runs and experiments with everything that a page can show, written without training."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

from harness.evaluation import predictions
from harness.evaluation.scoring import item_values
from harness.report import arm_comparison, finished_run, run_report
from support import example_run

TESTS = ("rises_at_most", "rises_at_least", "falls_at_most", "falls_at_least", "gains_at_least", "loses_at_most",
         "at_least", "at_most")  # fmt: skip

HOSTILE_TEXT = (
    "</script><script>alert(1)</script>\"'&<img src=x onerror=alert(2)>\x1b[31m\u202egnorw\u2066\u200b\ud83d$x^2$"
)
"""Markup, the end of a script, quotes, a terminal escape, a bidi override, an unclosed isolate, a zero-width space, a
lone surrogate, and a formula of matplotlib."""


def gate_condition(score, **test):
    """Return a gate condition with all defaults."""
    return {**dict.fromkeys(TESTS), "score": score, "summary": None, "judge_by": "bound", "tier": "blocks", **test}


def run_spec(**changes):
    """Return the keys of a filled spec that a page reads."""
    return {
        "name": "mixed-sft",
        "seed": 0,
        "model": {"path": "some/model"},
        "mode": {"mixed": {"domain": ["helpdesk"], "general": ["general"]}},
        "mitigations": {"mixing": {"share": 0.1}, "lora": {"rank": 16}},
        "evaluate": {"helpdesk": {"role": "domain"}, "general": {"role": "general"}},
        **changes,
    }


def write_run(folder, stages=1, *, evaluations=None, spec=None, gate=(), text=str, num_steps=120):
    """Write the folder of a run with all its files.

    text: Applied to every text of the model and the data.
    """
    folder.mkdir(parents=True)
    stage_evaluations = [
        tuple(
            replace(evaluation, items=tuple(_with_text(item, text) for item in evaluation.items))
            for evaluation in stage
        )
        for stage in (evaluations or example_run.made_evaluations(stages))
    ]
    run_info = {"id": folder.name, "folder": str(folder), "seconds": 187.0, "uri": "sqlite:///mlflow.db"}
    plan = example_run.made_plan(stages)
    report = run_report.build_report(
        plan, stage_evaluations, example_run.BY_SUITE, seed=0, run_info=run_info, gate_conditions=gate
    )
    report.write(folder)
    names = [stage.name for stage in plan.stages]
    for name in names:
        stage_folder = folder / "stages" / name
        stage_folder.mkdir(parents=True)
        steps = [step_entry(step, num_steps) for step in range(1, num_steps + 1)]
        (stage_folder / "steps.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in steps))
        (stage_folder / "trained.json").write_text(
            json.dumps({"steps": num_steps, "loss": 0.5, "seconds": 75.2, "tokens": 4096})
        )
    share = {"helpdesk": {"loss_tokens": 0.898, "tokens": 0.9, "rows": 0.88},
             "general": {"loss_tokens": 0.102, "tokens": 0.1, "rows": 0.12}}  # fmt: skip
    data = {
        "counts": {"helpdesk": {"read": 60, "held_out": 12, "used": 48}, "general": {"read": 90, "used": 6}},
        "stages": names,
        "shares": [share for _ in names],
        "efficiency": [0.93 for _ in names],
        "warnings": ["12 rows of helpdesk are cut"],
        "lengths": {
            "helpdesk": {"edges": [0, 32, 64, 128], "counts": [3, 10, 2], "max_length": 63},
            "general": {
                "max_length": 512,
                "bins": [{"low": 0, "high": 99, "rows": 84}, {"low": 513, "high": 900, "rows": 6}],
            },
        },
    }
    for name, value in (
        ("spec", spec or run_spec()),
        ("environment", {"harness": "0.1.0", "python": "3.11"}),
        ("data", data),
    ):
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "predictions").mkdir()
    for stage_index, stage in enumerate(stage_evaluations):
        for evaluation in stage:
            file = predictions.predictions_path(folder / "predictions", evaluation.suite, stage_index)
            header = {"suite": evaluation.suite, "whole": True, "identity": {}, "settings": {}}
            predictions.header_path(file).write_text(json.dumps(header))
            values = {score.name: item_values(score, example_run.METRICS[score.metric]) for score in evaluation.scores}
            lines = [
                {**asdict(item), "scores": {name: of_score[index] for name, of_score in values.items()}}
                for index, item in enumerate(evaluation.items)
            ]
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _with_text(item, text):
    return replace(item, prompt=text(item.prompt), reference=text(item.reference), answer=text(item.answer))


def step_entry(step, num_steps):
    """Return a line of a stage's training log."""
    return {
        "step": step,
        "loss": 2.0 * math.exp(-step / 30) + 0.05 * math.sin(7 * step),
        "learning_rate": 2e-4 * (1 - step / num_steps),
        "grad_norm": 1.0,
        "penalty/ewc": 0.001 * step,
        "penalty/kl": 0.02,
    }


def write_experiment(folder, shares=(None, 0.01, 0.1), *, specs=None, missing=None, text=str):
    """Write the folder of an experiment: `naive` and an arm for each share; larger shares gain and forget less."""
    runs = {}
    for index, share in enumerate(shares):
        name = "naive" if share is None else f"share={share}"
        gain, rise = 0.3 - 0.02 * index, 5.0 / (1 + index)
        wobble = [0.1 * math.sin(i) for i in range(40)]
        base, nll = [0.3 + 0.001 * i for i in range(40)], [20.0 + i % 5 for i in range(40)]
        evaluations = [
            (
                example_run.made_evaluation(0, "helpdesk", base, nll),
                example_run.made_evaluation(0, "general", base, nll),
            ),
            (
                example_run.made_evaluation(
                    1, "helpdesk", [b + gain + w for b, w in zip(base, wobble, strict=True)], nll
                ),
                example_run.made_evaluation(
                    1, "general", base, [n + rise + 20 * w for n, w in zip(nll, wobble, strict=True)]
                ),
            ),
        ]
        mitigations = {"lora": {"rank": 16}} | ({} if share is None else {"mixing": {"share": share}})
        spec = specs[name] if specs else run_spec(mitigations=mitigations)
        arm_folder = write_run(folder / "arms" / name, evaluations=evaluations, spec=spec, num_steps=3, text=text)
        runs[name] = finished_run.load_finished_run(arm_folder)
    axes = {"gain_score": "helpdesk/rougeL", "forgetting_score": "general/response_perplexity", "gain_margin": 0.05}
    comparison = arm_comparison.compare_arms(
        "sweep", folder, runs, example_run.BY_SUITE, arm_comparison.ComparisonSettings(**axes), seed=0, missing=missing
    )
    comparison.write(folder)
    return folder
