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

from harness.data.checks.findings import FullyTruncatedRows
from harness.data.mixing.stage_layout import build_stage_dataset
from harness.data.reading.corpus import Corpus, CorpusView, read_corpus
from harness.data.reading.splits import Split, check_disjoint, limit_rows, split_corpus
from harness.data.tokenization import token_cache
from harness.data.tokenization.tokenize import TokenizedCorpus, tokenize_corpus
from harness.data.tokenization.tokenized_rows import TokenizedRows
from harness.errors import HarnessError, raise_all
from harness.interfaces.source import Source
from harness.interfaces.template import Template
from harness.types import Example, Plan, Progress, StageDataset, Suite, no_progress

IDS_PER_BLOCK = 10_000
"""Ids that are written out at once."""

MAX_ROWS_SHOWN = 3
"""Rows that are named of many."""


@dataclass(frozen=True)
class PreparedSource:
    """One source as it was read and told apart, and its training rows in tokens.

    tokenised: max_length -> the training rows cut to it, for each length at which they are trained; empty for a source
    that is only evaluated.
    """

    corpus: Corpus
    split: Split
    tokenized_by_length: Mapping[int, TokenizedCorpus]

    @property
    def training_examples(self) -> CorpusView:
        """The rows that may be trained on."""
        return self.corpus.select(self.split.training_indices)

    @property
    def at_longest_length(self) -> TokenizedCorpus:
        """The training rows at the longest length at which they are trained."""
        return self.tokenized_by_length[max(self.tokenized_by_length)]


@dataclass(frozen=True)
class PreparedData:
    """The data of a run: no suite's prompt is trained on, every mask is proven, every row has a trained token, and
    shares are met.

    suite_examples: suite -> the rows that it evaluates.
    tokenized_rows: source -> all its tokenised training rows, for every source that a stage trains on or that was named
    in `extra_sources`; cut to the longest `max_length` at which they are trained.
    counts: source -> `read` (raw rows), `filtered` (left aside by the source's filter), `rejected` (bad, allowed by the
    spec), `duplicates` (dropped: same content as an earlier row), `beyond_limit` (not among the `limit` chosen),
    `held_out` (kept for evaluation), `untrained` (dropped: no trained token is left after truncation), `used` (trained
    on in some stage), `measured` (named in `extra_sources`, and trained on in none) and `unused` (in no mixture, or
    beyond the steps of every stage); these sum to `read`. Beside them `truncated` (cut to `max_length`), `evaluated`
    (in some suite) and `proven` (rows whose masks were proven).
    digests: source -> SHA-256 over the sorted ids of its rows that are trained on or evaluated.
    fully_truncated: source -> its rows dropped as untrained, for every source in `tokenized_rows`.
    tokenized_suites: suite -> its rows in tokens; none for a suite whose rows no template renders.
    sources: source -> how it was read. warnings: see `Plan.warnings`.
    """

    stages: tuple[StageDataset, ...]
    suite_examples: Mapping[str, Sequence[Example]]
    tokenized_rows: Mapping[str, TokenizedRows]
    counts: Mapping[str, Mapping[str, int]]
    digests: Mapping[str, str]
    fully_truncated: Mapping[str, FullyTruncatedRows] = field(default_factory=dict)
    tokenized_suites: Mapping[str, TokenizedCorpus] = field(default_factory=dict)
    sources: Mapping[str, PreparedSource] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def training_examples(self) -> Mapping[str, CorpusView]:
        """Source -> its conversations that may be trained on."""
        return {name: one.training_examples for name, one in self.sources.items() if one.tokenized_by_length}

    @property
    def untruncated_lengths(self) -> Mapping[str, NDArray[np.int64]]:
        """Source -> tokens of each of `rows` before truncation, (N,)."""
        found = {name: one.at_longest_length for name, one in self.sources.items() if one.tokenized_by_length}
        return {name: one.rows.lengths.astype(np.int64) + one.tokens_cut for name, one in found.items()}

    @property
    def rows_verified(self) -> Mapping[str, int]:
        """Source -> training rows whose masks are proven."""
        return {
            name: one.at_longest_length.rows_verified for name, one in self.sources.items() if one.tokenized_by_length
        }


