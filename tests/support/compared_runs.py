"""The folder of a finished run made by hand: real metrics over made-up answers, in the files that a run leaves.

No test module: those that need it run this file by its path.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

from harness.evaluation import predictions as predictions_module
from harness.evaluation import scoring
from harness.evaluation.rescore import create_metric
from harness.registry import discover_plugins
from harness.types import Evaluation, Item
from harness.utils.json_files import write_json, write_scores

SENTENCE = "the cat sat on a mat while two dogs barked at the old moon and nobody in town could sleep"
WORDS = SENTENCE.split()
METRICS = {
    "exact_match": {},
    "bleu": {},
    "chrf": {},
    "rouge": {},
    "response_perplexity": {},
    "length_ratio": {},
}
REGISTRY = discover_plugins()


def sentence(random_, words=8):
    return " ".join(random_.choice(WORDS) for _ in range(words))


def items(count, skill, seed, first=0, nll=20.0):
    """Items of a suite. skill: share of answers that are the reference; the rest have half of it. Ids are by number."""
    made = []
    for number in range(first, first + count):
        reference = sentence(random.Random(f"item {number}"))
        luck = random.Random(f"answer {number} {seed}")
        words = reference.split()
        answer = reference if luck.random() < skill else " ".join(words[:4] + [luck.choice(WORDS) for _ in range(4)])
        made.append(Item(f"{number:016x}", f"question {number}?", reference, answer, "eos", nll + luck.random(), 10, 8))
    return tuple(made)


def spec(name="made", suites=("desk",), metrics=None, **changes):
    """A filled spec of a run, as far as a comparison reads it."""
    one = {"source": "desk", "role": "domain", "metrics": metrics or METRICS, "lang": "auto"}
    return {
        "name": name,
        "seed": 0,
        "model": {"path": "some/model"},
        "mode": {"mixed": {"domain": ["desk"]}},
        "mitigations": {"lora": {"rank": 16}},
        "train": {"learning_rate": 2e-4, "epochs": 2},
        "evaluate": {suite: {**one, "role": "domain" if suite == suites[0] else "general"} for suite in suites},
        **changes,
    }


def write(folder, stages, document=None, finished=True, predictions=True):
    """A run's folder. stages: one mapping a stage, suite -> items, the base first."""
    folder = Path(folder)
    document = document or spec(suites=tuple(stages[0]))
    evaluations = []
    for number, suites in enumerate(stages):
        stage = []
        for suite, some in suites.items():
            metrics = {
                name: create_metric(REGISTRY, name, options)
                for name, options in document["evaluate"][suite]["metrics"].items()
            }
            scores = scoring.score_items(some, metrics, seed=0, suite=suite, stage=number)
            stage.append(Evaluation(number, suite, some, scores))
            if predictions:
                keep(folder, suite, number, some)
        evaluations.append(tuple(stage))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps(document))
    write_scores(evaluations, ["base", *(f"stage-{k}" for k in range(1, len(stages)))], folder)
    if finished:
        write_json(folder / "report.json", report(evaluations))
    return folder


def keep(folder, suite, number, some):
    """The items of a suite, as an evaluation leaves them."""
    file = predictions_module.predictions_path(folder / "predictions", suite, number)
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"header": {"suite": suite, "stage": number, "items": len(some), "whole": True}}]
    lines += [{"id": item.id, **asdict(item)} for item in some]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def report(evaluations):
    """As much of a report as a comparison reads."""
    changes = []
    for before, after in zip(evaluations[0], evaluations[-1], strict=True):
        for old, new in zip(before.scores, after.scores, strict=True):
            delta = new.value - old.value
            named = {"suite": after.suite, "name": new.name, "verdict": "better"}
            changes.append({**named, "after": {"value": new.value}, "difference": {"value": delta}})
    return {"run": {"seconds": 61.0}, "changes": changes}


def run(folder, skill, seed, count=60, **options):
    """A finished run over one suite, `desk`, whose base model knows little."""
    stages = [{"desk": items(count, 0.1, "base")}, {"desk": items(count, skill, seed)}]
    return write(folder, stages, **options)


MADE = SimpleNamespace(write=write, items=items, spec=spec, run=run)
