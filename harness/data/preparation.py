"""From a plan's sources to the rows that each stage trains on and each suite evaluates, or an error before any model.

Knows the order of the work and the proofs on the way; how each step is done, its own module knows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from harness.contracts import Example, Plan, Progress, Row, Source, StageData, Suite, Template, silent
from harness.data.batches import order
from harness.data.encode import encode_all
from harness.data.forms import examples
from harness.data.mixture import TOLERANCE, mix, shares
from harness.data.proof import prove
from harness.data.splits import Split, check_disjoint, chosen, split
from harness.errors import HarnessError, raise_all

PROVEN = 32
"""Rows of each source whose masks are proven, chosen by the seed: a proof costs more than tokenising the row."""


@dataclass(frozen=True)
class Prepared:
    """The data of a run: no suite's prompt is trained on, every row has a trained token, shares are met, and the masks
    of a sample of every source are proven.

    suites: suite -> the rows that it evaluates. rows: source -> all its tokenised training rows, for every source that
    a stage trains on or that was named in `also`; cut to the longest `max_length` at which they are trained.
    counts: source -> `read`, `duplicates` (dropped: same content as an earlier row), `beyond_limit` (not among the
    `limit` chosen), `held_out` (kept for evaluation), `untrained` (dropped: no trained token is left after truncation),
    `used` (trained on in some stage, or named in `also`) and `unused` (in no mixture); these sum to `read`. Beside
    them `truncated` (of the training rows, cut to `max_length`) and `evaluated` (in some suite).
    digests: source -> SHA-256 over the sorted ids of its rows that are trained on or evaluated.
    untrained: source -> places of the rows dropped as untrained. warnings: what a person should know of all this.
    """

    stages: tuple[StageData, ...]
    suites: Mapping[str, tuple[Example, ...]]
    rows: Mapping[str, tuple[Row, ...]]
    counts: Mapping[str, Mapping[str, int]]
    digests: Mapping[str, str]
    untrained: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass
class _Encoded:
    """The training rows of one source by max_length, and what became of them on the way. Sets hold ids."""

    by_length: dict[int, tuple[Row, ...]] = field(default_factory=dict)
    untrained: set[str] = field(default_factory=set)
    truncated: set[str] = field(default_factory=set)


def prepare(
    plan: Plan,
    sources: Mapping[str, Source],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    also: Sequence[str] = (),
    progress: Progress = silent,
) -> Prepared:
    """Read, split, prove, tokenise, mix and order the data of a plan.

    sources: the plan's, made; only those that a stage, a suite or `also` names are read. also: sources whose training
    rows are wanted although no stage may train on them; they are proven to be no suite's rows as well.
    Raises HarnessError for whatever a run must not begin with, with the rows or shares named.
    """
    trained = list(dict.fromkeys([part.source for stage in plan.stages for part in stage.parts] + list(also)))
    splits = _read(plan, sources, list(dict.fromkeys(trained + [suite.source for suite in plan.suites])), progress)
    suites = {suite.name: _rows_of(suite, splits[suite.source], plan) for suite in plan.suites}
    raise_all([*_without_training(trained, splits), *_without_rows(plan.suites, suites)])
    check_disjoint({name: splits[name].training for name in trained}, suites)
    suites = {suite.name: _some(suites[suite.name], suite.limit, plan.seed) for suite in plan.suites}
    encoded = _encode(plan, splits, trained, also, template, tokenizer, progress)
    cut = _prove_suites(plan, suites, template, tokenizer)
    stages = _stages(plan, encoded)
    rows = {name: encoded[name].by_length[max(encoded[name].by_length)] for name in trained}
    used: dict[str, set[str]] = {name: {row.id for row in rows[name]} for name in also}
    for stage in stages:
        for row in stage.rows:
            used.setdefault(row.source, set()).add(row.id)
    evaluated: dict[str, set[str]] = {}
    for suite in plan.suites:
        evaluated.setdefault(suite.source, set()).update(example.id for example in suites[suite.name])
    untrained = {
        name: tuple(row.place for row in splits[name].training if row.id in encoded[name].untrained) for name in trained
    }
    return Prepared(
        stages=stages,
        suites=suites,
        rows=rows,
        counts={
            name: _counts(splits[name], encoded.get(name), used.get(name, set()), evaluated.get(name, set()))
            for name in splits
        },
        digests={name: _digest(used.get(name, set()) | evaluated.get(name, set())) for name in splits},
        untrained=untrained,
        warnings=tuple(_warnings(untrained, cut, stages)),
    )


def _read(plan: Plan, sources: Mapping[str, Source], names: Sequence[str], progress: Progress) -> dict[str, Split]:
    splits = {}
    for done, name in enumerate(names):
        progress("read", done, len(names), name, "sources")
        options = plan.sources[name][1]
        found = examples(sources[name], options, name)
        splits[name] = split(found, held_out=options["held_out"], limit=options["limit"], seed=plan.seed)
    progress("read", len(names), len(names), "", "sources")
    return splits


def _rows_of(suite: Suite, split: Split, plan: Plan) -> tuple[Example, ...]:
    """The held-out rows of a suite's source; all of its rows when it holds none out."""
    return split.held_out if plan.sources[suite.source][1]["held_out"] else split.training


