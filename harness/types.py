"""The nouns that travel between rooms, and the base classes that plugins extend.

Knows no room, and imports nothing heavy: types of torch and transformers stand here as names only.
A value, once made, is frozen and handed on. `Mitigation` and `Metric`, base classes too, have files of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    pass


Role = Literal["domain", "general", "replay"]
ShareUnit = Literal["rows", "tokens", "loss_tokens"]

IGNORE_INDEX = -100
"""The label of a token that is not trained, as in `torch.nn.functional.cross_entropy`."""


# -- conversations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToolCall:
    """An assistant's call of a tool. arguments: a JSON object. id: what the data calls it by, alone in its turn."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    role: `system`, `user`, `assistant` or `tool` (what a tool answered); the only message of a plain text has the role
    `text`. input: text that an instruction works on, where the data keeps the two apart (Alpaca); a template without a
    place for it renders it below the content. tool_calls: the tools that an assistant's turn calls, after its content.
    name: of the tool that answers, where the data says it. train: whether the loss is taken on an assistant's turn.
    tool_call_id: the id of the call that a tool's turn answers, where the data says it: of a call of the turn before.
    """

    role: str
    content: str
    input: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    train: bool = True
    tool_call_id: str | None = None


@dataclass(frozen=True)
class Record:
    """One raw row as a source yields it. location: where it stands, e.g. `data/x.jsonl:14`."""

    location: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class InvalidRecord:
    """A raw row that its source cannot read, in the place of a Record; the rows around it are read as ever.

    what: what is wrong with it, as a predicate ("is not JSON"). hint: the remedy. raw: what stands there, text or a
    value of JSON, so that it can be written to the file of rejected rows.
    """

    location: str
    what: str
    hint: str = ""
    raw: Any = None


@dataclass(frozen=True)
class Example:
    """One conversation, ending with the assistant's response, or one plain text. id: a hash of its content alone.

    tools: what the assistant may call, each a function's JSON Schema: `name`, `description`, `parameters`.
    choices: of a multiple-choice question, in the order of the data; the response is one of them, the right one.
    """

    id: str
    messages: tuple[Message, ...]
    location: str
    tools: tuple[Mapping[str, Any], ...] = ()
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Span:
    """A stretch of rendered text. train: whether the loss is taken on it. markup: written by the template itself,
    so that special tokens in it count as such; in a span that is no markup they are plain text."""

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
    """Rows of one source in a stage: every one in each epoch, unless a `Share` of the stage names the source.

    role: `replay` is what an earlier stage trained on. limit: rows taken at most, chosen by the seed; None: all.
    """

    source: str
    role: Role
    limit: int | None = None


@dataclass(frozen=True)
class Share:
    """What some sources of a stage together are of its final mixture: `amount`, in [0, 1], of its `unit`.

    Split among them by `weights` (one a source), by `temperature` (as size ** (1 / temperature)), or evenly.
    upsample: rows may stand more than once in an epoch. resample: every epoch has a draw of its own.
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
    """One stretch of training. train: its settings, every default filled in. shares: each of other sources.

    suites: those that examine what this stage is to teach; none named: those on its sources, or of its name.
    mitigations: those at work in this stage, name -> options; None: the plan's. adapter: what becomes of the adapter of
    the stage before: trained on (`continue`), merged into the weights below a new one (`merge`), or put aside for a new
    one on the base model (`new`).
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
    """Held-out rows of one source and the metrics drawn from them. metrics: name -> options.

    The other settings are those of `spec_keys.evaluation.SUITE_KEYS`, where they are described; a test holds the
    defaults here, for suites made in code, equal to those there.
    template: of the suite's own, name and options; None: that of training.
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


