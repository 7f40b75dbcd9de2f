"""Spec + registry → `Plan`: the stages and suites that will run, with every name checked.

Says what a schema cannot: that a suite names a source that is there, that nobody is examined on what was trained.
Imports nothing heavy: `harness validate` ends here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from harness import gate
from harness.errors import HarnessError, raise_all
from harness.interfaces.mitigation import Mitigation
from harness.registry import Registry
from harness.spec import arms, shares
from harness.spec.json_locations import JsonPath
from harness.spec.schema import fill_defaults, iter_leaves
from harness.spec.spec import Spec
from harness.types import Plan, Stage, Suite


def build_plan(spec: Spec, registry: Registry) -> Plan:
    """The plan of a spec. Raises HarnessError with every name that does not fit."""
    document = spec.document
    raise_all(_unknown_sources(spec))
    mode, options = _single_item(document["mode"])
    stages: tuple[Stage, ...] = registry.create("modes", mode, options).stages()
    stages = tuple(replace(stage, train=_merge_train_settings(document["train"], stage.train)) for stage in stages)
    names = [stage.name for stage in stages]
    for name in names:
        if names.count(name) > 1:
            raise HarnessError(spec.where(("mode", mode)), f"two stages are called {name!r}", "rename one of them")
    stages = tuple(_with_stage_mitigations(spec, mode, number, stage) for number, stage in enumerate(stages))
    stages = _apply_mitigations(spec, registry, stages)
    raise_all(_invalid_stage_sources(spec, mode, stages))
    raise_all(_adapter_conflicts(spec, registry, mode, stages))
    at = spec.where(("mitigations",)) if document["mitigations"] else spec.where(("mode", mode))
    wrong = [error for stage in stages for error in shares.validate_shares(stage)]
    raise_all(HarnessError(f"{at}: {error.where}", error.what, error.hint) for error in wrong)
    suites = tuple(_build_suite(name, suite) for name, suite in document["evaluate"].items())
    raise_all(_suites_on_training_rows(spec, stages, suites))
    raise_all(_unknown_suites(spec, mode, stages))
    raise_all(
        gate.validate_gate(document["gate"], [spec.where(("gate", index)) for index in range(len(document["gate"]))])
    )
    raise_all(_registered_without_model(spec))
    if document["arms"] is not None:
        raise_all(arms.validate_axes(document["arms"], document["evaluate"], spec.where(("arms",))))
    return Plan(
        name=document["name"],
        seed=document["seed"],
        model=document["model"],
        template=_single_item(document["template"]),
        sources={name: _single_item(source) for name, source in document["sources"].items()},
        mitigations=document["mitigations"],
        train=document["train"],
        stages=stages,
        suites=suites,
        warnings=tuple(_plan_warnings(spec, registry, stages, suites)),
    )


def create_mitigations(options: Mapping[str, Mapping[str, Any]], registry: Registry) -> list[tuple[str, Mitigation]]:
    """The mitigations of a spec, made, in the order in which they are applied: never that of the file."""
    made = [(name, registry.create("mitigations", name, given)) for name, given in options.items()]
    return sorted(made, key=lambda pair: (pair[1].priority, pair[0]))


def list_named_sources(spec: Spec, section: str | None = None) -> tuple[str, ...]:
    """The sources that the spec names, in order, each once. section: only below such a key, e.g. `mitigations`, those
    of single stages included."""
    found = [value for path, _, value in _iter_source_leaves(spec) if section is None or section in path[:-1]]
    return tuple(dict.fromkeys(found))


def stage_mitigations(plan: Plan, stage: Stage) -> Mapping[str, Mapping[str, Any]]:
    """The mitigations at work in a stage: name -> options."""
    return plan.mitigations if stage.mitigations is None else stage.mitigations


def _with_stage_mitigations(spec: Spec, mode: str, stage_index: int, stage: Stage) -> Stage:
    """The stage with every option of its mitigations: the spec's own, and over them those in which it differs."""
    if stage.mitigations is None:
        return stage
    common, known = spec.document["mitigations"], spec.schema["properties"]["mitigations"]["properties"]
    made: dict[str, Mapping[str, Any]] = {name: one for name, one in common.items() if name not in stage.mitigations}
    for name, own in stage.mitigations.items():
        if own is None:
            continue
        options = fill_defaults({**common.get(name, {}), **own}, known[name], spec.schema)
        lacking = [key for key in known[name]["required"] if key not in options]
        if lacking:
            where = spec.where(("mode", mode, "stages", stage_index, "mitigations", name))
            raise HarnessError(
                where, f"{lacking[0]!r} is missing", f"add it: {known[name]['properties'][lacking[0]]['description']}"
            )
        made[name] = options
    return replace(stage, mitigations=made)


