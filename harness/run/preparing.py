"""Everything up to the proven data: the plan, the components that it names, the tokenizer, the rows.

Loads no weights and makes no folder of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import data, gate, model, plan
from harness.contracts import Event, Metric, Plan, Progress, Suite, Template
from harness.data import fingerprints
from harness.errors import HarnessError, raise_all
from harness.ranks import ALONE, Ranks
from harness.registry import Registry
from harness.run import watching
from harness.spec import Spec


class ModelUnreachable(HarnessError):
    """The hub model that the spec names cannot be had from here."""


@dataclass(frozen=True)
class Prepared:
    """All that is known before a model is loaded: the plan, its data, and the components that it names.

    templates: suite -> its own template, for suites that have one.
    """

    plan: Plan
    location: model.Location
    tokenizer: Any
    template: Template
    data: data.Prepared
    metrics: Mapping[str, Mapping[str, Metric]]
    templates: Mapping[str, Template] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """The longest `max_length` of all stages: at which suites are evaluated."""
        return max(int(stage.train["max_length"]) for stage in self.plan.stages)

    def discard(self, why: str = "") -> None:
        """Remove the conversations from the disk at once; why: of no matter here."""
        if self.data.keeping is not None:
            self.data.keeping.cleanup()


def prepare(spec: Spec, registry: Registry, *, mixed: bool = True, ranks: Ranks = ALONE) -> Prepared:
    """Everything up to the proven data. Raises HarnessError for bad input.

    mixed: False leaves the shares out, so that rows can be looked at whose mixture cannot be met. ranks: the processes
    that share the training. Every bad row of a source is written to `<output>/<name>-rejected/<source>.jsonl`, by the
    main one.
    """
    progress = progress_of(registry)
    planned = plan.make(spec, registry)
    if not mixed:
        planned = replace(planned, stages=tuple(replace(one, shares=()) for one in planned.stages))
    _warn(registry, planned.warnings)
    metrics = metrics_of(planned, registry)
    raise_all([*_wrong_gate(spec, metrics), *_one_answer_for_all(spec, planned.suites)])
    raise_all([*watching.wrong(spec, planned, metrics), *_lacking(spec, metrics)])
    template = registry.make("templates", *planned.template)
    kind: type[HarnessError] = HarnessError
    try:
        location = model.resolve(planned.model, output=spec.document["output"], progress=progress)
        if (location.below or location).kind == "hub":
            kind = ModelUnreachable
        tokenizer = model.tokenizer(location, planned.model)
    except HarnessError as error:
        raise kind(f"{spec.where(('model', 'path'))}: {error.where}", error.what, error.hint) from error
    model.dtype(planned.train["precision"], model.device())
    templates = {one.name: registry.make("templates", *one.template) for one in planned.suites if one.template}
    if not spec.document["checks"]["other_template"]:
        folder = Path(location.path) if location.kind in ("folder", "run") else None
        raise_all(fingerprints.others(planned, template, templates, tokenizer, folder, spec.where))
    sources = {name: registry.make("sources", *given) for name, given in planned.sources.items()}
    prepared = data.prepare(
        planned,
        sources,
        template,
        tokenizer,
        also=plan.sources_named(spec, "mitigations"),
        templates=templates,
        rejected=Path(spec.document["output"]) / f"{planned.name}-rejected" if ranks.main else None,
        processes=ranks.count,
        progress=progress,
    )
    _warn(registry, prepared.warnings)
    return Prepared(planned, location, tokenizer, template, prepared, metrics, templates)


def find(spec: Spec, ready: Prepared, registry: Registry) -> data.Findings:
    """What the wording of the prepared data gives away; its warnings are told, its failures are for the caller."""
    found = data.find(
        ready.data.training,
        ready.data.suites,
        spec.document["checks"],
        seed=ready.plan.seed,
        progress=progress_of(registry),
    )
    _warn(registry, found.warnings)
    return found


def metrics_of(planned: Plan, registry: Registry) -> dict[str, dict[str, Metric]]:
    """The metrics of every suite, made: suite -> name -> instance."""
    return {
        suite.name: {name: registry.make("metrics", name, options) for name, options in suite.metrics.items()}
        for suite in planned.suites
    }


def progress_of(registry: Registry) -> Progress:
    """Progress that is told to every listener."""

    def progress(phase: str, done: int, total: int, note: str = "", unit: str = "") -> None:
        facts = {"phase": phase, "done": done, "total": total, "note": note, "unit": unit}
        registry.observe(Event("progress", data=facts))

    return progress


def _warn(registry: Registry, warnings: Iterable[str]) -> None:
    """Tell the listeners of warnings that stand in `data.json` too: there with every row that they name."""
    for warning in warnings:
        text, *rows = warning.split("\n")
        registry.observe(Event("warning", data={"text": text, "rows": rows}))


def page(registry: Registry, write: Callable[[Path], Path], folder: Path) -> None:
    """Make the page of a finished run. What fails there is told, and the run stays finished."""
    try:
        write(folder)
    except (HarnessError, OSError) as error:
        text = f"report.html could not be made: {error}; try again: harness report {folder}"
        registry.observe(Event("warning", data={"text": text}))


def _lacking(spec: Spec, metrics: Mapping[str, Mapping[str, Metric]]) -> Iterator[HarnessError]:
    """What metrics need and is not here."""
    for suite, made in metrics.items():
        for name, metric in made.items():
            try:
                metric.check()
            except HarnessError as error:
                place = spec.where(("evaluate", suite, "metrics", name))
                yield HarnessError(f"{place}: {error.where}", error.what, error.hint)


def _wrong_gate(spec: Spec, metrics: Mapping[str, Mapping[str, Metric]]) -> Iterator[HarnessError]:
    """Conditions that no run of the spec could be judged by: told now, and not after hours of training."""
    given = {f"{suite}/{name}" for suite, made in metrics.items() for one in made.values() for name in one.names}
    bare = {score.partition("/")[2] for score in given}
    for index, condition in enumerate(spec.document["gate"]):
        known = given if condition["summary"] is None else bare
        if condition["score"] not in known:
            what = f"no metric gives the score {gate.key_of(condition)!r}"
            hint = f"there are: {', '.join(sorted(known)) or 'none'}"
            yield HarnessError(spec.where(("gate", index, "score")), what, hint)
        elif _is_directed(condition) and not _has_direction(condition, metrics):
            what, hint = f"neither direction of {gate.key_of(condition)!r} is better", "ask how far it rises or falls"
            yield HarnessError(spec.where(("gate", index, "score")), what, hint)


def _is_directed(condition: Mapping[str, Any]) -> bool:
    return condition["summary"] is not None or any(condition.get(test) is not None for test in gate.DIRECTED)


def _has_direction(condition: Mapping[str, Any], suites: Mapping[str, Mapping[str, Metric]]) -> bool:
    """Whether the condition's score is better one way, in its suite or, of a summary, in any."""
    suite, _, name = condition["score"].rpartition("/")
    found = [one for other, made in suites.items() if suite in ("", other) for one in made.values()]
    return any(one.higher_is_better is not None for one in found if name in one.names)


def _one_answer_for_all(spec: Spec, suites: tuple[Suite, ...]) -> Iterator[HarnessError]:
    """Suites whose server would answer alike for the base and the tuned model."""
    for suite in suites:
        if suite.server is not None and "{stage}" not in suite.server["model"]:
            where = spec.where(("evaluate", suite.name, "server", "model"))
            what = f"the server's model {suite.server['model']!r} is the same before and after training"
            yield HarnessError(where, what, "put {stage} into the name, or use `harness evaluate` for one model")
