"""Frozen data classes that packages and plugins exchange: conversations, the plan, results.

The module imports nothing of the project and nothing heavy. The base classes that plugins extend are in
`harness.interfaces`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Role = Literal["domain", "general", "replay"]
ShareUnit = Literal["rows", "tokens", "loss_tokens"]

IGNORE_INDEX = -100
"""The label of a token that is not trained, as in `torch.nn.functional.cross_entropy`."""


# -- conversations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToolCall:
    """A tool call of an assistant.

    Attributes:
        name: The tool's name.
        arguments: A JSON object.
        id: The call's id in the data, unique within its turn; None if the data has none.
    """

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: `system`, `user`, `assistant` or `tool` (a tool's answer). The only message of a plain text has the role
            `text`.
        content: The text of the turn.
        input: Text that an instruction works on, if the data separates the two (Alpaca). A template that does not
            separate them renders it below the content.
        tool_calls: The calls that an assistant makes after its content.
        name: The name of the tool that answers, if the data has it.
        train: Whether the loss is computed on an assistant's turn.
        tool_call_id: The id of the call that a tool answers, if the data has it: a call of the previous turn.
        reasoning: What an assistant thinks before its content, if the data separates the two. It is trained with the
            content. The hash of a prompt does not include it.
    """

    role: str
    content: str
    input: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    train: bool = True
    tool_call_id: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True)
class Record:
    """One raw row of a source.

    Attributes:
        location: The row's location, e.g. `data/x.jsonl:14`.
        data: The row's columns.
    """

    location: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class InvalidRecord:
    """A raw row that its source cannot read. The source yields it instead of a `Record` and continues.

    Attributes:
        location: The row's location, e.g. `data/x.jsonl:14`.
        what: What is wrong, as a predicate ("is not JSON").
        hint: The remedy.
        raw: The row's content, text or a JSON value, for the file of rejected rows.
    """

    location: str
    what: str
    hint: str = ""
    raw: Any = None


@dataclass(frozen=True)
class Example:
    """A conversation that ends with the assistant's response, or a plain text.

    Attributes:
        id: A hash of the content.
        messages: The turns in order.
        location: The location of its row, e.g. `data/x.jsonl:14`.
        tools: The tools that the assistant may call, each a function's JSON Schema: `name`, `description`,
            `parameters`.
        choices: The choices of a multiple-choice question, in the order of the data; the response is the right one.
        groups: (column, value) of each column by which a suite groups the rows. It is not part of the content.
    """

    id: str
    messages: tuple[Message, ...]
    location: str
    tools: tuple[Mapping[str, Any], ...] = ()
    choices: tuple[str, ...] = ()
    groups: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Span:
    """A piece of rendered text.

    Attributes:
        text: The text.
        train: Whether the loss is computed on it.
        markup: Whether the template wrote it. Special tokens in markup are tokenized as such; elsewhere they are plain
            text.
    """

    text: str
    train: bool = False
    markup: bool = False


