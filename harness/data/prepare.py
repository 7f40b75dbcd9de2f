"""From a plan's sources to the rows that each stage trains on and each suite evaluates, or an error before any model.

Knows the order of the work and the proofs on the way; how each step is done, its own module knows. Conversations and
tokens stay on disk; what is held of a row are some numbers in arrays.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from harness.data.checks.findings import Untrained
from harness.data.mixing.stage_layout import lay
from harness.data.reading.corpus import Corpus, View, read
from harness.data.reading.splits import Split, check_disjoint, chosen, split
from harness.data.tokenization import token_cache
from harness.data.tokenization.tokenize import Tokenised, tokenise_corpus
from harness.data.tokenization.tokenized_rows import Rows
from harness.errors import HarnessError, raise_all
from harness.interfaces.source import Source
from harness.interfaces.template import Template
from harness.types import Example, Plan, Progress, StageData, Suite, silent

BLOCK = 10_000
"""Ids that are written out at once."""

SHOWN = 3
"""Rows that are named of many."""


@dataclass(frozen=True)
class Told:
    """One source as it was read and told apart, and its training rows in tokens.

    tokenised: max_length -> the training rows cut to it, for each length at which they are trained; empty for a source
    that is only evaluated.
    """

    corpus: Corpus
    split: Split
    tokenised: Mapping[int, Tokenised]

    @property
    def training(self) -> View:
        """The rows that may be trained on."""
        return self.corpus.take(self.split.training)

    @property
    def longest(self) -> Tokenised:
        """The training rows at the longest length at which they are trained."""
        return self.tokenised[max(self.tokenised)]


@dataclass(frozen=True)
class Prepared:
    """The data of a run: no suite's prompt is trained on, every mask is proven, every row has a trained token, and
    shares are met.

    suites: suite -> the rows that it evaluates. rows: source -> all its tokenised training rows, for every source that
    a stage trains on or that was named in `also`; cut to the longest `max_length` at which they are trained.
    counts: source -> `read` (raw rows), `filtered` (left aside by the source's filter), `rejected` (bad, allowed by the
    spec), `duplicates` (dropped: same content as an earlier row), `beyond_limit` (not among the `limit` chosen),
    `held_out` (kept for evaluation), `untrained` (dropped: no trained token is left after truncation), `used` (trained
    on in some stage), `measured` (named in `also`, and trained on in none) and `unused` (in no mixture, or beyond the
    steps of every stage); these sum to `read`. Beside them `truncated` (cut to `max_length`), `evaluated` (in some
    suite) and `proven` (rows whose masks were proven).
    digests: source -> SHA-256 over the sorted ids of its rows that are trained on or evaluated.
    untrained: source -> its rows dropped as untrained, for every source in `rows`. references: suite -> its rows in
    tokens; none for a suite whose rows no template renders. told: source -> how it was read. warnings: see
    `Plan.warnings`.
    """

    stages: tuple[StageData, ...]
    suites: Mapping[str, Sequence[Example]]
    rows: Mapping[str, Rows]
    counts: Mapping[str, Mapping[str, int]]
    digests: Mapping[str, str]
    untrained: Mapping[str, Untrained] = field(default_factory=dict)
    references: Mapping[str, Tokenised] = field(default_factory=dict)
    told: Mapping[str, Told] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def training(self) -> Mapping[str, View]:
        """Source -> its conversations that may be trained on."""
        return {name: one.training for name, one in self.told.items() if one.tokenised}

    @property
    def lengths(self) -> Mapping[str, NDArray[np.int64]]:
        """Source -> tokens of each of `rows` before truncation, (N,)."""
        found = {name: one.longest for name, one in self.told.items() if one.tokenised}
        return {name: one.rows.lengths.astype(np.int64) + one.cut for name, one in found.items()}

    @property
    def proven(self) -> Mapping[str, int]:
        """Source -> training rows whose masks are proven."""
        return {name: one.longest.proven for name, one in self.told.items() if one.tokenised}


def prepare(
    plan: Plan,
    sources: Mapping[str, Source],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    also: Sequence[str] = (),
    templates: Mapping[str, Template] = MappingProxyType({}),
    rejected: Path | None = None,
    cached: bool = True,
    processes: int = 1,
    progress: Progress = silent,
) -> Prepared:
    """Read, split, prove, tokenise, mix and order the data of a plan.

    sources: the plan's, made; only those that a stage, a suite or `also` names are read. also: sources whose training
    rows are wanted although no stage may train on them; they are proven to be no suite's rows as well.
    templates: suite -> its own template, for suites that have one. rejected: the folder that gets `<source>.jsonl` with
    every bad row of a source; None: they are only counted.
    cached: take tokens from the cache where nothing has changed, and keep them there.
    processes: that share the training.
    Raises HarnessError for whatever a run must not begin with, with the rows or shares named.
    """
    folder, elsewhere = token_cache.place()
    trained = list(dict.fromkeys([part.source for stage in plan.stages for part in stage.parts] + list(also)))
    names = list(dict.fromkeys(trained + [suite.source for suite in plan.suites]))
    corpora = {name: _read(plan, sources, name, folder, rejected, progress) for name in names}
    splits = {name: _split(plan, corpora[name]) for name in names}
    training = {name: corpora[name].take(splits[name].training) for name in names}
    suites = {suite.name: _rows_of(suite, corpora[suite.source], splits[suite.source], plan) for suite in plan.suites}
    raise_all([*_without_training(trained, splits), *_without_rows(plan.suites, suites)])
    check_disjoint({name: training[name] for name in trained}, suites)
    # The suite's name is no part of the purpose: two suites with one source and limit see the same rows.
    suites = {suite.name: _some(suites[suite.name], suite.limit, plan.seed) for suite in plan.suites}
    tokenised = {
        name: _tokenise(plan, name, training[name], name in also, template, tokenizer, cached, progress)
        for name in trained
    }
    rendered_by = {name: templates.get(name, template) for name in suites}
    references = _references(plan, suites, rendered_by, tokenizer, cached, progress)
    stages = tuple(
        lay(
            stage,
            {one.source: tokenised[one.source][stage.train["max_length"]].rows for one in stage.parts},
            plan.seed,
            processes,
        )
        for stage in plan.stages
    )
    told = {name: Told(corpora[name], splits[name], tokenised.get(name, {})) for name in names}
    used = {name: _used(name, stages) for name in names}
    evaluated = {
        name: _union([suites[suite.name].keys for suite in plan.suites if suite.source == name]) for name in names
    }
    return Prepared(
        stages=stages,
        suites=suites,
        rows={name: told[name].longest.rows for name in trained},
        counts={name: _counts(told[name], used[name], evaluated[name], name in also) for name in names},
        digests={
            name: _digest(_union([used[name], evaluated[name], _wanted(told[name], name in also)])) for name in names
        },
        untrained={name: _untrained(told[name]) for name in trained},
        references=references,
        told=told,
        warnings=tuple(_warnings(told, references, elsewhere)),
    )


def _read(
    plan: Plan, sources: Mapping[str, Source], name: str, folder: Path | None, rejected: Path | None, progress: Progress
) -> Corpus:
    rejections = None if rejected is None else rejected / f"{name}.jsonl"
    options = plan.sources[name][1]
    return read(sources[name], options, name, folder=folder, rejections=rejections, progress=progress)


def _split(plan: Plan, corpus: Corpus) -> Split:
    options = plan.sources[corpus.name][1]
    return split(
        corpus, held_out=options["held_out"], limit=options["limit"], seed=plan.seed, shuffle=options["shuffle"]
    )


def _rows_of(suite: Suite, corpus: Corpus, split: Split, plan: Plan) -> View:
    """The held-out rows of a suite's source; all of its rows when it holds none out."""
    return corpus.take(split.held_out if plan.sources[suite.source][1]["held_out"] else split.training)


