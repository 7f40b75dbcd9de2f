"""Folders of finished runs to compare: real metrics over generated answers, without training."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

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


def random_sentence(generator, num_words=8):
    """Return words of `SENTENCE` in random order."""
    return " ".join(generator.choice(WORDS) for _ in range(num_words))


def build_items(count, skill, seed, first=0, nll=20.0):
    """Build the items of a suite, with their number as id.

    skill: Fraction of the answers that equal the reference; the others contain its first half.
    """
    items = []
    for number in range(first, first + count):
        reference = random_sentence(random.Random(f"item {number}"))
        generator = random.Random(f"answer {number} {seed}")
        words = reference.split()
        answer = (
            reference
            if generator.random() < skill
            else " ".join(words[:4] + [generator.choice(WORDS) for _ in range(4)])
        )
        items.append(
            Item(f"{number:016x}", f"question {number}?", reference, answer, "eos", nll + generator.random(), 10, 8)
        )
    return tuple(items)


def run_spec(name="made", suites=("desk",), metrics=None, **changes):
    """Return the keys of a filled spec that a comparison reads."""
    suite_settings = {"source": "desk", "role": "domain", "metrics": metrics or METRICS, "lang": "auto"}
    return {
        "name": name,
        "seed": 0,
        "model": {"path": "some/model"},
        "mode": {"mixed": {"domain": ["desk"]}},
        "mitigations": {"lora": {"rank": 16}},
        "train": {"learning_rate": 2e-4, "epochs": 2},
        "evaluate": {
            suite: {**suite_settings, "role": "domain" if suite == suites[0] else "general"} for suite in suites
        },
        **changes,
    }


def write_run(folder, stages, document=None, finished=True, predictions=True):
    """Write the folder of a run. stages: One mapping per stage, suite -> items, the base model first."""
    folder = Path(folder)
    document = document or run_spec(suites=tuple(stages[0]))
    evaluations = []
    for stage_index, suites in enumerate(stages):
        stage = []
        for suite, suite_items in suites.items():
            metrics = {
                name: create_metric(REGISTRY, name, options)
                for name, options in document["evaluate"][suite]["metrics"].items()
            }
            scores = scoring.score_items(suite_items, metrics, suite=suite, stage=stage_index)
            stage.append(Evaluation(stage_index, suite, suite_items, scores))
            if predictions:
                write_predictions(folder, suite, stage_index, suite_items)
        evaluations.append(tuple(stage))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(json.dumps(document))
    write_scores(evaluations, ["base", *(f"stage-{k}" for k in range(1, len(stages)))], folder)
    if finished:
        write_json(folder / "report.json", report_json(evaluations))
    return folder


def write_predictions(folder, suite, stage_index, items):
    """Write the items of a suite as an evaluation does."""
    file = predictions_module.predictions_path(folder / "predictions", suite, stage_index)
    file.parent.mkdir(parents=True, exist_ok=True)
    header = {"suite": suite, "stage": stage_index, "items": len(items), "whole": True, "identity": {}, "settings": {}}
    predictions_module.header_path(file).write_text(json.dumps(header))
    lines = [{"id": item.id, **asdict(item)} for item in items]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def report_json(evaluations):
    """Return the keys of a report that a comparison reads."""
    changes = []
    for before, after in zip(evaluations[0], evaluations[-1], strict=True):
        for old, new in zip(before.scores, after.scores, strict=True):
            delta = new.value - old.value
            labels = {"suite": after.suite, "name": new.name, "verdict": "better"}
            changes.append({**labels, "after": {"value": new.value}, "difference": {"value": delta}})
    return {"run": {"seconds": 61.0}, "changes": changes}


def write_finished_run(folder, skill, seed, count=60, **options):
    """Write a finished run with one suite, `desk`, whose base model has a skill of 0.1."""
    stages = [{"desk": build_items(count, 0.1, "base")}, {"desk": build_items(count, skill, seed)}]
    return write_run(folder, stages, **options)