@dataclass(frozen=True)
class TokenizedExample:
    """A tokenized example.

    Attributes:
        id: The example's id.
        source: The name of its source.
        input_ids: Token ids, T of them.
        labels: T labels: the token id where it is trained, else `IGNORE_INDEX`.
        tokens_cut: Tokens that truncation removed from the right. Stored rows do not keep it.
    """

    id: str
    source: str
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    tokens_cut: int = field(default=0, compare=False)

    @property
    def loss_tokens(self) -> int:
        """Number of trained tokens. The first token of a row is never trained, since nothing predicts it."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])


# -- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageSource:
    """One source of a stage. Each epoch has all its rows, unless a `Share` of the stage names the source.

    Attributes:
        source: The source's name.
        role: `domain`, `general`, or `replay` (rows that an earlier stage trained on).
        limit: Maximum number of rows, chosen by the seed; None: all.
    """

    source: str
    role: Role
    limit: int | None = None


@dataclass(frozen=True)
class Share:
    """The share that some sources together have in a stage's final mixture.

    Attributes:
        sources: The names of the sources.
        amount: Their fraction of the mixture, in [0, 1].
        unit: What the fraction counts: rows, tokens or trained tokens.
        weights: How the share is split, one weight a source; None: by `temperature`, or evenly.
        temperature: Split in proportion to size ** (1 / temperature).
        upsample: Whether a row may occur more than once in an epoch.
        resample: Whether each epoch draws its own rows.
    """

    sources: tuple[str, ...]
    amount: float
    unit: ShareUnit = "loss_tokens"
    weights: tuple[float, ...] | None = None
    temperature: float | None = None
    upsample: bool = False
    resample: bool = False


@dataclass(frozen=True)
class Stage:
    """One training stage.

    Attributes:
        name: The stage's name, unique in the plan.
        sources: The sources that it trains on.
        train: Its training settings, with all defaults filled in.
        shares: Mixture shares; no source is in two of them.
        suites: Suites that measure what this stage teaches; empty: those on its sources, or with its name.
        mitigations: Active mitigations, name -> options; None: those of the plan.
        adapter: What happens to the previous stage's adapter: it is trained further (`continue`), merged into the
            weights (`merge`), or discarded for a new one on the base model (`new`).
    """

    name: str
    sources: tuple[StageSource, ...]
    train: Mapping[str, Any] = field(default_factory=dict)
    shares: tuple[Share, ...] = ()
    suites: tuple[str, ...] = ()
    mitigations: Mapping[str, Mapping[str, Any]] | None = None
    adapter: Literal["continue", "merge", "new"] = "continue"


@dataclass(frozen=True)
class Suite:
    """An evaluation suite: held-out rows of one source and the metrics computed on them.

    `spec_keys.evaluation.SUITE_KEYS` describes the settings. A test holds the defaults of the two equal.

    Attributes:
        metrics: Name -> options.
        template: The suite's own template, name and options; None: the template of training.
        group: The column of the rows that names the group of each item; None: all items are independent.
        slice_by: Columns of the rows; the report has the primary score for each of their values.
    """

    name: str
    source: str
    role: Role
    metrics: Mapping[str, Mapping[str, Any]]
    limit: int | None
    max_new_tokens: int
    batch_size: int
    template: tuple[str, Mapping[str, Any]] | None = None
    plain: bool = False
    stop: Sequence[str] = ()
    temperature: float = 0
    top_p: float = 1
    delimiter: str = " "
    lang: str = "auto"
    max_empty: float | None = None
    max_truncated: float | None = None
    max_unparsed: float | None = None
    max_cut: float | None = None
    server: Mapping[str, Any] | None = None
    group: str | None = None
    slice_by: Sequence[str] = ()
    primary: str | None = None
    margin: float | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that a run will do. All names are checked; components are pairs (name, options).

    Attributes:
        name: The name of the run's spec.
        seed: The seed of every random choice.
        model: The spec's `model`, filled in.
        template: The template, name and options.
        sources: Source name -> component.
        mitigations: Mitigation name -> options.
        stages: The stages in order.
        suites: The evaluation suites.
        warnings: Messages for the user. Lines after the first list rows; the terminal omits them.
        train: The spec's training settings. A stage may override all of them but the precision.
    """

    name: str
    seed: int
    model: Mapping[str, Any]
    template: tuple[str, Mapping[str, Any]]
    sources: Mapping[str, tuple[str, Mapping[str, Any]]]
    mitigations: Mapping[str, Mapping[str, Any]]
    stages: tuple[Stage, ...]
    suites: tuple[Suite, ...]
    warnings: tuple[str, ...] = ()
    train: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageDataset:
    """The rows of a stage and the order in which they are trained.

    Attributes:
        stage: The stage.
        rows: Its tokenized rows.
        order: Packed sequences, epoch after epoch. Each is a tuple of indices into `rows`: one index without packing.
        epoch_ends: The index in `order` at which each epoch ends; beyond its end if the last epoch is cut short.
        shares: Source -> unit -> realized share of everything that is trained.
        efficiency: Real tokens divided by token positions, the padding of batches included; in (0, 1].
        epoch_shares: The same as `shares`, for each epoch.
    """

    stage: Stage
    rows: Sequence[TokenizedExample]
    order: Sequence[tuple[int, ...]]
    epoch_ends: tuple[int, ...]
    shares: Mapping[str, Mapping[str, float]]
    efficiency: float
    epoch_shares: tuple[Mapping[str, Mapping[str, float]], ...] = ()

    def count_steps(self, processes: int = 1) -> int:
        """Return the number of optimizer steps for the whole order."""
        rows: int = self.stage.train["batch_size"] * self.stage.train["accumulation"] * processes
        return -(-len(self.order) // rows)


# -- results ----------------------------------------------------------------------------------------------------------


class Progress(Protocol):
    """A callback that reports the progress of a long phase.

    `total` is 0 while it is unknown. `unit` is the unit of `done`, e.g. `B` or `rows`.
    """

    def __call__(self, phase: str, done: int, total: int, note: str = "", unit: str = "") -> None:
        """Report that `done` of `total` units of a phase are done."""


def no_progress(phase: str, done: int, total: int, note: str = "", unit: str = "") -> None:
    """Ignore progress."""


MIN_ITEMS = 30
"""Minimum number of items for a verdict or a gate: intervals over fewer items are too narrow."""

ROUNDING = 1e-10
"""Relative tolerance within which two numbers count as equal.

Processors add in different orders; their sums differ by less.
"""


@dataclass(frozen=True)
class Item:
    """The model's results on one held-out row. Fields that no metric requires are None.

    Attributes:
        id: The example's id.
        prompt: The rendered prompt.
        reference: The reference response, or the plain text.
        answer: The generated text, of `answer_tokens` tokens.
        finish: Why generation ended: `eos`, `stop`, `length` (truncated at `max_new_tokens`) or `empty` (blank answer).
        nll: Summed negative log-likelihood of the reference, in nats, over `tokens` tokens.
        tokens: Number of reference tokens.
        answer_tokens: Number of generated tokens.
        prompt_tokens: Number of prompt tokens.
        prompt_cut: Whether the prompt lost its beginning.
        row_cut: Whether the row lost its end, or a multiple-choice question its beginning.
        kl: Summed KL(base || model) over `tokens` tokens, in nats.
        agreed: At how many of `tokens` tokens model and base have the same most likely token.
        choices: The choices of a multiple-choice row.
        gold: The index of the right choice.
        choice_lls: The summed log-likelihood of each choice, in nats.
        joined: How many choices share a token with the prompt. Their likelihood covers slightly less than the choice.
        text_nll: Summed negative log-likelihood of a plain text, in nats, over `text_tokens` tokens.
        text_tokens: Number of tokens of the plain text.
        group: The group of items to which the row belongs, such as its document; None if the suite has no groups.
        slices: (column, value) of each column by which the suite is sliced.
    """

    id: str
    prompt: str
    reference: str
    answer: str | None = None
    finish: str | None = None
    nll: float | None = None
    tokens: int = 0
    answer_tokens: int = 0
    prompt_tokens: int = 0
    prompt_cut: bool = False
    row_cut: bool = False
    kl: float | None = None
    agreed: int | None = None
    choices: tuple[str, ...] = ()
    gold: int | None = None
    choice_lls: tuple[float, ...] | None = None
    joined: int = 0
    text_nll: float | None = None
    text_tokens: int = 0
    group: str | None = None
    slices: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Score:
    """One score of one suite after one stage, with what is needed to compare it.

    Attributes:
        stage: Index of the stage; 0 for the base model.
        suite: The suite's name.
        metric: The metric's name.
        name: The score's name.
        value: The score.
        n: Number of items.
        stderr: Standard error.
        low: Lower bound of the 95 % interval.
        high: Upper bound of the 95 % interval.
        higher_is_better: The direction; None if neither direction is better.
        signature: The metric's options; scores with different signatures are not comparable.
        statistics: One vector an item, in the order of the suite's items. `Metric.aggregate` of their sum is `value`.
        method: How interval and standard error were computed; see `intervals.Estimate`.
        groups: Number of groups of items that belong together; None if all items are independent.
        counts: Counts among the `n` items: `empty`, `truncated`, `unparsed` and `prompt_cut` answers, `row_cut`
            likelihoods, `boundary` (items whose choices share a token with the prompt).
    """

    stage: int
    suite: str
    metric: str
    name: str
    value: float
    n: int
    stderr: float
    low: float
    high: float
    higher_is_better: bool | None
    signature: str
    statistics: tuple[tuple[float, ...], ...] = field(repr=False, default=())
    method: str = "t"
    groups: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LimitViolation:
    """A suite with more unusable items than its spec allows.

    Attributes:
        stage: Index of the stage.
        suite: The suite's name.
        what: `empty`, `truncated`, `unparsed` or `cut`.
        count: Number of such items.
        n: Number of items.
        allowed: The allowed fraction of `n`.
        metric: The metric that could not parse the answers; empty for the other limits.
    """

    stage: int
    suite: str
    what: str
    count: int
    n: int
    allowed: float
    metric: str = ""

    def __str__(self) -> str:
        share, of = self.count / self.n, f" by {self.metric}" if self.metric else ""
        return f"{self.count} of {self.n} items are {self.what}{of} ({share:.1%}, {self.allowed:.1%} are allowed)"


@dataclass(frozen=True)
class Evaluation:
    """One suite after one stage: its items, their scores and the limits that they violate.

    An evaluation that violates a limit is complete and saved. The run then fails through `raise_on_violations`.
    """

    stage: int
    suite: str
    items: tuple[Item, ...]
    scores: tuple[Score, ...]
    violations: tuple[LimitViolation, ...] = ()

    def matching_score(self, score: Score) -> Score | None:
        """Return the score of the same metric and name, or None."""
        key = (score.metric, score.name)
        return next((candidate for candidate in self.scores if (candidate.metric, candidate.name) == key), None)