def _some(rows: View, limit: int | None, seed: int) -> View:
    return rows.take(chosen(rows.keys, limit, seed, "suite"))


def _without_training(names: Sequence[str], splits: Mapping[str, Split]) -> Iterator[HarnessError]:
    for name in names:
        if not len(splits[name].training):
            what = f"all {len(splits[name].held_out)} of its rows are held out, so none is left to train on"
            yield HarnessError(f"sources.{name}", what, "lower held_out, or add rows")


def _without_rows(suites: Sequence[Suite], rows: Mapping[str, Sequence[Example]]) -> Iterator[HarnessError]:
    for suite in suites:
        if not len(rows[suite.name]):
            what = f"its source {suite.source!r} has too few rows for one of them to be held out"
            yield HarnessError(f"evaluate.{suite.name}", what, "raise held_out, add rows, or name another source")


def _tokenise(
    plan: Plan,
    name: str,
    training: View,
    also: bool,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    cached: bool,
    progress: Progress,
) -> dict[int, Tokenised]:
    """The training rows of a source, tokenised once for each max_length at which they are needed."""
    lengths = {s.train["max_length"] for s in plan.stages if any(part.source == name for part in s.parts)}
    lengths |= {max(stage.train["max_length"] for stage in plan.stages)} if also else set()
    made = {}
    for length in sorted(lengths):
        key = _key(training) if cached else None
        made[length] = tokenise_corpus(training, name, template, tokenizer, length, key=key, progress=progress)
        if not len(made[length].rows):
            what = f"none of its {len(training)} rows has a trained token within {length} tokens"
            raise HarnessError(f"sources.{name}", what, "raise train.max_length, or look at `harness preview`")
    return made


