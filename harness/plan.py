"""Spec + registry → `Plan`: the stages and suites that will run, with every name checked.

Says what a schema cannot: that a suite names a source that is there, that nobody is examined on what was trained.
Imports nothing heavy: `harness validate` ends here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from harness.contracts import Mitigation, Plan, Stage, Suite
from harness.errors import HarnessError, raise_all
from harness.places import Path
from harness.registry import Registry
from harness.schema import leaves
from harness.spec import Spec


def make(spec: Spec, registry: Registry) -> Plan:
    """The plan of a spec. Raises HarnessError with every name that does not fit."""
    document = spec.document
    raise_all(_unknown_sources(spec))
    mode, options = _only(document["mode"])
    stages: tuple[Stage, ...] = registry.make("modes", mode, options).stages()
    stages = tuple(replace(stage, train=_settings(document["train"], stage.train)) for stage in stages)
    names = [stage.name for stage in stages]
    for name in names:
        if names.count(name) > 1:
            raise HarnessError(spec.where(("mode", mode)), f"two stages are called {name!r}", "rename one of them")
    for name, mitigation in mitigations(document["mitigations"], registry):
        try:
            stages = mitigation.plan(stages)
        except HarnessError as error:
            raise HarnessError(spec.where(("mitigations", name)), error.what, error.hint) from error
    raise_all(_misplaced(spec, mode, stages))
    suites = tuple(_suite(name, suite) for name, suite in document["evaluate"].items())
    raise_all(_examined_on_training(spec, stages, suites))
    return Plan(
        name=document["name"],
        seed=document["seed"],
        model=document["model"],
        template=_only(document["template"]),
        sources={name: _only(source) for name, source in document["sources"].items()},
        mitigations=document["mitigations"],
        train=document["train"],
        stages=stages,
        suites=suites,
        warnings=tuple(_warnings(spec, registry, stages, suites)),
    )


def mitigations(options: Mapping[str, Mapping[str, Any]], registry: Registry) -> list[tuple[str, Mitigation]]:
    """The mitigations of a spec, made, in the order in which they are applied: never that of the file."""
    made = [(name, registry.make("mitigations", name, given)) for name, given in options.items()]
    return sorted(made, key=lambda pair: (pair[1].order, pair[0]))


def sources_named(spec: Spec, *under: str) -> tuple[str, ...]:
    """The sources that a part of the spec names, e.g. those that a mitigation reads; in order, each once."""
    found = [value for path, _, value in _source_leaves(spec) if path[: len(under)] == under]
    return tuple(dict.fromkeys(found))


def _settings(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The stage's own settings over the common ones; its own epochs also over common steps."""
    steps = {"steps": None} if "epochs" in own else {}
    return {**common, **steps, **own}


def _only(slot: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    ((name, options),) = slot.items()
    return name, options


def _suite(name: str, given: Mapping[str, Any]) -> Suite:
    return Suite(
        name=name,
        source=given["source"],
        role=given["role"],
        metrics=given["metrics"],
        limit=given["limit"],
        max_new_tokens=given["max_new_tokens"],
        batch_size=given["batch_size"],
    )


def _source_leaves(spec: Spec) -> Iterator[tuple[Path, Mapping[str, Any], str]]:
    for path, leaf, value in leaves(spec.document, spec.schema, spec.schema):
        if leaf.get("format") == "source" and value is not None:
            yield path, leaf, value


def _unknown_sources(spec: Spec) -> Iterator[HarnessError]:
    known = list(spec.document["sources"])
    for path, _, value in _source_leaves(spec):
        if value not in known:
            near = get_close_matches(value, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the spec's sources are: {', '.join(known)}"
            yield HarnessError(spec.where(path), f"there is no source {value!r}", hint)


def _misplaced(spec: Spec, mode: str, stages: tuple[Stage, ...]) -> Iterator[HarnessError]:
    """Sources of the finished stages that are not there (a plugin named them) or that stand twice in one stage."""
    where = spec.where(("mode", mode))
    for stage in stages:
        named = [part.source for part in stage.parts]
        for source in dict.fromkeys(named):
            if source not in spec.document["sources"]:
                yield HarnessError(where, f"the stage {stage.name!r} has no source {source!r}", "add it to sources")
            if named.count(source) > 1:
                what = f"the source {source!r} stands twice in the stage {stage.name!r}"
                yield HarnessError(where, what, "name it once, as domain or as general")


def _examined_on_training(spec: Spec, stages: tuple[Stage, ...], suites: tuple[Suite, ...]) -> Iterator[HarnessError]:
    trained = {part.source for stage in stages for part in stage.parts}
    for suite in suites:
        kind, options = _only(spec.document["sources"][suite.source])
        if suite.source in trained and not options["held_out"]:
            what = f"the suite {suite.name!r} would examine the model on rows of {suite.source!r} that it is trained on"
            hint = f"""give sources.{suite.source}.{kind} "held_out": 0.1, or name a source of held-out rows"""
            yield HarnessError(spec.where(("evaluate", suite.name, "source")), what, hint)


def _warnings(spec: Spec, registry: Registry, stages: tuple[Stage, ...], suites: tuple[Suite, ...]) -> Iterator[str]:
    used = {part.source for stage in stages for part in stage.parts} | set(sources_named(spec))
    for name in spec.document["sources"]:
        if name not in used:
            yield f"the source {name!r} is used by nothing"
    if not any(suite.role == "general" for suite in suites):
        yield 'no suite has "role": "general", so what the model forgets is not measured'
    usual = _usual_ranges(spec, registry)
    told = set()
    for stage in stages:
        for key, (low, high) in usual.items():
            value = stage.train[key]
            if value is not None and not low <= value <= high and (key, value) not in told:
                told.add((key, value))
                yield f"train.{key} is {value:g}; usual is {low:g} to {high:g}"


def _usual_ranges(spec: Spec, registry: Registry) -> dict[str, tuple[float, float]]:
    properties = spec.schema["properties"]["train"]["properties"]
    usual = {key: (option["usual"][0], option["usual"][1]) for key, option in properties.items() if "usual" in option}
    if spec.document["train"]["steps"] is not None:
        usual.pop("epochs")
    for name in spec.document["mitigations"]:
        for key, bounds in registry.get("mitigations", name).usual.items():
            usual[key.removeprefix("train.")] = bounds
    return usual
