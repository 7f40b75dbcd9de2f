"""What of a spec is proven before any weight is loaded: as plain data, and as a short table for people.

The proofs are made where the data is made (`run.prepare`, `run.find`); a run makes the same ones before it begins.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from harness import plan, run
from harness.check.proofs import AFTER, adds_up, lines, proof, proofs
from harness.check.view import render
from harness.contracts import StageData
from harness.data.encode import fingerprint
from harness.data.histogram import lengths
from harness.errors import HarnessError, RunError
from harness.registry import Registry
from harness.spec import Spec

__all__ = ["make", "render"]


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
        ready = run.prepare(spec, registry)
    except RunError:
        raise
    except HarnessError as error:
        made["proofs"].append(proof("data", False, lines(error.lines())))
        made["proofs"] += [proof(name, None, "not reached") for name in AFTER]
        return {**made, "ok": False, "failures": error.lines()}
    found = run.find(spec, ready, registry)
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


def _limits(source: str, ready: run.Prepared) -> list[int]:
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