def _references(
    plan: Plan,
    suites: Mapping[str, View],
    templates: Mapping[str, Template],
    tokenizer: PreTrainedTokenizerBase,
    cached: bool,
    progress: Progress,
) -> dict[str, Tokenised]:
    """Every row that a suite evaluates, tokenised and proven as training rows are: answers are measured alike."""
    longest = max(stage.train["max_length"] for stage in plan.stages)
    made = {}
    for suite in plan.suites:
        if not suite.plain:
            rows, template = suites[suite.name], templates[suite.name]
            key = _key(rows) if cached else None
            made[suite.name] = tokenise_corpus(
                rows, suite.name, template, tokenizer, longest, key=key, progress=progress
            )
    return made


def _key(rows: View) -> str:
    """A digest of all in some rows of a corpus that can change a token: the corpus's, and which rows they are."""
    return hashlib.sha256(rows.corpus.digest.encode() + rows.indices.tobytes()).hexdigest()


# -- what came of it --------------------------------------------------------------------------------------------------


def _used(name: str, stages: Sequence[StageData]) -> NDArray[np.uint64]:
    """The ids of a source's rows that some stage trains on."""
    found = []
    for stage in stages:
        rows = stage.rows
        assert isinstance(rows, Rows)
        if name in rows.source_names:
            found.append(rows.ids[rows.source == rows.source_names.index(name)])
    return _union(found)


def _wanted(told: Told, also: bool) -> NDArray[np.uint64]:
    """The ids of the rows that a mitigation is given of a source."""
    return told.longest.rows.ids if also else np.empty(0, np.uint64)


def _counts(told: Told, used: NDArray[np.uint64], evaluated: NDArray[np.uint64], also: bool) -> dict[str, int]:
    corpus, split = told.corpus, told.split
    keys = told.training.keys
    held_out = len(split.held_out)
    if not told.tokenised and not held_out:
        held_out, keys = len(keys), keys[:0]  # a source of suites alone is held out whole
    kept = _union([one.rows.ids for one in told.tokenised.values()])
    measured = np.setdiff1d(kept, used) if also else kept[:0]
    # The rows of a source that no stage trains on are not even tried: what it does not hold out is unused.
    untrained = len(keys) - int(np.isin(keys, kept).sum()) if told.tokenised else 0
    cut = [one.kept[one.cut > 0] for one in told.tokenised.values()]
    return {
        "read": corpus.read,
        "filtered": corpus.filtered,
        "rejected": corpus.rejected,
        "duplicates": split.duplicates,
        "beyond_limit": split.beyond_limit,
        "held_out": held_out,
        "untrained": untrained,
        "used": len(used),
        "measured": len(measured),
        "unused": len(keys) - untrained - len(used) - len(measured),
        "truncated": len(_union(cut)),
        "evaluated": len(evaluated),
        "proven": max((one.proven for one in told.tokenised.values()), default=0),
    }


def _untrained(told: Told) -> Untrained:
    """The rows that have no trained token at some length."""
    every = np.arange(len(told.split.training))
    lost = {length: np.setdiff1d(every, one.kept) for length, one in told.tokenised.items()}
    worst = max(lost, key=lambda length: len(lost[length]))
    first = list(dict.fromkeys(int(index) for one in lost.values() for index in one[:SHOWN]))[:SHOWN]
    return Untrained(len(every), len(lost[worst]), worst, tuple(told.training.place(index) for index in first))


def _warnings(told: Mapping[str, Told], references: Mapping[str, Tokenised], elsewhere: str | None) -> Iterator[str]:
    """elsewhere: why the conversations do not stand in the cache."""
    if elsewhere is not None:
        temporary = tempfile.gettempdir()
        yield f"the rows read stand in {temporary} while they are used, and not in {token_cache.folder()}: {elsewhere}"
    for one in told.values():
        yield from one.corpus.warnings
        for tokenised in one.tokenised.values():
            yield from tokenised.warnings
    for name, reference in references.items():
        count = int(np.count_nonzero(reference.cut))
        if count:
            yield f"the suite {name!r} has {count} row(s) longer than max_length; their references are cut"


def _union(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.unique(np.concatenate([np.empty(0, np.uint64), *(part.astype(np.uint64) for part in parts)]))


def _digest(ids: NDArray[np.uint64]) -> str:
    digest = hashlib.sha256()
    for begin in range(0, len(ids), BLOCK):  # block by block: the names of a million ids take a hundred megabytes
        names = "\n".join(f"{key:016x}" for key in ids[begin : begin + BLOCK].tolist())
        digest.update((names if begin == 0 else f"\n{names}").encode())
    return digest.hexdigest()
