"""Folders of finished runs and experiments made by hand, with everything that a page can show of them.

No test module: those that need it run this file by its path.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

from harness.report import arm_comparison, finished_run, run_report
from support import example_run

TESTS = ("rises_at_most", "rises_at_least", "falls_at_most", "falls_at_least", "gains_at_least", "loses_at_most",
         "at_least", "at_most")  # fmt: skip

NASTY = "</script><script>alert(1)</script>\"'&<img src=x onerror=alert(2)>\x1b[31m\u202egnorw\u2066\u200b\ud83d$x^2$"
"""Markup, the end of a script, quotes, an escape of terminals, a bidi override, an isolate that is never closed, a
space without width, half a pair, and what a plot could take for a formula."""


def condition(score, **test):
    """One condition of a gate, filled in."""
    return {**dict.fromkeys(TESTS), "score": score, "summary": None, "judge_by": "bound", **test}


def spec_of(**changes):
    """A filled spec, as far as a page reads it."""
    return {
        "name": "mixed-sft",
        "seed": 0,
        "model": {"path": "some/model"},
        "mode": {"mixed": {"domain": ["helpdesk"], "general": ["general"]}},
        "mitigations": {"mixing": {"share": 0.1}, "lora": {"rank": 16}},
        "evaluate": {"helpdesk": {"role": "domain"}, "general": {"role": "general"}},
        **changes,
    }


def finished(folder, stages=1, *, evaluations=None, spec=None, gate=(), text=str, updates=120):
    """A run's folder with all its files. text: what to make of every text that the model or the data wrote."""
    folder.mkdir(parents=True)
    found = [
        tuple(replace(one, items=tuple(_spoken(item, text) for item in one.items)) for one in stage)
        for stage in (evaluations or example_run.made_evaluations(stages))
    ]
    facts = {"id": folder.name, "folder": str(folder), "seconds": 187.0, "uri": "sqlite:///mlflow.db"}
    plan = example_run.made_plan(stages)
    run_report.build_report(plan, found, example_run.BY_SUITE, seed=0, run_info=facts, gate_conditions=gate).write(
        folder
    )
    names = [stage.name for stage in plan.stages]
    for name in names:
        place = folder / "stages" / name
        place.mkdir(parents=True)
        steps = [entry(step, updates) for step in range(1, updates + 1)]
        (place / "steps.jsonl").write_text("".join(json.dumps(one) + "\n" for one in steps))
        (place / "trained.json").write_text(
            json.dumps({"steps": updates, "loss": 0.5, "seconds": 75.2, "tokens": 4096})
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
        ("spec", spec or spec_of()),
        ("environment", {"harness": "0.1.0", "python": "3.11"}),
        ("data", data),
    ):
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "predictions").mkdir()
    for number, stage in enumerate(found):
        for one in stage:
            rows = [{"header": {"suite": one.suite, "whole": True}}]
            rows += [{"id": i.id, "prompt": i.prompt, "reference": i.reference, "answer": i.answer} for i in one.items]
            file = folder / "predictions" / f"{one.suite}-stage{number}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _spoken(item, text):
    return replace(item, prompt=text(item.prompt), reference=text(item.reference), answer=text(item.answer))


def entry(step, updates):
    """A line of a stage's log."""
    return {
        "step": step,
        "loss": 2.0 * math.exp(-step / 30) + 0.05 * math.sin(7 * step),
        "learning_rate": 2e-4 * (1 - step / updates),
        "grad_norm": 1.0,
        "penalty/ewc": 0.001 * step,
        "penalty/kl": 0.02,
    }


def experiment(folder, shares=(None, 0.01, 0.1), *, specs=None, missing=None, text=str):
    """An experiment's folder: `naive` and an arm for each share, the more of it the less gained and forgotten."""
    runs = {}
    for number, share in enumerate(shares):
        name = "naive" if share is None else f"share={share}"
        gain, rise = 0.3 - 0.02 * number, 5.0 / (1 + number)
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
        spec = spec_of(mitigations={"lora": {"rank": 16}} | ({} if share is None else {"mixing": {"share": share}}))
        spec = specs[name] if specs else spec
        place = finished(folder / "arms" / name, evaluations=evaluations, spec=spec, updates=3, text=text)
        runs[name] = finished_run.load_finished_run(place)
    axes = {"gain_score": "helpdesk/rougeL", "forgetting_score": "general/response_perplexity"}
    arm_comparison.compare_arms(
        "sweep", folder, runs, example_run.BY_SUITE, arm_comparison.ComparisonSettings(**axes), seed=0, missing=missing
    ).write(folder)
    return folder
