"""Build the plan of a spec: the stages and suites that will run, with every name checked.

Checks what a JSON Schema cannot: that a suite's source exists, that no suite measures training rows. Imports nothing
heavy, since `harness validate` uses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, get_args

from harness import gate
from harness.errors import ComponentError, HarnessError, raise_all
from harness.interfaces.mitigation import Mitigation
from harness.plugin_versions import component_names
from harness.registry import Registry
from harness.spec import arms, shares
from harness.spec.held_out_options import invalid_held_out_errors
from harness.spec.json_locations import JsonPath
from harness.spec.row_writers import invalid_writer_errors
from harness.spec.schema import expand_shorthand, fill_defaults, iter_leaves
from harness.spec.spec import Spec
from harness.spec_keys import evaluation, training
from harness.types import Plan, Role, Stage, Suite


def build_plan(spec: Spec, registry: Registry) -> Plan:
    """Build the plan of a spec.

    Raises:
        HarnessError: Every name that does not exist and every combination that is not allowed.
    """
    document = spec.document
    raise_all([*_unknown_sources(spec), *invalid_held_out_errors(spec)])
    mode, options = _single_item(document["mode"])
    stages: tuple[Stage, ...] = registry.create("modes", mode, options).stages()
    raise_all(_invalid_stages(spec.where(("mode", mode)), stages))
    stages = tuple(replace(stage, train=_merge_train_settings(spec, stage.train)) for stage in stages)
    names = [stage.name for stage in stages]
    for name in names:
        if names.count(name) > 1:
            raise HarnessError(spec.where(("mode", mode)), f"two stages have the name {name!r}", "rename one of them")
    stages = tuple(_with_stage_mitigations(spec, mode, index, stage) for index, stage in enumerate(stages))
    stages, without_effect = _apply_mitigations(spec, registry, stages)
    raise_all(_invalid_stages(spec.where(("mode", mode)), stages))
    raise_all(_invalid_stage_sources(spec, mode, stages))
    raise_all(_invalid_writers(spec, registry, stages))
    raise_all(_adapter_conflicts(spec, registry, mode, stages))
    where = spec.where(("mitigations",)) if document["mitigations"] else spec.where(("mode", mode))
    share_errors = [error for stage in stages for error in shares.validate_shares(stage)]
    raise_all(HarnessError(f"{where}: {error.where}", error.what, error.hint) for error in share_errors)
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
        mode=(mode, options),
        stages=stages,
        suites=suites,
        warnings=(
            *(
                f"mitigations.{name} changes no stage; remove it, or add the stages that it needs (mode continual)"
                for name in without_effect
            ),
            *_plan_warnings(spec, registry, stages, suites),
        ),
    )


def create_mitigations(options: Mapping[str, Mapping[str, Any]], registry: Registry) -> list[tuple[str, Mitigation]]:
    """Create mitigations, in the order in which they are applied: by priority, then by name.

    Args:
        options: Name -> options.
        registry: The plugin registry.
    """
    return _in_order([(name, registry.create("mitigations", name, own)) for name, own in options.items()])


def _in_order(mitigations: list[tuple[str, Mitigation]]) -> list[tuple[str, Mitigation]]:
    return sorted(mitigations, key=lambda pair: (pair[1].priority, pair[0]))


def list_named_sources(spec: Spec, section: str | None = None) -> tuple[str, ...]:
    """List the sources that the spec names, in order, each once.

    Args:
        spec: The spec.
        section: Only sources below a key of this name, e.g. `mitigations`, those of single stages included.
    """
    names = [value for path, _, value in _iter_source_leaves(spec) if section is None or section in path[:-1]]
    return tuple(dict.fromkeys(names))


def stage_mitigations(plan: Plan, stage: Stage) -> Mapping[str, Mapping[str, Any]]:
    """Return the mitigations of a stage: name -> options."""
    return plan.mitigations if stage.mitigations is None else stage.mitigations


def _with_stage_mitigations(spec: Spec, mode: str, stage_index: int, stage: Stage) -> Stage:
    """Merge the stage's mitigation options into those of the spec."""
    if stage.mitigations is None:
        return stage
    common, known = spec.document["mitigations"], spec.schema["properties"]["mitigations"]["properties"]
    merged: dict[str, Mapping[str, Any]] = {
        name: options for name, options in common.items() if name not in stage.mitigations
    }
    for name, overrides in stage.mitigations.items():
        if overrides is None:
            continue
        options = fill_defaults({**common.get(name, {}), **overrides}, known[name], spec.schema)
        missing = [key for key in known[name]["required"] if key not in options]
        if missing:
            where = spec.where(("mode", mode, "stages", stage_index, "mitigations", name))
            raise HarnessError(
                where, f"{missing[0]!r} is missing", f"add it: {known[name]['properties'][missing[0]]['description']}"
            )
        merged[name] = options
    return replace(stage, mitigations=merged)