def _apply_mitigations(spec: Spec, registry: Registry, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages as the mitigations lay them out, each mitigation in the stages that have it, with their options."""
    each = [spec.document["mitigations"] if stage.mitigations is None else stage.mitigations for stage in stages]
    at: list[tuple[str, Mapping[str, Any]]] = []
    for options in each:
        active = create_mitigations(options, registry)
        for name, mitigation in active:
            try:
                mitigation.check_compatible({other: one for other, one in active if other != name})
            except HarnessError as error:
                raise _error_at_mitigation(spec, name, error) from error
        at += [(name, options[name]) for name, _ in active if (name, options[name]) not in at]
    made = [(name, options, registry.create("mitigations", name, options)) for name, options in at]
    for name, options, mitigation in sorted(made, key=lambda one: (one[2].priority, one[0])):
        try:
            laid = mitigation.transform_stages(stages)
        except HarnessError as error:
            raise _error_at_mitigation(spec, name, error) from error
        if len(laid) != len(stages):
            what = f"it makes {len(laid)} stages of {len(stages)}"
            raise HarnessError(
                spec.where(("mitigations", name)), what, "mend that plugin: a mitigation keeps the stages"
            )
        stages = tuple(
            new if own.get(name) == options else old for new, old, own in zip(laid, stages, each, strict=True)
        )
    return stages


def _error_at_mitigation(spec: Spec, name: str, error: HarnessError) -> HarnessError:
    """The error at its place in the spec; it may name the very option."""
    own = error.where.startswith(f"mitigations.{name}")
    at = tuple(error.where.split(".")) if own else ("mitigations", name)
    return HarnessError(spec.where(at), error.what, error.hint)


def _unknown_suites(spec: Spec, mode: str, stages: tuple[Stage, ...]) -> Iterator[HarnessError]:
    known = list(spec.document["evaluate"])
    hint = f"the spec's suites are: {', '.join(known) or 'none'}"
    for stage in stages:
        for name in stage.suites:
            if name not in known:
                yield HarnessError(spec.where(("mode", mode)), f"the stage {stage.name!r} has no suite {name!r}", hint)
    for index, condition in enumerate(spec.document["gate"]):
        suite = condition["score"].partition("/")[0]
        if condition["summary"] is None and "/" in condition["score"] and suite not in known:
            yield HarnessError(spec.where(("gate", index, "score")), f"there is no suite {suite!r}", hint)


def _merge_train_settings(common_settings: Mapping[str, Any], stage_settings: Mapping[str, Any]) -> dict[str, Any]:
    """The stage's own settings over the common ones; its own epochs also over common steps."""
    steps = {"steps": None} if "epochs" in stage_settings else {}
    return {**common_settings, **steps, **stage_settings}


def _single_item(mapping: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    ((name, options),) = mapping.items()
    return name, options


def _build_suite(name: str, suite_spec: Mapping[str, Any]) -> Suite:
    spoken = {
        metric: {**options, "lang": suite_spec["lang"]} if options.get("lang") == "auto" else options
        for metric, options in suite_spec["metrics"].items()
    }
    own = None if suite_spec["template"] is None else _single_item(suite_spec["template"])
    return Suite(name=name, **{**suite_spec, "metrics": spoken, "template": own})


def _iter_source_leaves(spec: Spec) -> Iterator[tuple[JsonPath, Mapping[str, Any], str]]:
    for path, leaf, value in iter_leaves(spec.document, spec.schema, spec.schema):
        if leaf.get("format") == "source" and value is not None:
            yield path, leaf, value


def _unknown_sources(spec: Spec) -> Iterator[HarnessError]:
    known = list(spec.document["sources"])
    for path, _, value in _iter_source_leaves(spec):
        if value not in known:
            near = get_close_matches(value, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the spec's sources are: {', '.join(known)}"
            yield HarnessError(spec.where(path), f"there is no source {value!r}", hint)


def _invalid_stage_sources(spec: Spec, mode: str, stages: tuple[Stage, ...]) -> Iterator[HarnessError]:
    """Sources of the finished stages that are not there (a plugin named them) or that stand twice in one stage."""
    where = spec.where(("mode", mode))
    for stage in stages:
        named = [part.source for part in stage.sources]
        for source in dict.fromkeys(named):
            if source not in spec.document["sources"]:
                yield HarnessError(where, f"the stage {stage.name!r} has no source {source!r}", "add it to sources")
            if named.count(source) > 1:
                what = f"the source {source!r} stands twice in the stage {stage.name!r}"
                yield HarnessError(where, what, "name it once, as domain or as general")


def _adapter_conflicts(spec: Spec, registry: Registry, mode: str, stages: tuple[Stage, ...]) -> Iterator[HarnessError]:
    """Stages that ask for another adapter where there is none, or for another shape of weights that are to go on."""
    each = [spec.document["mitigations"] if one.mitigations is None else one.mitigations for one in stages]
    for number, stage in enumerate(stages[1:], start=1):
        before, after, where = each[number - 1], each[number], spec.where(("mode", mode, "stages", number))
        shaping = {
            name
            for options in (before, after)
            for name, made in create_mitigations(options, registry)
            if type(made).prepare_model is not Mitigation.prepare_model
        }
        adapters = {
            name
            for options in (before, after)
            for name, made in create_mitigations(options, registry)
            if made.adds_adapter
        }
        # What was trained without an adapter may be what the first one begins with.
        there = adapters & (before.keys() if stage.adapter == "new" else before.keys() | after.keys())
        if stage.adapter != "continue" and not there:
            what = f"the stage {stage.name!r} asks for adapter {stage.adapter!r}, and the stage before it trains none"
            yield HarnessError(where, what, "add the mitigation 'lora', or leave 'adapter' at 'continue'")
        for name in sorted(shaping) if stage.adapter == "continue" else ():
            if before.get(name) != after.get(name):
                what = f"the stage {stage.name!r} gives {name!r} other options while the same weights go on"
                other = 'give the stage "adapter": "merge" or "new"'
                yield HarnessError(where, what, other if shaping & before.keys() else "give it to every stage")


def _suites_on_training_rows(
    spec: Spec, stages: tuple[Stage, ...], suites: tuple[Suite, ...]
) -> Iterator[HarnessError]:
    trained = {part.source for stage in stages for part in stage.sources}
    for suite in suites:
        kind, options = _single_item(spec.document["sources"][suite.source])
        if suite.source in trained and not options["held_out"]:
            what = f"the suite {suite.name!r} would examine the model on rows of {suite.source!r} that it is trained on"
            hint = f"""give sources.{suite.source}.{kind} "held_out": 0.1, or name a source of held-out rows"""
            yield HarnessError(spec.where(("evaluate", suite.name, "source")), what, hint)


def _registered_without_model(spec: Spec) -> Iterator[HarnessError]:
    track = spec.document["track"]
    if track["register"] is not None and track["model"] == "none":
        what = f"no model is sent to MLflow that could be registered as {track['register']!r}"
        yield HarnessError(spec.where(("track", "register")), what, 'set track.model to "files" or "transformers"')


def _plan_warnings(
    spec: Spec, registry: Registry, stages: tuple[Stage, ...], suites: tuple[Suite, ...]
) -> Iterator[str]:
    used = {part.source for stage in stages for part in stage.sources} | set(list_named_sources(spec))
    for name in spec.document["sources"]:
        if name not in used:
            yield f"the source {name!r} is used by nothing"
    if not any(suite.role == "general" for suite in suites):
        yield 'no suite has "role": "general", so what the model forgets is not measured'
    told = set()
    for stage in stages:
        for key, (low, high) in _typical_ranges(spec, registry, stage).items():
            value = stage.train[key]
            if value is not None and not low <= value <= high and (key, value) not in told:
                told.add((key, value))
                yield f"train.{key} is {value:g}; usual is {low:g} to {high:g}"


def _typical_ranges(spec: Spec, registry: Registry, stage: Stage) -> dict[str, tuple[float, float]]:
    """The usual range of each setting beside the mitigations of a stage."""
    properties = spec.schema["properties"]["train"]["properties"]
    usual = {key: (option["usual"][0], option["usual"][1]) for key, option in properties.items() if "usual" in option}
    if stage.train["steps"] is not None:
        usual.pop("epochs")
    for name in spec.document["mitigations"] if stage.mitigations is None else stage.mitigations:
        for key, bounds in registry.get("mitigations", name).typical_ranges.items():
            usual[key.removeprefix("train.")] = bounds
    return usual