def prepare_data(
    plan: Plan,
    sources: Mapping[str, Source],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    extra_sources: Sequence[str] = (),
    templates: Mapping[str, Template] = MappingProxyType({}),
    invalid_rows_folder: Path | None = None,
    use_cache: bool = True,
    processes: int = 1,
    progress: Progress = no_progress,
) -> PreparedData:
    """Read, split, prove, tokenise, mix and order the data of a plan.

    sources: the plan's, made; only those that a stage, a suite or `extra_sources` names are read.
    extra_sources: sources whose training rows are wanted although no stage may train on them; they are proven to be no
    suite's rows as well.
    templates: suite -> its own template, for suites that have one. invalid_rows_folder: the folder that gets
    `<source>.jsonl` with every bad row of a source; None: they are only counted.
    use_cache: take tokens from the cache where nothing has changed, and keep them there.
    processes: that share the training.
    Raises HarnessError for whatever a run must not begin with, with the rows or shares named.
    """
    folder, elsewhere = token_cache.ensure_cache_folder()
    trained = list(
        dict.fromkeys([part.source for stage in plan.stages for part in stage.sources] + list(extra_sources))
    )
    names = list(dict.fromkeys(trained + [suite.source for suite in plan.suites]))
    corpora = {name: _read_source(plan, sources, name, folder, invalid_rows_folder, progress) for name in names}
    splits = {name: _split_source(plan, corpora[name]) for name in names}
    training = {name: corpora[name].select(splits[name].training_indices) for name in names}
    suites = {
        suite.name: _suite_rows(suite, corpora[suite.source], splits[suite.source], plan) for suite in plan.suites
    }
    raise_all([*_no_training_rows_errors(trained, splits), *_no_suite_rows_errors(plan.suites, suites)])
    check_disjoint({name: training[name] for name in trained}, suites)
    # The suite's name is no part of the purpose: two suites with one source and limit see the same rows.
    suites = {suite.name: _limit_suite_rows(suites[suite.name], suite.limit, plan.seed) for suite in plan.suites}
    tokenised = {
        name: _tokenize_source(
            plan, name, training[name], name in extra_sources, template, tokenizer, use_cache, progress
        )
        for name in trained
    }
    rendered_by = {name: templates.get(name, template) for name in suites}
    references = _tokenize_suites(plan, suites, rendered_by, tokenizer, use_cache, progress)
    stages = tuple(
        build_stage_dataset(
            stage,
            {one.source: tokenised[one.source][stage.train["max_length"]].rows for one in stage.sources},
            plan.seed,
            processes,
        )
        for stage in plan.stages
    )
    told = {name: PreparedSource(corpora[name], splits[name], tokenised.get(name, {})) for name in names}
    used = {name: _trained_ids(name, stages) for name in names}
    evaluated = {
        name: _unique_ids([suites[suite.name].content_hashes for suite in plan.suites if suite.source == name])
        for name in names
    }
    return PreparedData(
        stages=stages,
        suite_examples=suites,
        tokenized_rows={name: told[name].at_longest_length.rows for name in trained},
        counts={name: _count_rows(told[name], used[name], evaluated[name], name in extra_sources) for name in names},
        digests={
            name: _digest_ids(_unique_ids([used[name], evaluated[name], _extra_ids(told[name], name in extra_sources)]))
            for name in names
        },
        fully_truncated={name: _fully_truncated_rows(told[name]) for name in trained},
        tokenized_suites=references,
        sources=told,
        warnings=tuple(_preparation_warnings(told, references, elsewhere)),
    )


def _read_source(
    plan: Plan,
    sources: Mapping[str, Source],
    name: str,
    folder: Path | None,
    invalid_rows_folder: Path | None,
    progress: Progress,
) -> Corpus:
    rejections = None if invalid_rows_folder is None else invalid_rows_folder / f"{name}.jsonl"
    options = plan.sources[name][1]
    return read_corpus(sources[name], options, name, folder=folder, invalid_rows_file=rejections, progress=progress)