def _apply_mitigations(
    spec: Spec, registry: Registry, stages: tuple[Stage, ...]
) -> tuple[tuple[Stage, ...], tuple[str, ...]]:
    """Let each mitigation transform the stages that use it.

    Returns:
        The stages, and the mitigations that could change stages but changed none.
    """
    options_by_stage = [
        spec.document["mitigations"] if stage.mitigations is None else stage.mitigations for stage in stages
    ]
    variants: list[tuple[str, Mapping[str, Any]]] = []  # each mitigation with each set of options, once
    for stage, options in zip(stages, options_by_stage, strict=True):
        created = []
        for name, own in options.items():
            with _located_at_mitigation(spec, name):
                created.append((name, registry.create("mitigations", name, own)))
        active = _in_order(created)
        for name, mitigation in active:
            with _located_at_mitigation(spec, name):
                mitigation.check_compatible({other_name: other for other_name, other in active if other_name != name})
                mitigation.check_stage(stage)
        _require_one_weighing_of_tokens(spec, active)
        variants += [(name, options[name]) for name, _ in active if (name, options[name]) not in variants]
    instances = [(name, options, registry.create("mitigations", name, options)) for name, options in variants]
    without_effect: dict[str, bool] = {}
    for name, options, mitigation in sorted(instances, key=lambda entry: (entry[2].priority, entry[0])):
        with _located_at_mitigation(spec, name):
            transformed = mitigation.transform_stages(stages)
        transforms = type(mitigation).transform_stages is not Mitigation.transform_stages
        without_effect[name] = without_effect.get(name, True) and transforms and transformed == stages
        stages = tuple(
            new if stage_options.get(name) == options else old
            for new, old, stage_options in zip(transformed, stages, options_by_stage, strict=True)
        )
    return stages, tuple(name for name, changes_nothing in without_effect.items() if changes_nothing)


def _require_one_weighing_of_tokens(spec: Spec, active: Sequence[tuple[str, Mitigation]]) -> None:
    """Reject two mitigations that weigh the tokens of the loss, unless both say that their weights compose."""
    weighers = [
        (name, mitigation)
        for name, mitigation in active
        if type(mitigation).token_weights is not Mitigation.token_weights
    ]
    alone = [name for name, mitigation in weighers if not mitigation.composes_token_weights]
    if alone and len(weighers) > 1:
        other = next(name for name, _ in weighers if name != alone[0])
        what = f"both {alone[0]!r} and {other!r} weigh the tokens of the loss, and {alone[0]!r} does not compose"
        raise HarnessError(spec.where(("mitigations", alone[0])), what, "keep one of them")


@contextmanager
def _located_at_mitigation(spec: Spec, name: str) -> Iterator[None]:
    """Give an error of bad input its location in the spec; its `where` may name the very option."""
    try:
        yield
    except ComponentError:
        raise
    except HarnessError as error:
        names_option = error.where.startswith(f"mitigations.{name}")
        path = tuple(error.where.split(".")) if names_option else ("mitigations", name)
        raise HarnessError(spec.where(path), error.what, error.hint) from error


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


