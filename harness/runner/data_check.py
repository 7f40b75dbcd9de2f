"""The proofs of `harness check`, each in one sentence.

Knows what was found, not how.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from harness.data.checks.findings import Findings
from harness.data.checks.lengths import lengths
from harness.data.tokenization.fingerprints import fingerprint
from harness.errors import HarnessError, RunError
from harness.registry import Registry
from harness.runner import prepare
from harness.spec import plan
from harness.spec.spec import Spec
from harness.types import StageData

AFTER = ("rows", "template", "held out", "masks", "lengths", "shares", "duplicates", "contamination")
"""The proofs that can be made when the data is there, in order."""

BESIDE = ("read", "truncated", "evaluated", "proven")
"""Counts of a source that are no part of the sum: all others sum to `read`."""


def proof(name: str, ok: bool | None, told: str, *, warned: bool = False) -> dict[str, Any]:
    """One proof. ok: None when it was not reached, or is not asked for. warned: it holds, and something was found."""
    return {"name": name, "ok": ok, "warned": warned, "told": told}


def proofs(made: Mapping[str, Any], ready: prepare.Prepared, found: Findings) -> Iterator[dict[str, Any]]:
    """The proofs of prepared data, in order. made: the facts so far, see `harness.runner.data_check.make`."""
    yield _rows(made["sources"])
    own = [one.name for one in ready.plan.suites if one.template is not None]
    yield proof("template", True, f"evaluated as trained{f', or as said: {_list(own)}' * bool(own)}")
    items = sum(map(len, ready.data.suites.values()))
    yield proof("held out", True, f"none of the {items:,} prompts to be evaluated is trained on")
    proven = sum(made["masks"].values())
    yield proof(
        "masks",
        True,
        f"{proven:,} of {sum(map(len, ready.data.training.values())):,} rows proven: each response and its end of turn "
        "are trained, no header is",
    )
    yield _lengths(made["lengths"], found)
    yield _shares(made["stages"])
    yield _duplicates(made, found)
    yield _contamination(found)


def _rows(sources: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    total = Counter[str]()
    for counts in sources.values():
        total.update(counts)
    parts = [f"{count:,} {name.replace('_', ' ')}" for name, count in total.items() if count and name not in BESIDE]
    told = f"{total['read']:,} read = {' + '.join(parts) or '0'}"
    return proof("rows", all(map(adds_up, sources.values())), told)


def adds_up(counts: Mapping[str, int]) -> bool:
    """Whether no row of a source has got lost."""
    return counts["read"] == sum(count for name, count in counts.items() if name not in BESIDE)


def _lengths(made: Mapping[str, Any], found: Findings) -> dict[str, Any]:
    every = [one for of_source in made.values() for one in of_source]
    cut, tokens = sum(one["rows_cut"] for one in every), sum(one["tokens_cut"] for one in every)
    lost = sum(one.lost for one in found.untrained.values())
    if not cut and not lost:
        return proof("lengths", True, "nothing is cut")
    told = f"{cut:,} row(s) are cut, by {tokens:,} tokens in all"
    if lost:
        told += f"; {lost:,} row(s) have nothing trained left"
    ok = not any(error.where.startswith("sources.") for error in found.failures)
    return proof("lengths", ok, told, warned=True)


def _shares(stages: list[dict[str, Any]]) -> dict[str, Any]:
    parts = []
    for stage in stages:
        for asked in stage["asked"]:
            realised = [sum(epoch[one][asked["unit"]] for one in asked["sources"]) for epoch in stage["epochs"]]
            unit = asked["unit"].replace("loss_tokens", "trained tokens")
            low, high = _percent(min(realised)), _percent(max(realised))
            got = low if low == high else f"{low} to {high}"
            sources = " and ".join(asked["sources"])
            parts.append(f"{sources} {got} of {unit} (asked {_percent(asked['amount'])}) in {stage['name']}")
    return proof("shares", True, "; ".join(parts) or "none is asked for")


def _duplicates(made: Mapping[str, Any], found: Findings) -> dict[str, Any]:
    dropped = sum(counts["duplicates"] for counts in made["sources"].values())
    parts = [f"{dropped:,} equal row(s) left out"] if dropped else []
    parts += [f"{one.rows:,} in both {one.sources[0]} and {one.sources[1]}" for one in found.shared]
    near, warned = found.near, bool(found.shared)
    if near is None:
        parts.append("near ones not looked for")
    else:
        of = f"{near.examined:,} rows" if near.examined == near.rows else f"{near.examined:,} of {near.rows:,} rows"
        parts.append(f"{near.repeats:,} of {of} nearly repeat{'s' * (near.repeats == 1)} an earlier one")
        warned = warned or bool(near.repeats) or near.examined < near.rows
    ok = not any(error.where == "checks.near_duplicates" for error in found.failures)
    return proof("duplicates", ok, "; ".join(parts), warned=warned)


def _contamination(found: Findings) -> dict[str, Any]:
    if found.contamination is None:
        return proof("contamination", None, "not looked for")
    parts = []
    for name, one in found.contamination.items():
        beside = "" if one.kind == "text" else f" and {one.responses:,} responses"
        told = f"{name}: {one.prompts:,} of {one.items:,} {one.kind}s{beside} stand in training"
        parts.append(told + (f", {one.common:,} share common phrases" if one.common else ""))
    warned = any(one.prompts or one.responses for one in found.contamination.values())
    ok = not any(error.where.startswith("evaluate.") for error in found.failures)
    return proof("contamination", ok, "; ".join(parts) or "nothing is evaluated", warned=warned)


def lines(errors: list[str]) -> str:
    """That there are errors, and how many."""
    return "one error, told below" if len(errors) == 1 else f"{len(errors)} errors, told below"


def _list(names: list[str]) -> str:
    return ", ".join(names)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def make(spec: Spec, registry: Registry) -> dict[str, Any]:
    """The proofs as plain data.

    `ok`: whether a run may begin. `proofs`: see `proofs.proof`. `sources`: counts of rows by source. `lengths`: source
    -> one `histogram.lengths` for each max_length at which it is trained. `stages`: `name`, `asked` (each share, see
    `Share`), `epochs` (each source -> realised share by unit) and `efficiency`. `masks`: source -> rows proven.
    `template`: `name` and `fingerprint`. `untrained`, `shared`, `near_duplicates`, `contamination`: see
    `Findings.facts`. `warnings`. `failures`: lines, each with place, problem and remedy. Where the data cannot be made,
    only the spec's own facts and the failures are there.
    Raises HarnessError for a spec without a plan, RunError for what is no fault of the input.
    """
    planned = plan.make(spec, registry)
    made: dict[str, Any] = {
        "name": planned.name,
        "model": {"path": planned.model["path"]},
        "template": {"name": planned.template[0], "fingerprint": None},
        "proofs": [proof("spec", True, "valid, and every name in it is known")],
        "warnings": list(planned.warnings),
    }
    try:
        ready = prepare.prepare(spec, registry)
    except RunError:
        raise
    except HarnessError as error:
        made["proofs"].append(proof("data", False, lines(error.lines())))
        made["proofs"] += [proof(name, None, "not reached") for name in AFTER]
        return {**made, "ok": False, "failures": error.lines()}
    found = prepare.find(spec, ready, registry)
    made["template"]["fingerprint"] = fingerprint(ready.template, ready.tokenizer)
    made["warnings"] += [*ready.data.warnings, *found.warnings]
    made["sources"] = {name: dict(counts) for name, counts in ready.data.counts.items()}
    made["lengths"] = {
        name: [lengths(values, limit) for limit in _limits(name, ready)] for name, values in ready.data.lengths.items()
    }
    made["stages"] = [_stage(one) for one in ready.data.stages]
    made["masks"] = dict(ready.data.proven)
    made |= found.facts()
    made["proofs"] += proofs(made, ready, found)
    failures = [line for error in found.failures for line in error.lines()]
    failures += [
        f"sources.{name}: its counts do not sum to the rows read: {counts}; this is a bug, please report it"
        for name, counts in made["sources"].items()
        if not adds_up(counts)
    ]
    return {**made, "ok": not failures, "failures": failures}


def _limits(source: str, ready: prepare.Prepared) -> list[int]:
    """The lengths at which a source is trained; the longest of all for one that only a mitigation reads."""
    stages = ready.plan.stages
    own = {one.train["max_length"] for one in stages if any(part.source == source for part in one.parts)}
    return sorted(own or {max(one.train["max_length"] for one in stages)})


def _stage(one: StageData) -> dict[str, Any]:
    return {
        "name": one.stage.name,
        "asked": [{**asdict(share), "sources": list(share.sources)} for share in one.stage.shares],
        "epochs": [dict(epoch) for epoch in one.epoch_shares],
        "efficiency": one.efficiency,
    }
