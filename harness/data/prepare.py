"""Prepare the data of a plan: the rows that each stage trains on and each suite evaluates.

`prepare_data` reads, splits, tokenizes and mixes, and raises an error before a model is loaded. Conversations and
tokens stay on disk; memory holds only some numbers for each row.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.data.checks.findings import FullyTruncatedRows, TextSequence
from harness.data.checks.near_duplicate_clusters import cluster_near_duplicates
from harness.data.dropped_rows import (
    drop_contaminated_items,
    drop_contaminating_rows,
    drop_shared_rows,
    drop_trained_prompts,
    shorten_splits,
)
from harness.data.mixing.row_choice import choose_rows
from harness.data.mixing.stage_layout import build_stage_dataset
from harness.data.reading.corpus import Corpus, CorpusView, read_corpus
from harness.data.reading.held_out_rule import HeldOutRule
from harness.data.reading.splits import Split, check_disjoint, limit_rows, split_corpus
from harness.data.split_checks import divided_group_warnings, no_suite_rows_errors, no_training_rows_errors
from harness.data.tokenization import token_cache
from harness.data.tokenization.tokenize import TokenizedCorpus, tokenize_corpus
from harness.data.tokenization.tokenized_rows import TokenizedRows
from harness.errors import HarnessError, raise_all
from harness.interfaces.mode import Mode
from harness.interfaces.source import Source
from harness.interfaces.template import Template
from harness.spec_keys.data import NEAR_DUPLICATES_KEYS
from harness.types import Example, Plan, Progress, StageDataset, no_progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IDS_PER_BLOCK = 10_000
"""Ids that are hashed at once."""

MAX_ROWS_SHOWN = 3
"""Rows that are named of many."""


@dataclass(frozen=True)
class PreparationOptions:
    """How to prepare the data of a plan.

    Attributes:
        extra_sources: Sources that a mitigation needs in tokens, although no stage may train on them. They must not
            share a prompt with a suite either.
        suite_templates: Suite -> its own template, for suites that have one.
        invalid_rows_folder: The folder for `<source>.jsonl` with every invalid row of a source; None only counts them.
        use_cache: Whether to load unchanged tokens from the cache, and to store new ones there.
        source_options: Source -> its options, with the row format itself in `form`; see `row_formats.with_row_format`.
            Sources that are missing have the options of the plan.
        processes: Processes that share the training.
        longest_unpadded_row: Tokens of the longest row with which the model needs no padding.
        mode: Selects and orders the rows of each stage.
        near_duplicate_threshold: The similarity from which `held_out` keeps near duplicates on one side.
        drop_shared_rows: Whether a row that several sources have is trained in the first of them only.
        drop_contaminated: The spec's `checks.contamination` if contaminated rows are left out of the suites, or the
            training rows that contaminate them out of training.
    """

    extra_sources: Sequence[str] = ()
    suite_templates: Mapping[str, Template] = field(default_factory=dict)
    invalid_rows_folder: Path | None = None
    use_cache: bool = True
    source_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    processes: int = 1
    longest_unpadded_row: int = 0
    mode: Mode = field(default_factory=Mode)
    near_duplicate_threshold: float = NEAR_DUPLICATES_KEYS["threshold"]["default"]
    drop_shared_rows: bool = False
    drop_contaminated: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class PreparedSource:
    """One source after reading, splitting and tokenizing.

    Attributes:
        corpus: The rows of the source.
        split: Its training and held-out rows.
        tokenized_by_length: max_length -> the training rows truncated to it, for each length of a stage that trains on
            them; empty for a source that is only evaluated.
        held_out: How rows are held out.
    """

    corpus: Corpus
    split: Split
    tokenized_by_length: Mapping[int, TokenizedCorpus]
    held_out: HeldOutRule = field(default_factory=HeldOutRule)

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
    """The data of a run.

    No prompt of a suite is trained on, every mask is verified, every row has a trained token, and mixture shares are
    met.

    Attributes:
        stages: The rows of each stage and their order.
        suite_examples: Suite -> the rows that it evaluates.
        tokenized_rows: Source -> all its tokenized training rows, truncated to the longest `max_length` at which they
            are trained; for every source that a stage trains on, and for the extra sources.
        counts: Source -> numbers of rows. These sum to `read`: `filtered` (dropped by the source's filter), `rejected`
            (invalid, allowed by the spec), `duplicates` (same content as an earlier row), `beyond_limit` (not chosen by
            `limit`), `held_out` (for evaluation), `contaminating` (shares text with an evaluated row), `untrained`
            (no trained token is left after truncation), `used` (trained on in some stage), `measured` (of an extra
            source, and trained on in no stage) and `unused` (not in a mixture, or beyond the steps of every stage).
            Also: `truncated` (to `max_length`), `evaluated` (in some suite) and `verified` (rows whose masks were
            verified).
        digests: Source -> SHA-256 over the sorted ids of its rows that are trained on or evaluated.
        fully_truncated: Source -> its rows that truncation drops, for every source in `tokenized_rows`.
        tokenized_suites: Suite -> its rows in tokens; a suite whose rows no template renders is missing.
        sources: Source -> how it was read, split and tokenized.
        warnings: See `Plan.warnings`.
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
        return {name: source.training_examples for name, source in self._trained_sources()}

    @property
    def untruncated_lengths(self) -> Mapping[str, NDArray[np.int64]]:
        """Source -> tokens of each of its `tokenized_rows` before truncation, `(N,)`."""
        longest = {name: source.at_longest_length for name, source in self._trained_sources()}
        return {name: corpus.rows.lengths.astype(np.int64) + corpus.tokens_cut for name, corpus in longest.items()}

    @property
    def held_out_rules(self) -> Mapping[str, Mapping[str, Any]]:
        """Source that holds rows out -> `by`, and the rows and groups on each side; groups are None without a group."""
        return {
            name: {
                "by": source.held_out.describe(),
                "training_rows": len(source.split.training_indices),
                "held_out_rows": len(source.split.held_out_indices),
                "training_groups": source.split.training_groups,
                "held_out_groups": source.split.held_out_groups,
            }
            for name, source in self.sources.items()
            if source.held_out.holds_out_rows
        }

    @property
    def rows_verified(self) -> Mapping[str, int]:
        """Source -> training rows whose masks are verified."""
        return {name: source.at_longest_length.rows_verified for name, source in self._trained_sources()}

    def _trained_sources(self) -> Iterator[tuple[str, PreparedSource]]:
        return ((name, source) for name, source in self.sources.items() if source.tokenized_by_length)


def prepare_data(
    plan: Plan,
    sources: Mapping[str, Source],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    options: PreparationOptions = PreparationOptions(),
    *,
    progress: Progress = no_progress,
) -> PreparedData:
    """Read, split, tokenize and mix the data of a plan.

    Args:
        plan: The plan of the run.
        sources: The sources of the plan; only those that a stage, a suite or `extra_sources` names are read.
        template: The template of the training rows.
        tokenizer: The tokenizer of the model.
        options: How to prepare the data.
        progress: Receives the phases `read` and `tokenize`, in rows.

    Raises:
        HarnessError: A source cannot be read, too few rows are left, a prompt is both trained on and evaluated, a mask
            is wrong, or a mixture share cannot be reached.
    """
    stage_sources = [part.source for stage in plan.stages for part in stage.sources]
    trained = list(dict.fromkeys([*stage_sources, *options.extra_sources]))
    names = list(dict.fromkeys([*trained, *(suite.source for suite in plan.suites)]))
    longest_length = max(stage.train["max_length"] for stage in plan.stages)

    # Read.
    folder, cache_error = token_cache.ensure_cache_folder()
    corpora: dict[str, Corpus] = {}
    for name in names:
        corpora[name] = read_corpus(
            sources[name],
            options.source_options.get(name, plan.sources[name][1]),
            name,
            folder=folder,
            invalid_rows_file=options.invalid_rows_folder and options.invalid_rows_folder / f"{name}.jsonl",
            progress=progress,
            group_columns=sorted(
                {
                    column
                    for suite in plan.suites
                    if suite.source == name
                    for column in (suite.group, *suite.slice_by)
                    if column
                }
            ),
        )

    # Split into training and held-out rows.
    rules = {name: HeldOutRule.from_option(plan.sources[name][1]["held_out"]) for name in names}
    splits: dict[str, Split] = {}
    for name, corpus in corpora.items():
        row_options = {key: plan.sources[name][1][key] for key in ("limit", "shuffle")}
        splits[name] = split_corpus(
            corpus,
            held_out=rules[name],
            **row_options,
            seed=plan.seed,
            cluster_rows=lambda rows, name=name: cluster_near_duplicates(  # type: ignore[misc]
                TextSequence({name: rows}), threshold=options.near_duplicate_threshold, progress=progress
            ),
        )
    training_rows = {name: corpora[name].select(splits[name].training_indices) for name in trained}
    suite_rows: dict[str, CorpusView] = {}
    for suite in plan.suites:
        split, is_split = splits[suite.source], rules[suite.source].holds_out_rows
        # A source that holds nothing out is evaluated on all of its rows.
        suite_rows[suite.name] = corpora[suite.source].select(
            split.held_out_indices if is_split else split.training_indices
        )
    raise_all(
        [
            *no_training_rows_errors(trained, splits, rules),
            *no_suite_rows_errors(plan.suites, suite_rows, splits, rules),
        ]
    )
    dropped_warnings: list[str] = []
    if options.drop_shared_rows:
        dropped_warnings += drop_shared_rows(training_rows, list(dict.fromkeys(stage_sources)))
        splits |= shorten_splits(splits, training_rows, "duplicates")
    settings = options.drop_contaminated
    drops_training_rows = settings is not None and settings["drop"] == "training"
    if drops_training_rows:
        dropped_warnings += drop_trained_prompts(training_rows, suite_rows)
    check_disjoint(training_rows, suite_rows)
    for suite in plan.suites:
        rows = suite_rows[suite.name]
        # The purpose has no suite name, so that two suites with the same source and limit evaluate the same rows.
        suite_rows[suite.name] = rows.select(limit_rows(rows.content_hashes, suite.limit, plan.seed, "suite"))
    if settings is not None and drops_training_rows:
        dropped_warnings += drop_contaminating_rows(training_rows, suite_rows, settings, progress)
        splits |= shorten_splits(splits, training_rows, "contaminating")
    elif settings is not None:
        dropped_warnings += drop_contaminated_items(suite_rows, training_rows, settings, progress)

    # Tokenize, and verify every mask.
    def tokenize(rows: CorpusView, name: str, row_template: Template, max_length: int) -> TokenizedCorpus:
        digest = _view_digest(rows) if options.use_cache else None
        return tokenize_corpus(
            rows, name, row_template, tokenizer, max_length, content_digest=digest, progress=progress
        )

    tokenized: dict[str, dict[int, TokenizedCorpus]] = {}
    for name, rows in training_rows.items():
        lengths = {
            stage.train["max_length"] for stage in plan.stages if name in {part.source for part in stage.sources}
        }
        lengths |= {longest_length} if name in options.extra_sources else set()
        tokenized[name] = {}
        for max_length in sorted(lengths):
            tokenized[name][max_length] = tokenize(rows, name, template, max_length)
            if not len(tokenized[name][max_length].rows):
                what = f"none of its {len(rows)} rows has a trained token within {max_length} tokens"
                raise HarnessError(f"sources.{name}", what, "raise train.max_length, or look at `harness preview`")
    tokenized_suites: dict[str, TokenizedCorpus] = {}
    for suite in plan.suites:
        if not suite.plain:
            suite_template = options.suite_templates.get(suite.name, template)
            tokenized_suites[suite.name] = tokenize(suite_rows[suite.name], suite.name, suite_template, longest_length)

    # Mix the sources of each stage and order the rows.
    stages = tuple(
        build_stage_dataset(stage, pools, plan.seed, options.processes, options.longest_unpadded_row, order_keys)
        for stage in plan.stages
        for pools, order_keys in [
            choose_rows(
                options.mode,
                stage,
                {part.source: tokenized[part.source][stage.train["max_length"]] for part in stage.sources},
                training_rows,
            )
        ]
    )

    # Count every row that was read.
    prepared = {
        name: PreparedSource(corpora[name], splits[name], tokenized.get(name, {}), rules[name]) for name in names
    }
    counts: dict[str, dict[str, int]] = {}
    digests: dict[str, str] = {}
    for name, source in prepared.items():
        is_extra = name in options.extra_sources
        trained_ids = _trained_ids(name, stages)
        evaluated_ids = _unique_ids(
            [suite_rows[suite.name].content_hashes for suite in plan.suites if suite.source == name]
        )
        extra_ids = [source.at_longest_length.rows.ids] if is_extra else []
        counts[name] = _count_rows(source, trained_ids, evaluated_ids, is_extra)
        digests[name] = _digest_ids(_unique_ids([trained_ids, evaluated_ids, *extra_ids]))
    return PreparedData(
        stages=stages,
        suite_examples=suite_rows,
        tokenized_rows={name: prepared[name].at_longest_length.rows for name in trained},
        counts=counts,
        digests=digests,
        fully_truncated={name: _fully_truncated_rows(prepared[name]) for name in trained},
        tokenized_suites=tokenized_suites,
        sources=prepared,
        warnings=(
            *divided_group_warnings(corpora, splits, rules, trained),
            *_preparation_warnings(prepared, tokenized_suites, cache_error),
            *dropped_warnings,
        ),
    )


def _view_digest(rows: CorpusView) -> str:
    """Return a digest of everything in a view that can change a token: the corpus, and which of its rows."""
    return hashlib.sha256(rows.corpus.digest.encode() + rows.indices.tobytes()).hexdigest()


def _trained_ids(name: str, stages: Sequence[StageDataset]) -> NDArray[np.uint64]:
    """Return the ids of a source's rows that some stage trains on, `(N,)`, sorted."""
    stage_ids = []
    for stage in stages:
        rows = stage.rows
        assert isinstance(rows, TokenizedRows)
        if name in rows.source_names:
            stage_ids.append(rows.ids[rows.source_indices == rows.source_names.index(name)])
    return _unique_ids(stage_ids)


def _count_rows(
    prepared: PreparedSource, trained_ids: NDArray[np.uint64], evaluated_ids: NDArray[np.uint64], is_extra: bool
) -> dict[str, int]:
    """Return the numbers of rows of a source; see `PreparedData.counts`."""
    corpus, split, tokenized = prepared.corpus, prepared.split, prepared.tokenized_by_length.values()
    training_ids = prepared.training_examples.content_hashes
    held_out = len(split.held_out_indices)
    if not tokenized and not held_out:
        held_out, training_ids = len(training_ids), training_ids[:0]  # all rows of a source for suites are held out
    tokenized_ids = _unique_ids([rows.rows.ids for rows in tokenized])
    measured = len(np.setdiff1d(tokenized_ids, trained_ids)) if is_extra else 0
    # Rows of a source that no stage trains on are never tokenized: what it does not hold out is unused.
    untrained = len(training_ids) - int(np.isin(training_ids, tokenized_ids).sum()) if tokenized else 0
    truncated_rows = _unique_ids([rows.example_indices[rows.tokens_cut > 0] for rows in tokenized])
    return {
        "read": corpus.rows_read,
        "filtered": corpus.rows_filtered,
        "rejected": corpus.rows_invalid,
        "duplicates": split.duplicates,
        "beyond_limit": split.beyond_limit,
        "held_out": held_out,
        "contaminating": split.contaminating,
        "untrained": untrained,
        "used": len(trained_ids),
        "measured": measured,
        "unused": len(training_ids) - untrained - len(trained_ids) - measured,
        "truncated": len(truncated_rows),
        "evaluated": len(evaluated_ids),
        "verified": max((rows.rows_verified for rows in tokenized), default=0),
    }


def _fully_truncated_rows(prepared: PreparedSource) -> FullyTruncatedRows:
    """Return the rows that have no trained token at some length."""
    rows = np.arange(len(prepared.split.training_indices))
    dropped = {
        length: np.setdiff1d(rows, tokenized.example_indices)
        for length, tokenized in prepared.tokenized_by_length.items()
    }
    worst_length = max(dropped, key=lambda length: len(dropped[length]))
    first_rows = list(dict.fromkeys(int(row) for indices in dropped.values() for row in indices[:MAX_ROWS_SHOWN]))
    locations = tuple(prepared.training_examples.location_of(row) for row in first_rows[:MAX_ROWS_SHOWN])
    return FullyTruncatedRows(len(rows), len(dropped[worst_length]), worst_length, locations)


def _preparation_warnings(
    prepared_sources: Mapping[str, PreparedSource],
    tokenized_suites: Mapping[str, TokenizedCorpus],
    cache_error: str | None,
) -> Iterator[str]:
    """Yield the warnings; `cache_error` is why the conversations are not stored in the cache folder."""
    if cache_error is not None:
        temporary = tempfile.gettempdir()
        folder = token_cache.token_cache_folder()
        yield f"the rows are stored in {temporary} during the run, because {folder} cannot be used: {cache_error}"
    for source in prepared_sources.values():
        yield from source.corpus.warnings
        for tokenized in source.tokenized_by_length.values():
            yield from tokenized.warnings
    for suite, tokenized in tokenized_suites.items():
        count = int(np.count_nonzero(tokenized.tokens_cut))
        if count:
            yield f"the suite {suite!r} has {count} row(s) longer than max_length; their references are truncated"


def _unique_ids(id_arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return the distinct values of all arrays, `(N,)` uint64, sorted."""
    return np.unique(np.concatenate([np.empty(0, np.uint64), *(ids.astype(np.uint64) for ids in id_arrays)]))


def _digest_ids(ids: NDArray[np.uint64]) -> str:
    """Return the SHA-256 of the ids, in hex digits, one per line."""
    digest = hashlib.sha256()
    for begin in range(0, len(ids), IDS_PER_BLOCK):  # in blocks: the text of a million ids takes 100 MB
        lines = "\n".join(f"{row_id:016x}" for row_id in ids[begin : begin + IDS_PER_BLOCK].tolist())
        digest.update((lines if begin == 0 else f"\n{lines}").encode())
    return digest.hexdigest()