def _split_source(plan: Plan, corpus: Corpus) -> Split:
    options = plan.sources[corpus.name][1]
    return split_corpus(
        corpus, held_out=options["held_out"], limit=options["limit"], seed=plan.seed, shuffle=options["shuffle"]
    )


def _suite_rows(suite: Suite, corpus: Corpus, split: Split, plan: Plan) -> CorpusView:
    """The held-out rows of a suite's source; all of its rows when it holds none out."""
    return corpus.select(
        split.held_out_indices if plan.sources[suite.source][1]["held_out"] else split.training_indices
    )


def _limit_suite_rows(rows: CorpusView, limit: int | None, seed: int) -> CorpusView:
    return rows.select(limit_rows(rows.content_hashes, limit, seed, "suite"))


def _no_training_rows_errors(names: Sequence[str], splits: Mapping[str, Split]) -> Iterator[HarnessError]:
    for name in names:
        if not len(splits[name].training_indices):
            what = f"all {len(splits[name].held_out_indices)} of its rows are held out, so none is left to train on"
            yield HarnessError(f"sources.{name}", what, "lower held_out, or add rows")


def _no_suite_rows_errors(
    suites: Sequence[Suite], suite_examples: Mapping[str, Sequence[Example]]
) -> Iterator[HarnessError]:
    for suite in suites:
        if not len(suite_examples[suite.name]):
            what = f"its source {suite.source!r} has too few rows for one of them to be held out"
            yield HarnessError(f"evaluate.{suite.name}", what, "raise held_out, add rows, or name another source")


def _tokenize_source(
    plan: Plan,
    name: str,
    training: CorpusView,
    is_extra: bool,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    use_cache: bool,
    progress: Progress,
) -> dict[int, TokenizedCorpus]:
    """The training rows of a source, tokenised once for each max_length at which they are needed."""
    lengths = {s.train["max_length"] for s in plan.stages if any(part.source == name for part in s.sources)}
    lengths |= {max(stage.train["max_length"] for stage in plan.stages)} if is_extra else set()
    made = {}
    for length in sorted(lengths):
        key = _view_digest(training) if use_cache else None
        made[length] = tokenize_corpus(
            training, name, template, tokenizer, length, content_digest=key, progress=progress
        )
        if not len(made[length].rows):
            what = f"none of its {len(training)} rows has a trained token within {length} tokens"
            raise HarnessError(f"sources.{name}", what, "raise train.max_length, or look at `harness preview`")
    return made


def _tokenize_suites(
    plan: Plan,
    suites: Mapping[str, CorpusView],
    templates: Mapping[str, Template],
    tokenizer: PreTrainedTokenizerBase,
    use_cache: bool,
    progress: Progress,
) -> dict[str, TokenizedCorpus]:
    """Every row that a suite evaluates, tokenised and proven as training rows are: answers are measured alike."""
    longest = max(stage.train["max_length"] for stage in plan.stages)
    made = {}
    for suite in plan.suites:
        if not suite.plain:
            rows, template = suites[suite.name], templates[suite.name]
            key = _view_digest(rows) if use_cache else None
            made[suite.name] = tokenize_corpus(
                rows, suite.name, template, tokenizer, longest, content_digest=key, progress=progress
            )
    return made


def _view_digest(rows: CorpusView) -> str:
    """A digest of all in some rows of a corpus that can change a token: the corpus's, and which rows they are."""
    return hashlib.sha256(rows.corpus.digest.encode() + rows.indices.tobytes()).hexdigest()


# -- what came of it --------------------------------------------------------------------------------------------------


def _trained_ids(name: str, stages: Sequence[StageDataset]) -> NDArray[np.uint64]:
    """The ids of a source's rows that some stage trains on."""
    found = []
    for stage in stages:
        rows = stage.rows
        assert isinstance(rows, TokenizedRows)
        if name in rows.source_names:
            found.append(rows.ids[rows.source_indices == rows.source_names.index(name)])
    return _unique_ids(found)