@dataclass(frozen=True)
class Plan:
    """All that a run will do, every name in it checked. Components stand as (name, options).

    warnings: what a person should know; rows that one is about follow it, a line each, which a terminal leaves out.
    train: the spec's own settings, from which a stage may differ in all but the precision.
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

    order: slots, all epochs one after the other; a slot is the indices of the rows packed into it (one, unpacked).
    epoch_ends: where in `order` each epoch ends; the last lies beyond its end when that epoch is cut short.
    shares: source -> unit -> realised share of all that is walked; epoch_shares: the same, one for each epoch.
    efficiency: real tokens / token slots, padding of batches included.
    """

    stage: Stage
    rows: Sequence[TokenizedExample]
    order: Sequence[tuple[int, ...]]
    epoch_ends: tuple[int, ...]
    shares: Mapping[str, Mapping[str, float]]
    efficiency: float
    epoch_shares: tuple[Mapping[str, Mapping[str, float]], ...] = ()

    def count_steps(self, processes: int = 1) -> int:
        """Updates that walk the whole order."""
        rows = self.stage.train["batch_size"] * self.stage.train["accumulation"] * processes
        return -(-len(self.order) // rows)


# -- results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    type: `run_started`, `progress`, `data`, `evaluated`, `stage_started`, `step`, `measured` (within a stage: `step`,
    `scores`, `combined`, `best`, `kept`, `over`), `restored` (`step`), `variant`, `stage_finished`, `run_finished`,
    `run_failed`, `run_closed` (`lacked`: what a finished run had not yet), `warning` (`text`, and the `rows` that it is
    about). Of an experiment: `arm_preparing`, `arm_prepared` (with rows `used` and `evaluated`), `arms_prepared`,
    `arm_started`, `arm_finished`, `arms_finished`.
    stage: index of the stage, from 1; 0 before the first. data: what happened, by type.
    """

    type: str
    stage: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)


class Progress(Protocol):
    """How a room tells that a long phase moves. total: 0 while it is unknown. unit: of `done`, e.g. `B`, `rows`."""

    def __call__(self, phase: str, done: int, total: int, note: str = "", unit: str = "") -> None: ...


def no_progress(phase: str, done: int, total: int, note: str = "", unit: str = "") -> None:
    """A `Progress` that nobody watches."""


# -- what plugins extend ----------------------------------------------------------------------------------------------


ROUNDING = 1e-10
"""Numbers that differ by less than this part of their size count as equal: sums of the same numbers in different
orders, as different processors add them, differ by less."""


@dataclass(frozen=True)
class Item:
    """What the model did with one held-out row. What no metric asked for is None.

    answer, finish: the generated text, of `answer_tokens` tokens, and why it ended: `eos`, `stop`, `length` (it was
        truncated at `max_new_tokens`), `empty` (it is blank).
    prompt_tokens, prompt_cut: of the prompt it was generated from, and whether that lost its beginning.
    nll: summed negative log-likelihood of the reference response, in nats, over `tokens` tokens. row_cut: whether the
        row lost its end (or a multiple-choice question its beginning).
    kl, agreed: over the same `tokens`, the summed KL divergence of the model from the base, KL(base || model), in
        nats, and at how many of them both hold the same token for the likeliest.
    choices, gold: of a multiple-choice row, and which is right. choice_lls: the summed log-likelihood of each in nats.
    joined: how many choices share a token with the prompt, so that the likelihood is of a little less than the choice.
    text_nll: summed negative log-likelihood of a plain text (it stands in `reference`), over `text_tokens` tokens.
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


@dataclass(frozen=True)
class Score:
    """One number of one suite after one stage (stage 0: the base model), with what is needed to compare it.

    low, high: bounds of the 95 % interval. method: how it and `stderr` were found (see `intervals.Estimate`).
    counts: what to know beside the number, of its `n` items: `empty`, `truncated`, `unparsed` and `prompt_cut` of
    answers, `row_cut` of likelihoods, `boundary` (items whose choices share a token with the prompt).
    statistics: one vector an item, in the order of the suite's items; `Metric.aggregate` of their sum gives `value`.
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
    method: str = "bootstrap"
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class LimitViolation:
    """A suite in which more items than its spec allows are no measure of the model.

    what: `empty`, `truncated`, `unparsed` or `cut`. metric: whose answers were unparsed. allowed: a share of `n`.
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
    """One suite after one stage: its items, the scores drawn from them, and which of the suite's limits they break.

    An evaluation that breaks a limit is complete and saved; who runs it fails with `raise_on_violations`.
    """

    stage: int
    suite: str
    items: tuple[Item, ...]
    scores: tuple[Score, ...]
    violations: tuple[LimitViolation, ...] = ()

    def matching_score(self, score: Score) -> Score | None:
        """Its score of the same metric and name; None where there is none."""
        return next((one for one in self.scores if (one.metric, one.name) == (score.metric, score.name)), None)