def _merge_train_settings(spec: Spec, stage_settings: Mapping[str, Any]) -> dict[str, Any]:
    """Merge a stage's settings over the spec's. The stage's `epochs` also override common `steps`."""
    overrides = spec.schema["definitions"]["train_overrides"]
    completed = fill_defaults(expand_shorthand(dict(stage_settings), overrides, spec.schema), overrides, spec.schema)
    steps = {"steps": None} if "epochs" in stage_settings else {}
    return {**spec.document["train"], **steps, **completed}


def _single_item(mapping: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    ((name, options),) = mapping.items()
    return name, options


def _build_suite(name: str, suite_spec: Mapping[str, Any]) -> Suite:
    metrics = {
        metric: {**options, "lang": suite_spec["lang"]} if options.get("lang") == "auto" else options
        for metric, options in suite_spec["metrics"].items()
    }
    template = None if suite_spec["template"] is None else _single_item(suite_spec["template"])
    return Suite(name=name, **{**suite_spec, "metrics": metrics, "template": template})


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


def _invalid_stages(where: str, stages: tuple[Stage, ...]) -> Iterator[HarnessError]:
    """Yield errors of stages that a plugin returned: names that are not file names, unknown settings and roles."""
    for stage in stages:
        if not re.fullmatch(evaluation.NAME_PATTERN, stage.name):
            what = f"the stage name {stage.name!r} is not valid, since it names a folder"
            yield HarnessError(where, what, "use letters, digits, dot, dash and underscore")
        for key in stage.train:
            known = (*training.TRAIN_KEYS, *training.TRAIN_COMPONENTS)
            if key not in known:
                near = get_close_matches(str(key), known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(known)}"
                yield HarnessError(where, f"the stage {stage.name!r} has the unknown training setting {key!r}", hint)
        for source in stage.sources:
            if source.role not in get_args(Role):
                what = f"the stage {stage.name!r} gives the source {source.source!r} the role {source.role!r}"
                yield HarnessError(where, what, f"use one of: {', '.join(get_args(Role))}")


def _invalid_stage_sources(spec: Spec, mode: str, stages: tuple[Stage, ...]) -> Iterator[HarnessError]:
    """Yield an error for each source of a stage that does not exist (a plugin named it) or occurs twice."""
    where = spec.where(("mode", mode))
    for stage in stages:
        names = [source.source for source in stage.sources]
        for source in dict.fromkeys(names):
            if source not in spec.document["sources"]:
                yield HarnessError(where, f"the stage {stage.name!r} has no source {source!r}", "add it to sources")
            if names.count(source) > 1:
                what = f"the source {source!r} occurs twice in the stage {stage.name!r}"
                yield HarnessError(where, what, "name it once, as domain or as general")


def _invalid_writers(spec: Spec, registry: Registry, stages: tuple[Stage, ...]) -> Iterator[HarnessError]:
    """Yield an error for each source whose rows are to be written by something that cannot."""
    for stage in stages:
        options = spec.document["mitigations"] if stage.mitigations is None else stage.mitigations
        if any(part.written_by is not None for part in stage.sources):
            mitigations = dict(create_mitigations(options, registry))
            yield from invalid_writer_errors(spec.where(("mitigations",)), stage, mitigations)


def _adapter_conflicts(spec: Spec, registry: Registry, mode: str, stages: tuple[Stage, ...]) -> Iterator[HarnessError]:
    """Yield errors of stages that merge or replace a missing adapter, or that reshape continued weights."""
    options_by_stage = [
        spec.document["mitigations"] if stage.mitigations is None else stage.mitigations for stage in stages
    ]
    for index, stage in enumerate(stages[1:], start=1):
        before, after = options_by_stage[index - 1], options_by_stage[index]
        where = spec.where(("mode", mode, "stages", index))
        shaping = {
            name
            for options in (before, after)
            for name, mitigation in create_mitigations(options, registry)
            if type(mitigation).prepare_model is not Mitigation.prepare_model
        }
        adapters = {
            name
            for options in (before, after)
            for name, mitigation in create_mitigations(options, registry)
            if mitigation.adds_adapter
        }
        # The first adapter may start from weights that were trained without one.
        available = adapters & (before.keys() if stage.adapter == "new" else before.keys() | after.keys())
        if stage.adapter != "continue" and not available:
            what = f"the stage {stage.name!r} has adapter {stage.adapter!r}, but the previous stage trains no adapter"
            yield HarnessError(where, what, "add the mitigation 'lora', or set 'adapter' to 'continue'")
        for name in sorted(shaping) if stage.adapter == "continue" else ():
            if before.get(name) != after.get(name):
                what = f"the stage {stage.name!r} changes the options of {name!r} but continues the same weights"
                hint = 'set the stage\'s "adapter" to "merge" or "new"'
                yield HarnessError(where, what, hint if shaping & before.keys() else "use it in every stage")


def _suites_on_training_rows(
    spec: Spec, stages: tuple[Stage, ...], suites: tuple[Suite, ...]
) -> Iterator[HarnessError]:
    trained = {source.source for stage in stages for source in stage.sources}
    for suite in suites:
        kind, options = _single_item(spec.document["sources"][suite.source])
        if suite.source in trained and not options["held_out"]:
            what = f"the suite {suite.name!r} would evaluate the model on training rows of {suite.source!r}"
            hint = f"""give sources.{suite.source}.{kind} "held_out": 0.1, or name a source of held-out rows"""
            yield HarnessError(spec.where(("evaluate", suite.name, "source")), what, hint)


def _registered_without_model(spec: Spec) -> Iterator[HarnessError]:
    options = spec.document["track"].get("mlflow")
    if options is not None and options["register"] is not None and options["model"] == "none":
        what = f"no model is logged to MLflow, so none can be registered as {options['register']!r}"
        where = spec.where(("track", "mlflow", "register"))
        yield HarnessError(where, what, 'set track.mlflow.model to "files" or "transformers"')


def _plan_warnings(
    spec: Spec, registry: Registry, stages: tuple[Stage, ...], suites: tuple[Suite, ...]
) -> Iterator[str]:
    used = {source.source for stage in stages for source in stage.sources} | set(list_named_sources(spec))
    used |= set(_iter_texts(spec.document["arms"]))  # an arm may use what the spec without changes does not
    for name in spec.document["sources"]:
        if name not in used:
            yield f"the source {name!r} is not used"
    for component_type, name in dict.fromkeys(component_names(spec.document)):
        if (component_type, name) in registry.clashes:
            others = " or ".join(registry.clashes[component_type, name])
            yield f"the {component_type[:-1]} {name!r} is the built-in one; a plugin provides another: write {others}"
    if not any(suite.role == "general" for suite in suites):
        yield 'no suite has "role": "general", so forgetting is not measured'
    reported = set()
    for stage in stages:
        for key, (low, high) in _typical_ranges(spec, registry, stage).items():
            value = stage.train[key]
            if value is not None and not low <= value <= high and (key, value) not in reported:
                reported.add((key, value))
                yield f"train.{key} is {value:g}; usual is {low:g} to {high:g}"


def _iter_texts(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value, keys excluded."""
    if isinstance(value, str):
        yield value
    for element in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _iter_texts(element)


def _typical_ranges(spec: Spec, registry: Registry, stage: Stage) -> dict[str, tuple[float, float]]:
    """Return the typical range of each setting for the mitigations and the optimizer of a stage.

    Nothing is known of a setting for which both an optimizer and a mitigation have a range of their own.
    """
    properties = spec.schema["properties"]["train"]["properties"]
    usual = {key: (option["usual"][0], option["usual"][1]) for key, option in properties.items() if "usual" in option}
    if stage.train["steps"] is not None:
        usual.pop("epochs")
    contested: set[str] = set()
    optimizer, _ = _single_item(stage.train["optimizer"])
    of_optimizer = registry.get("optimizers", optimizer).typical_ranges
    usual |= {key.removeprefix("train."): bounds for key, bounds in of_optimizer.items()}
    for name in spec.document["mitigations"] if stage.mitigations is None else stage.mitigations:
        for key, bounds in registry.get("mitigations", name).typical_ranges.items():
            usual[key.removeprefix("train.")] = bounds
            if key in of_optimizer:
                contested.add(key.removeprefix("train."))
    return {key: bounds for key, bounds in usual.items() if key not in contested}