def _some(rows: Sequence[Example], limit: int | None, seed: int) -> tuple[Example, ...]:
    # The suite's name is no part of the purpose: two suites with one source and limit see the same rows.
    return tuple(chosen(rows, limit, seed, "suite"))


def _without_training(names: Sequence[str], splits: Mapping[str, Split]) -> Iterator[HarnessError]:
    for name in names:
        if not splits[name].training:
            what = f"all {len(splits[name].held_out)} of its rows are held out, so none is left to train on"
            yield HarnessError(f"sources.{name}", what, "lower held_out, or add rows")


def _without_rows(suites: Sequence[Suite], rows: Mapping[str, Sequence[Example]]) -> Iterator[HarnessError]:
    for suite in suites:
        if not rows[suite.name]:
            what = f"its source {suite.source!r} has too few rows for one of them to be held out"
            yield HarnessError(f"evaluate.{suite.name}", what, "raise held_out, add rows, or name another source")


def _encode(
    plan: Plan,
    splits: Mapping[str, Split],
    trained: Sequence[str],
    also: Sequence[str],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress,
) -> dict[str, _Encoded]:
    """The training rows of each source, tokenised once for each max_length at which they are needed."""
    longest = max(stage.train["max_length"] for stage in plan.stages)
    encoded: dict[str, _Encoded] = {}
    for name in trained:
        lengths = {s.train["max_length"] for s in plan.stages if any(part.source == name for part in s.parts)}
        encoded[name] = _Encoded()
        for max_length in sorted(lengths | ({longest} if name in also else set())):
            training = splits[name].training
            found = encode_all(training, name, template, tokenizer, max_length, progress)
            sample = {example.id for example in chosen(training, PROVEN, plan.seed, "proof")}
            for example, one in zip(training, found, strict=True):
                if example.id in sample:
                    prove(example, one, template, tokenizer)
            kept = tuple(one.row for one in found if one.row.loss_tokens)
            encoded[name].untrained |= {one.row.id for one in found} - {row.id for row in kept}
            encoded[name].truncated |= {one.row.id for one in found if one.cut}
            encoded[name].by_length[max_length] = kept
            if not kept:
                what = f"none of its {len(found)} rows has a trained token within {max_length} tokens"
                raise HarnessError(f"sources.{name}", what, "raise train.max_length, or look at `harness preview`")
    return encoded


def _prove_suites(
    plan: Plan, suites: Mapping[str, Sequence[Example]], template: Template, tokenizer: PreTrainedTokenizerBase
) -> dict[str, int]:
    """Tokenise every row that a suite evaluates and prove a sample. Returns suite -> rows whose reference is cut."""
    longest = max(stage.train["max_length"] for stage in plan.stages)
    cut = {}
    for name, rows in suites.items():
        found = encode_all(rows, name, template, tokenizer, longest)
        sample = {example.id for example in chosen(rows, PROVEN, plan.seed, "proof")}
        for example, one in zip(rows, found, strict=True):
            if example.id in sample:
                prove(example, one, template, tokenizer)
        cut[name] = sum(one.cut > 0 for one in found)
    return cut


def _warnings(
    untrained: Mapping[str, Sequence[str]], cut: Mapping[str, int], stages: Sequence[StageData]
) -> Iterator[str]:
    for name, places in untrained.items():
        if places:
            shown = ", ".join(places[:3]) + (", …" if len(places) > 3 else "")
            yield f"{len(places)} row(s) of {name!r} have no trained token within max_length and are left out: {shown}"
    for name, count in cut.items():
        if count:
            yield f"the suite {name!r} has {count} row(s) longer than max_length; their references are cut"
    for one in stages:
        for part in one.stage.parts:
            realised = one.shares.get(part.source, {}).get(part.unit, 0.0)
            if part.share is not None and abs(realised - part.share) > TOLERANCE:
                unit = part.unit.replace("_", " ")
                yield (
                    f"the stage {one.stage.name!r} ends within an epoch: of its {len(one.order)} slots {part.source!r} "
                    f"has {realised:.1%} of the {unit}, not the {part.share:.1%} asked for; train longer for that"
                )


def _stages(plan: Plan, encoded: Mapping[str, _Encoded]) -> tuple[StageData, ...]:
    made = []
    for stage in plan.stages:
        length = stage.train["max_length"]
        rows = mix(stage, {part.source: encoded[part.source].by_length[length] for part in stage.parts}, plan.seed)
        laid = order(stage, rows, plan.seed)
        times = Counter(index for slot in laid.slots for index in slot)
        realised = shares(rows, [times[index] for index in range(len(rows))])
        made.append(StageData(stage, rows, laid.slots, laid.epoch_ends, realised, laid.efficiency))
    return tuple(made)


def _counts(split: Split, encoded: _Encoded | None, used: set[str], evaluated: set[str]) -> dict[str, int]:
    training = {example.id for example in split.training}
    if encoded is None and not split.held_out:
        held_out, training = training, set()  # a source of suites alone is held out whole
    else:
        held_out = {example.id for example in split.held_out}
    untrained = (encoded.untrained if encoded else set()) - used
    return {
        "read": split.read,
        "duplicates": split.duplicates,
        "beyond_limit": split.beyond_limit,
        "held_out": len(held_out),
        "untrained": len(untrained),
        "used": len(used),
        "unused": len(training - used - untrained),
        "truncated": len(encoded.truncated) if encoded else 0,
        "evaluated": len(evaluated),
    }


def _digest(ids: set[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