def _extra_ids(prepared: PreparedSource, is_extra: bool) -> NDArray[np.uint64]:
    """The ids of the rows that a mitigation is given of a source."""
    return prepared.at_longest_length.rows.ids if is_extra else np.empty(0, np.uint64)


def _count_rows(
    prepared: PreparedSource, trained_ids: NDArray[np.uint64], evaluated_ids: NDArray[np.uint64], is_extra: bool
) -> dict[str, int]:
    corpus, split = prepared.corpus, prepared.split
    keys = prepared.training_examples.content_hashes
    held_out = len(split.held_out_indices)
    if not prepared.tokenized_by_length and not held_out:
        held_out, keys = len(keys), keys[:0]  # a source of suites alone is held out whole
    kept = _unique_ids([one.rows.ids for one in prepared.tokenized_by_length.values()])
    measured = np.setdiff1d(kept, trained_ids) if is_extra else kept[:0]
    # The rows of a source that no stage trains on are not even tried: what it does not hold out is unused.
    untrained = len(keys) - int(np.isin(keys, kept).sum()) if prepared.tokenized_by_length else 0
    cut = [one.example_indices[one.tokens_cut > 0] for one in prepared.tokenized_by_length.values()]
    return {
        "read": corpus.rows_read,
        "filtered": corpus.rows_filtered,
        "rejected": corpus.rows_invalid,
        "duplicates": split.duplicates,
        "beyond_limit": split.beyond_limit,
        "held_out": held_out,
        "untrained": untrained,
        "used": len(trained_ids),
        "measured": len(measured),
        "unused": len(keys) - untrained - len(trained_ids) - len(measured),
        "truncated": len(_unique_ids(cut)),
        "evaluated": len(evaluated_ids),
        "proven": max((one.rows_verified for one in prepared.tokenized_by_length.values()), default=0),
    }


def _fully_truncated_rows(prepared: PreparedSource) -> FullyTruncatedRows:
    """The rows that have no trained token at some length."""
    every = np.arange(len(prepared.split.training_indices))
    lost = {length: np.setdiff1d(every, one.example_indices) for length, one in prepared.tokenized_by_length.items()}
    worst = max(lost, key=lambda length: len(lost[length]))
    first = list(dict.fromkeys(int(index) for one in lost.values() for index in one[:MAX_ROWS_SHOWN]))[:MAX_ROWS_SHOWN]
    return FullyTruncatedRows(
        len(every), len(lost[worst]), worst, tuple(prepared.training_examples.location_of(index) for index in first)
    )


def _preparation_warnings(
    prepared_sources: Mapping[str, PreparedSource],
    tokenized_suites: Mapping[str, TokenizedCorpus],
    cache_error: str | None,
) -> Iterator[str]:
    """elsewhere: why the conversations do not stand in the cache."""
    if cache_error is not None:
        temporary = tempfile.gettempdir()
        folder = token_cache.token_cache_folder()
        yield f"the rows read stand in {temporary} while they are used, and not in {folder}: {cache_error}"
    for one in prepared_sources.values():
        yield from one.corpus.warnings
        for tokenised in one.tokenized_by_length.values():
            yield from tokenised.warnings
    for name, reference in tokenized_suites.items():
        count = int(np.count_nonzero(reference.tokens_cut))
        if count:
            yield f"the suite {name!r} has {count} row(s) longer than max_length; their references are cut"


def _unique_ids(id_arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.unique(np.concatenate([np.empty(0, np.uint64), *(part.astype(np.uint64) for part in id_arrays)]))


def _digest_ids(ids: NDArray[np.uint64]) -> str:
    digest = hashlib.sha256()
    for begin in range(
        0, len(ids), IDS_PER_BLOCK
    ):  # block by block: the names of a million ids take a hundred megabytes
        names = "\n".join(f"{key:016x}" for key in ids[begin : begin + IDS_PER_BLOCK].tolist())
        digest.update((names if begin == 0 else f"\n{names}").encode())
    return digest.hexdigest()
