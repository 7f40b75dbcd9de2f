"""Frozen data classes that packages and plugins exchange: conversations, the plan, results.

The module imports nothing heavy; `result_types` has the classes of results. The base classes that plugins extend are in
`harness.interfaces`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from harness.result_types import MIN_ITEMS as MIN_ITEMS
from harness.result_types import ROUNDING as ROUNDING
from harness.result_types import Evaluation as Evaluation
from harness.result_types import Item as Item
from harness.result_types import LimitViolation as LimitViolation
from harness.result_types import Progress as Progress
from harness.result_types import Score as Score
from harness.result_types import no_progress as no_progress

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
        data: The columns that the source's `keep` names, for metrics and modes. They are not part of the content.
    """

    id: str
    messages: tuple[Message, ...]
    location: str
    tools: tuple[Mapping[str, Any], ...] = ()
    choices: tuple[str, ...] = ()
    groups: tuple[tuple[str, str], ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WrittenResponse:
    """A model's response to the prompt of a row.

    Attributes:
        example: The row, with its own response.
        text: What the model wrote instead, without the tokens that ended it.
        finish: Why it ended: `eos` or `stop`; `length`: it was cut at the maximum number of tokens; `empty`; or
            `no_prompt`: nothing was asked, since the row is a plain text, has tools, or has a prompt that fills
            `train.max_length`.
        tokens: Number of generated tokens.
    """

    example: Example
    text: str
    finish: str
    tokens: int

    def to_example(self) -> Example:
        """Return the row with the written response instead of its own. Earlier responses are not trained."""
        turns = (
            replace(message, train=False) if message.role == "assistant" else message
            for message in self.example.messages[:-1]
        )
        return replace(self.example, messages=(*turns, Message("assistant", self.text)))


@dataclass(frozen=True)
class WrittenPrompt:
    """A user's message that a model wrote from the header of a user's turn alone.

    Attributes:
        text: The message, without the white space around it and the token that ended it.
        finish: Why it ended: `eos` or `stop`; `length`: it was cut at the maximum number of tokens; or `empty`.
        tokens: Number of generated tokens.
        log_probability: Mean log-probability of the generated tokens under the model, in nats.
    """

    text: str
    finish: str
    tokens: int
    log_probability: float


@dataclass(frozen=True)
class Finding:
    """What a data check found in a row.

    Attributes:
        location: The location of the row, as in `Example.location`.
        text: What was found, one line, e.g. "an e-mail address in message 2 (assistant)".
    """

    location: str
    text: str


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
        written_by: The mitigation that writes its rows before the stage, see `Mitigation.generate_rows`; None: the rows
            of the data. Until they are written, the plan counts those of the data.
    """

    source: str
    role: Role
    limit: int | None = None
    written_by: str | None = None


@dataclass(frozen=True)
class SourceRows:
    """The training rows of one source, from which a mode selects and which it orders.

    Attributes:
        source: The source's name.
        tokens: (N,) tokens of each row, after truncation.
        loss_tokens: (N,) its trained tokens.
        examples: The N conversations. Each is read from disk when it is accessed.
    """

    source: str
    tokens: Sequence[int]
    loss_tokens: Sequence[int]
    examples: Sequence[Example]

    def __len__(self) -> int:
        """Return N."""
        return len(self.tokens)


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
        planned_steps: Optimizer steps; early stopping may end the stage sooner. None in a plan: the rows are not known.
        planned_saves: The steps after which a checkpoint is written, ascending; empty in a plan.
        planned_rows: The rows that the stage trains on, each once; empty in a plan.
    """

    name: str
    sources: tuple[StageSource, ...]
    train: Mapping[str, Any] = field(default_factory=dict)
    shares: tuple[Share, ...] = ()
    suites: tuple[str, ...] = ()
    mitigations: Mapping[str, Mapping[str, Any]] | None = None
    adapter: Literal["continue", "merge", "new"] = "continue"
    planned_steps: int | None = field(default=None, compare=False)
    planned_saves: tuple[int, ...] = field(default=(), compare=False)
    planned_rows: Sequence[TokenizedExample] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Suite:
    """An evaluation suite: held-out rows of one source and the metrics computed on them.

    `spec_keys.evaluation.SUITE_KEYS` describes the settings. A test holds the defaults of the two equal.

    Attributes:
        name: The name of the suite.
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
    samples: int = 1
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
        mode: The mode, name and options.
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
    mode: tuple[str, Mapping[str, Any]] = ("", {})


@dataclass(frozen=True)
class StageDataset:
    """The rows of a stage and the order in which they are trained.

    Attributes:
        stage: The stage.
        rows: Its tokenized rows.
        order: Packed sequences, epoch after epoch. Each is a tuple of indices into `rows`: one index without packing.
        epoch_ends: The index in `order` at which each epoch ends; beyond its end if the last epoch is cut short.
        shares: Source -> unit -> realized share of everything that is trained.
        efficiency: Real tokens divided by token positions, the padding of batches included; in (0, 1]. It is 1 without
            padding.
        epoch_shares: The same as `shares`, for each epoch.
        is_padded: Whether batches are padded, as the model's config says.
    """

    stage: Stage
    rows: Sequence[TokenizedExample]
    order: Sequence[tuple[int, ...]]
    epoch_ends: tuple[int, ...]
    shares: Mapping[str, Mapping[str, float]]
    efficiency: float
    epoch_shares: tuple[Mapping[str, Mapping[str, float]], ...] = ()
    is_padded: bool = True

    def count_steps(self, processes: int = 1) -> int:
        """Return the number of optimizer steps for the whole order."""
        rows: int = self.stage.train["batch_size"] * self.stage.train["accumulation"] * processes
        return -(-len(self.order) // rows)


# -- evaluations within a stage ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SuiteScores:
    """The scores of a suite before a stage and after one of its steps.

    Attributes:
        role: The suite's role.
        primary: The name of its primary score; None if mid-stage evaluations do not measure it.
        start: Score name -> value in the evaluation before the stage.
        now: Score name -> value after the step; the same names.
        higher_is_better: Score name -> the direction; None if neither direction is better.
        margin: The largest loss of the primary score that does not count as forgetting; None without a primary score.
    """

    role: Role
    primary: str | None
    start: Mapping[str, float]
    now: Mapping[str, float]
    higher_is_better: Mapping[str, bool | None]
    margin: float | None

    def worsening(self, name: str) -> float:
        """Return by how much a score with a direction is worse than before the stage; negative if it is better."""
        change = self.start[name] - self.now[name]
        return change if self.higher_is_better[name] else -change
