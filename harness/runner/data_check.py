"""The data checks of `harness check`: each is verified and stated in one sentence.

`run_data_checks` prepares the data and collects the results; the other functions format one check each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from harness.data.checks.findings import Findings
from harness.data.checks.lengths import summarize_lengths
from harness.data.checks.plugin_checks import RowCheckResult
from harness.data.reading.unread_keys import remedy_for_key
from harness.data.tokenization.fingerprints import template_fingerprint
from harness.errors import HarnessError, RunError
from harness.model.cached_tokenizer import load_light_tokenizer
from harness.registry import Registry
from harness.runner import bounded_plan, prepare
from harness.runner.rows_to_write import RowsToWrite, list_rows_to_write
from harness.spec.error_locations import locate_error
from harness.spec.spec import Spec
from harness.types import StageDataset

DATA_CHECKS = ("rows", "columns", "template", "held out", "masks", "lengths", "shares", "duplicates", "contamination")
"""The checks that need prepared data, in order."""

EXTRA_COUNTS = ("read", "truncated", "evaluated", "verified")
"""Counts of a source that are not part of the sum: all others add up to `read`."""


def run_data_checks(
    spec: Spec, registry: Registry, load_light: prepare.TokenizerLoader = load_light_tokenizer
) -> dict[str, Any]:
    """Prepare the data of a spec and check it.

    Args:
        spec: The spec.
        registry: The components.
        load_light: Loads the tokenizer, as for `prepare_run`.

    Returns:
        Plain data: `ok` (whether a run may start), `proofs` (see `check_result`), `sources` (counts of rows by source),
        `held_out` (see `PreparedData.held_out_rules`),
        `lengths` (source -> one `lengths.summarize_lengths` for each `max_length` at which it is trained), `stages`
        (`name`; `asked`, each share as in `Share`; `epochs`, each source -> realized share by unit; `efficiency`),
        `masks` (source -> rows verified), `unread` (source -> column or message key that is not read -> count),
        `template` (`name`, `fingerprint`), `warnings`, `failures` (lines with location, problem and remedy), and the
        keys of `Findings.to_dict`. If the data cannot be prepared, only the spec's own values and the failures are
        included.

    Raises:
        HarnessError: If the spec has no valid plan.
        RunError: If the preparation fails for another reason than the input.
    """
    run_plan = bounded_plan.build_bounded_plan(spec, registry)
    report: dict[str, Any] = {
        "name": run_plan.name,
        "model": {"path": run_plan.model["path"]},
        "template": {"name": run_plan.template[0], "fingerprint": None},
        "proofs": [check_result("spec", True, "valid, and every name in it is known")],
        "warnings": list(run_plan.warnings),
    }
    try:
        prepared = prepare.prepare_run(spec, registry, plan=run_plan, load_light=load_light)
    except RunError:
        raise
    except HarnessError as error:
        report["proofs"].append(check_result("data", False, count_errors(error.lines())))
        report["proofs"] += [check_result(name, None, "skipped") for name in DATA_CHECKS]
        return {**report, "ok": False, "failures": error.lines()}
    findings = prepare.analyze_prepared_data(spec, prepared, registry)
    data = prepared.data
    report["template"]["fingerprint"] = template_fingerprint(prepared.template, prepared.tokenizer)
    report["warnings"] = [*prepared.plan.warnings, *data.warnings, *findings.warnings]
    report["sources"] = {name: dict(counts) for name, counts in data.counts.items()}
    report["held_out"] = {name: dict(rule) for name, rule in data.held_out_rules.items()}
    report["lengths"] = {
        name: [summarize_lengths(lengths, limit) for limit in _max_lengths(name, prepared)]
        for name, lengths in data.untruncated_lengths.items()
    }
    report["stages"] = [_stage_summary(stage_data) for stage_data in data.stages]
    report["masks"] = dict(data.rows_verified)
    report["unread"] = {
        name: dict(source.corpus.unread_keys) for name, source in data.sources.items() if source.corpus.unread_keys
    }
    report |= findings.to_dict()
    report["proofs"] += all_checks(report, prepared, findings, list_rows_to_write(prepared.plan, registry))
    failures = [line for error in findings.failures for line in locate_error(spec, error).lines()]
    failures += [
        f"sources.{name}: its counts do not sum to the rows read: {counts}; this is a bug, please report it"
        for name, counts in report["sources"].items()
        if not row_counts_add_up(counts)
    ]
    return {**report, "ok": not failures, "failures": failures}


def all_checks(
    report: Mapping[str, Any], prepared: prepare.PreparedRun, findings: Findings, unwritten_rows: Sequence[RowsToWrite]
) -> Iterator[dict[str, Any]]:
    """Yield the checks of prepared data, in the order of `DATA_CHECKS`, then those of plugins.

    Args:
        report: The result of `run_data_checks` so far.
        prepared: The prepared run.
        findings: The findings of the data checks.
        unwritten_rows: What models write when the run starts.
    """
    yield _check_rows(report["sources"])
    yield _check_columns(report["unread"])
    yield _check_template(prepared)
    prompts = sum(map(len, prepared.data.suite_examples.values()))
    message = f"none of the {prompts:,} evaluated prompts is in the training data"
    yield check_result("held out", True, "; ".join([message, *_format_held_out_groups(report["held_out"])]))
    verified = sum(report["masks"].values())
    rows = sum(map(len, prepared.data.training_examples.values()))
    message = f"{verified:,} of {rows:,} rows verified: each response and its end of turn are trained, no header is"
    rendered = sum(source_rows.rendered for source_rows in findings.rendered_rows.values())
    if rendered:
        message += f"; {rendered:,} rows contain turn markers as text"
    unwritten = _format_unwritten(unwritten_rows)
    if unwritten:
        message += f"; not yet written: {unwritten}, verified before the first step"
    yield check_result("masks", True, message, warned=bool(rendered))
    yield _check_lengths(report["lengths"], findings)
    yield _check_shares(report["stages"], _format_unwritten(rows for rows in unwritten_rows if rows.is_mixed))
    yield _check_duplicates(report, findings)
    yield _check_contamination(report, findings)
    for name in dict.fromkeys(result.check for result in findings.check_results):
        yield _plugin_check([result for result in findings.check_results if result.check == name])


def check_result(name: str, ok: bool | None, message: str, *, warned: bool = False) -> dict[str, Any]:
    """Return one check as plain data.

    Args:
        name: Name of the check.
        ok: Whether it passed; None if it was skipped.
        message: The result, one sentence.
        warned: Whether it passed with a warning.
    """
    return {"name": name, "ok": ok, "warned": warned, "told": message}


def row_counts_add_up(counts: Mapping[str, int]) -> bool:
    """Return whether every row of a source is counted once."""
    return counts["read"] == sum(count for name, count in counts.items() if name not in EXTRA_COUNTS)


def count_errors(errors: list[str]) -> str:
    """Return how many errors there are, as the message of a check."""
    return "1 error, see below" if len(errors) == 1 else f"{len(errors)} errors, see below"


def _check_rows(sources: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    total = Counter[str]()
    for counts in sources.values():
        total.update(counts)
    terms = [
        f"{count:,} {name.replace('_', ' ')}" for name, count in total.items() if count and name not in EXTRA_COUNTS
    ]
    message = f"{total['read']:,} read = {' + '.join(terms) or '0'}"
    return check_result("rows", all(map(row_counts_add_up, sources.values())), message)


def _check_columns(unread: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    messages = []
    for name, counts in unread.items():
        keys = ", ".join(f"{key} ({count:,})" for key, count in counts.items())
        messages.append(f"{name} does not use {keys}")
    warned = any(remedy_for_key(key) for counts in unread.values() for key in counts)
    return check_result("columns", True, "; ".join(messages) or "every column and message key is read", warned=warned)


def _check_template(prepared: prepare.PreparedRun) -> dict[str, Any]:
    suites = [suite.name for suite in prepared.plan.suites if suite.template is not None]
    message = "suites use the template of training"
    if suites:
        message += f", except those with their own: {', '.join(suites)}"
    return check_result("template", True, message)


def _format_held_out_groups(rules: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the rows and groups on each side of each source that is not split by prompt."""
    for name, rule in rules.items():
        if rule["by"] == "prompt":
            continue
        held_out, training = f"{rule['held_out_rows']:,} rows", f"{rule['training_rows']:,} rows"
        if rule["held_out_groups"] is not None:
            held_out += f" in {rule['held_out_groups']:,} groups"
            training += f" in {rule['training_groups']:,}"
        yield f"{name} by {rule['by']}: {held_out} held out, {training} for training"


