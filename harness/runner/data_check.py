"""The proofs of `harness check`, each in one sentence.

Knows what was found, not how.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from harness.data.checks.findings import Findings
from harness.data.checks.lengths import summarize_lengths
from harness.data.tokenization.fingerprints import template_fingerprint
from harness.errors import HarnessError, RunError
from harness.registry import Registry
from harness.runner import prepare
from harness.spec import plan
from harness.spec.spec import Spec
from harness.types import StageDataset

DATA_CHECKS = ("rows", "template", "held out", "masks", "lengths", "shares", "duplicates", "contamination")
"""The proofs that can be made when the data is there, in order."""

EXTRA_COUNTS = ("read", "truncated", "evaluated", "proven")
"""Counts of a source that are no part of the sum: all others sum to `read`."""


def check_result(name: str, ok: bool | None, message: str, *, warned: bool = False) -> dict[str, Any]:
    """One proof. ok: None when it was not reached, or is not asked for. warned: it holds, and something was found."""
    return {"name": name, "ok": ok, "warned": warned, "told": message}


def all_checks(
    report: Mapping[str, Any], prepared: prepare.PreparedRun, findings: Findings
) -> Iterator[dict[str, Any]]:
    """The proofs of prepared data, in order. report: the facts so far, see
    `harness.runner.data_check.run_data_checks`."""
    yield _check_rows(report["sources"])
    own = [one.name for one in prepared.plan.suites if one.template is not None]
    yield check_result("template", True, f"evaluated as trained{f', or as said: {_join_names(own)}' * bool(own)}")
    items = sum(map(len, prepared.data.suite_examples.values()))
    yield check_result("held out", True, f"none of the {items:,} prompts to be evaluated is trained on")
    proven = sum(report["masks"].values())
    total = sum(map(len, prepared.data.training_examples.values()))
    yield check_result(
        "masks",
        True,
        f"{proven:,} of {total:,} rows proven: each response and its end of turn are trained, no header is",
    )
    yield _check_lengths(report["lengths"], findings)
    yield _check_shares(report["stages"])
    yield _check_duplicates(report, findings)
    yield _check_contamination(findings)


def _check_rows(sources: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    total = Counter[str]()
    for counts in sources.values():
        total.update(counts)
    parts = [
        f"{count:,} {name.replace('_', ' ')}" for name, count in total.items() if count and name not in EXTRA_COUNTS
    ]
    told = f"{total['read']:,} read = {' + '.join(parts) or '0'}"
    return check_result("rows", all(map(row_counts_add_up, sources.values())), told)


def row_counts_add_up(counts: Mapping[str, int]) -> bool:
    """Whether no row of a source has got lost."""
    return counts["read"] == sum(count for name, count in counts.items() if name not in EXTRA_COUNTS)


def _check_lengths(lengths: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    every = [one for of_source in lengths.values() for one in of_source]
    cut, tokens = sum(one["rows_cut"] for one in every), sum(one["tokens_cut"] for one in every)
    lost = sum(one.lost for one in findings.fully_truncated.values())
    if not cut and not lost:
        return check_result("lengths", True, "nothing is cut")
    told = f"{cut:,} row(s) are cut, by {tokens:,} tokens in all"
    if lost:
        told += f"; {lost:,} row(s) have nothing trained left"
    ok = not any(error.where.startswith("sources.") for error in findings.failures)
    return check_result("lengths", ok, told, warned=True)


def _check_shares(stages: list[dict[str, Any]]) -> dict[str, Any]:
    parts = []
    for stage in stages:
        for asked in stage["asked"]:
            realised = [sum(epoch[one][asked["unit"]] for one in asked["sources"]) for epoch in stage["epochs"]]
            unit = asked["unit"].replace("loss_tokens", "trained tokens")
            low, high = _format_percent(min(realised)), _format_percent(max(realised))
            got = low if low == high else f"{low} to {high}"
            sources = " and ".join(asked["sources"])
            parts.append(f"{sources} {got} of {unit} (asked {_format_percent(asked['amount'])}) in {stage['name']}")
    return check_result("shares", True, "; ".join(parts) or "none is asked for")


def _check_duplicates(report: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    dropped = sum(counts["duplicates"] for counts in report["sources"].values())
    parts = [f"{dropped:,} equal row(s) left out"] if dropped else []
    parts += [f"{one.rows:,} in both {one.sources[0]} and {one.sources[1]}" for one in findings.shared_rows]
    near, warned = findings.near_duplicates, bool(findings.shared_rows)
    if near is None:
        parts.append("near ones not looked for")
    else:
        of = f"{near.examined:,} rows" if near.examined == near.rows else f"{near.examined:,} of {near.rows:,} rows"
        parts.append(f"{near.repeats:,} of {of} nearly repeat{'s' * (near.repeats == 1)} an earlier one")
        warned = warned or bool(near.repeats) or near.examined < near.rows
    ok = not any(error.where == "checks.near_duplicates" for error in findings.failures)
    return check_result("duplicates", ok, "; ".join(parts), warned=warned)


def _check_contamination(findings: Findings) -> dict[str, Any]:
    if findings.contamination is None:
        return check_result("contamination", None, "not looked for")
    parts = []
    for name, one in findings.contamination.items():
        beside = "" if one.kind == "text" else f" and {one.responses:,} responses"
        told = f"{name}: {one.prompts:,} of {one.items:,} {one.kind}s{beside} stand in training"
        parts.append(told + (f", {one.common:,} share common phrases" if one.common else ""))
    warned = any(one.prompts or one.responses for one in findings.contamination.values())
    ok = not any(error.where.startswith("evaluate.") for error in findings.failures)
    return check_result("contamination", ok, "; ".join(parts) or "nothing is evaluated", warned=warned)


def count_errors(errors: list[str]) -> str:
    """That there are errors, and how many."""
    return "one error, told below" if len(errors) == 1 else f"{len(errors)} errors, told below"


def _join_names(names: list[str]) -> str:
    return ", ".join(names)


def _format_percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def run_data_checks(spec: Spec, registry: Registry) -> dict[str, Any]:
    """The proofs as plain data.

    `ok`: whether a run may begin. `proofs`: see `check_result`. `sources`: counts of rows by source. `lengths`: source
    -> one `lengths.summarize_lengths` for each max_length at which it is trained. `stages`: `name`, `asked` (each
    share, see `Share`), `epochs` (each source -> realised share by unit) and `efficiency`. `masks`: source -> rows
    proven. `template`: `name` and `fingerprint`. `untrained`, `shared`, `near_duplicates`, `contamination`: see
    `Findings.to_dict`. `warnings`. `failures`: lines, each with place, problem and remedy. Where the data cannot be
    made, only the spec's own facts and the failures are there. Raises HarnessError for a spec without a plan, RunError
    for what is no fault of the input.
    """
    planned = plan.build_plan(spec, registry)
    made: dict[str, Any] = {
        "name": planned.name,
        "model": {"path": planned.model["path"]},
        "template": {"name": planned.template[0], "fingerprint": None},
        "proofs": [check_result("spec", True, "valid, and every name in it is known")],
        "warnings": list(planned.warnings),
    }
    try:
        ready = prepare.prepare_run(spec, registry)
    except RunError:
        raise
    except HarnessError as error:
        made["proofs"].append(check_result("data", False, count_errors(error.lines())))
        made["proofs"] += [check_result(name, None, "not reached") for name in DATA_CHECKS]
        return {**made, "ok": False, "failures": error.lines()}
    found = prepare.analyze_prepared_data(spec, ready, registry)
    made["template"]["fingerprint"] = template_fingerprint(ready.template, ready.tokenizer)
    made["warnings"] += [*ready.data.warnings, *found.warnings]
    made["sources"] = {name: dict(counts) for name, counts in ready.data.counts.items()}
    made["lengths"] = {
        name: [summarize_lengths(values, limit) for limit in _max_lengths(name, ready)]
        for name, values in ready.data.untruncated_lengths.items()
    }
    made["stages"] = [_stage_summary(one) for one in ready.data.stages]
    made["masks"] = dict(ready.data.rows_verified)
    made |= found.to_dict()
    made["proofs"] += all_checks(made, ready, found)
    failures = [line for error in found.failures for line in error.lines()]
    failures += [
        f"sources.{name}: its counts do not sum to the rows read: {counts}; this is a bug, please report it"
        for name, counts in made["sources"].items()
        if not row_counts_add_up(counts)
    ]
    return {**made, "ok": not failures, "failures": failures}


def _max_lengths(source: str, prepared: prepare.PreparedRun) -> list[int]:
    """The lengths at which a source is trained; the longest of all for one that only a mitigation reads."""
    stages = prepared.plan.stages
    own = {one.train["max_length"] for one in stages if any(part.source == source for part in one.sources)}
    return sorted(own or {max(one.train["max_length"] for one in stages)})


def _stage_summary(stage_data: StageDataset) -> dict[str, Any]:
    return {
        "name": stage_data.stage.name,
        "asked": [{**asdict(share), "sources": list(share.sources)} for share in stage_data.stage.shares],
        "epochs": [dict(epoch) for epoch in stage_data.epoch_shares],
        "efficiency": stage_data.efficiency,
    }