def _check_lengths(lengths: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    summaries = [summary for source_summaries in lengths.values() for summary in source_summaries]
    rows_cut = sum(summary["rows_cut"] for summary in summaries)
    tokens_cut = sum(summary["tokens_cut"] for summary in summaries)
    rows_lost = sum(rows.lost for rows in findings.fully_truncated.values())
    if not rows_cut and not rows_lost:
        return check_result("lengths", True, "no row is truncated")
    message = f"{rows_cut:,} row(s) are truncated, by {tokens_cut:,} tokens in all"
    if rows_lost:
        message += f"; {rows_lost:,} row(s) have no trained token left"
    ok = not any(error.where.startswith("sources.") for error in findings.failures)
    return check_result("lengths", ok, message, warned=True)


def _format_unwritten(rows: Iterable[RowsToWrite]) -> str:
    """Return a list of what a model writes; empty if it writes nothing."""
    return ", ".join(dict.fromkeys(one.describe() for one in rows))


def _check_shares(stages: list[dict[str, Any]], unwritten: str) -> dict[str, Any]:
    messages = []
    for stage in stages:
        for share in stage["asked"]:
            realized = [sum(epoch[source][share["unit"]] for source in share["sources"]) for epoch in stage["epochs"]]
            unit = share["unit"].replace("loss_tokens", "trained tokens")
            low, high = _format_percent(min(realized)), _format_percent(max(realized))
            realized_range = low if low == high else f"{low} to {high}"
            sources = " and ".join(share["sources"])
            requested = _format_percent(share["amount"])
            messages.append(f"{sources} {realized_range} of {unit} (asked {requested}) in {stage['name']}")
    message = "; ".join(messages) or "no share is requested"
    if unwritten:
        message += f"; with the data's rows, since {unwritten} are not yet written"
    return check_result("shares", True, message)


def _check_duplicates(report: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    dropped = sum(counts["duplicates"] for counts in report["sources"].values())
    messages = [f"{dropped:,} equal row(s) dropped"] if dropped else []
    messages += [
        f"{shared.rows:,} in both {shared.sources[0]} and {shared.sources[1]}" for shared in findings.shared_rows
    ]
    near, warned = findings.near_duplicates, bool(findings.shared_rows)
    if near is None:
        messages.append("near duplicates not searched")
    else:
        of = f"{near.examined:,} rows" if near.examined == near.rows else f"{near.examined:,} of {near.rows:,} rows"
        messages.append(f"{near.repeats:,} of {of} nearly repeat{'s' * (near.repeats == 1)} an earlier one")
        warned = warned or bool(near.repeats) or near.examined < near.rows
    ok = not any(error.where == "checks.near_duplicates" for error in findings.failures)
    return check_result("duplicates", ok, "; ".join(messages), warned=warned)


def _check_contamination(report: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    if findings.contamination is None:
        return check_result("contamination", None, "not searched")
    dropped = sum(counts["contaminating"] for counts in report["sources"].values())
    messages = [f"{dropped:,} training row(s) dropped that share text with evaluated rows"] if dropped else []
    clean = 0
    for suite, overlap in findings.contamination.items():
        if not (overlap.prompts or overlap.responses or overlap.common):
            clean += 1
            continue
        responses = "" if overlap.kind == "text" else f" and {overlap.responses:,} responses"
        message = f"{suite}: {overlap.prompts:,} of {overlap.items:,} {overlap.kind}s{responses} occur in training"
        messages.append(message + (f", {overlap.common:,} share common phrases" if overlap.common else ""))
    warned = bool(dropped) or any(overlap.prompts or overlap.responses for overlap in findings.contamination.values())
    if clean:
        messages.append(
            f"nothing of {clean} {'other ' * (clean < len(findings.contamination))}suite(s) occurs in training"
        )
    ok = not any(error.where.startswith("evaluate.") for error in findings.failures)
    return check_result("contamination", ok, "; ".join(messages) or "nothing is evaluated", warned=warned)


def _plugin_check(results: list[RowCheckResult]) -> dict[str, Any]:
    """Return what a check of a plugin found in all sources and suites."""
    found = [
        f"{result.place}: findings in {result.rows_found:,} of {result.rows:,} rows"
        for result in results
        if result.rows_found
    ]
    message = "; ".join(found) or f"nothing found in {sum(result.rows for result in results):,} rows"
    ok = not any(result.exceeds_limit for result in results)
    return check_result(results[0].check, ok, message, warned=bool(found))


def _format_percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _max_lengths(source: str, prepared: prepare.PreparedRun) -> list[int]:
    """Return the `max_length` values at which a source is trained; the longest of all if only a mitigation reads it."""
    stages = prepared.plan.stages
    lengths = {stage.train["max_length"] for stage in stages if any(part.source == source for part in stage.sources)}
    return sorted(lengths or {max(stage.train["max_length"] for stage in stages)})


def _stage_summary(stage_data: StageDataset) -> dict[str, Any]:
    return {
        "name": stage_data.stage.name,
        "asked": [{**asdict(share), "sources": list(share.sources)} for share in stage_data.stage.shares],
        "epochs": [dict(epoch) for epoch in stage_data.epoch_shares],
        "efficiency": stage_data.efficiency,
    }
