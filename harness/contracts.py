"""The nouns that travel between rooms, and the base classes that plugins extend.

Knows no room, and imports nothing heavy: types of torch and transformers stand here as names only.
A value, once made, is frozen and handed on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KINDS = ("templates", "sources", "modes", "mitigations", "metrics")

Role = Literal["domain", "general"]
Unit = Literal["rows", "tokens", "loss_tokens"]


@dataclass(frozen=True)
class Component:
    """What a plugin declares about one of its components. Declaring imports nothing heavy.

    summary: one sentence, shown by `harness plugins` and in the editor.
    load: "package.module:factory", imported only when a run needs it, called as `factory(**options)`.
    options: JSON-Schema `properties` of its settings, defaults included. `"format": "path"` marks a path (resolved
        against the spec's folder), `"format": "source"` the name of a source of the spec (checked by the core).
    required: the options that have no default.
    usual: usual ranges of core settings beside this component, e.g. `{"train.learning_rate": (1e-4, 5e-4)}`.
    """

    summary: str
    load: str
    options: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    usual: Mapping[str, tuple[float, float]] = field(default_factory=dict)


# -- conversations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    role: `system`, `user` or `assistant`. input: text that an instruction works on, where the data keeps the two apart
    (Alpaca); a template without a place for it renders it below the content.
    """

    role: str
    content: str
    input: str | None = None


@dataclass(frozen=True)
class Record:
    """One raw row as a source yields it. place: where it stands, e.g. `data/x.jsonl:14`."""

    place: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """One conversation, ending with the assistant's response. id: a hash of its content alone."""

    id: str
    messages: tuple[Message, ...]
    place: str


@dataclass(frozen=True)
class Span:
    """A stretch of rendered text. trained: whether the loss is taken on it. frame: written by the template itself,
    so that special tokens in it count as such; in a span that is no frame they are plain text."""

    text: str
    trained: bool = False
    frame: bool = False


@dataclass(frozen=True)
class Row:
    """One tokenised example. labels: the token where it is trained, -100 elsewhere; as long as `input_ids`."""

    id: str
    source: str
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def loss_tokens(self) -> int:
        """Tokens that are predicted from earlier ones and trained: the first token of a row never is."""
        return sum(label != -100 for label in self.labels[1:])


# -- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Rows of one source in a stage. share: of the stage's final mixture, in `unit`; None: every row of the source."""

    source: str
    role: Role
    share: float | None = None
    unit: Unit = "loss_tokens"


@dataclass(frozen=True)
class Stage:
    """One stretch of training. train: its settings, every default filled in."""

    name: str
    parts: tuple[Part, ...]
    train: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """Held-out rows of one source and the metrics drawn from them. metrics: name -> options."""

    name: str
    source: str
    role: Role
    metrics: Mapping[str, Mapping[str, Any]]
    limit: int | None
    max_new_tokens: int
    batch_size: int


@dataclass(frozen=True)
class Plan:
    """All that a run will do, every name in it checked. Components stand as (name, options).

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
class StageData:
    """The rows of a stage and the order in which they are trained.

    order: slots, all epochs one after the other; a slot is the indices of the rows packed into it (one, unpacked).
    epoch_ends: where in `order` each epoch ends; the last lies beyond its end when that epoch is cut short.
    shares: source -> realised share of the mixture by unit, averaged over the epochs.
    efficiency: real tokens / token slots, padding of batches included.
    """

    stage: Stage
    rows: tuple[Row, ...]
    order: tuple[tuple[int, ...], ...]
    epoch_ends: tuple[int, ...]
    shares: Mapping[str, Mapping[str, float]]
    efficiency: float

    def steps(self, processes: int = 1) -> int:
        """Updates that walk the whole order."""
        rows = self.stage.train["batch_size"] * self.stage.train["accumulation"] * processes
        return -(-len(self.order) // rows)


# -- results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """What the model did with one held-out row.

    answer, finish: the generated text and why it ended (`eos`, `stop`, `length`, `empty`); None when nothing was
    generated. nll: summed negative log-likelihood of the reference response, in nats, over `tokens` tokens.
    """

    id: str
    prompt: str
    reference: str
    answer: str | None = None
    finish: str | None = None
    nll: float | None = None
    tokens: int = 0


@dataclass(frozen=True)
class Score:
    """One number of one suite after one stage (stage 0: the base model), with what is needed to compare it.

    low, high: bounds of the 95 % interval. statistics: one vector an item, in the order of the suite's items;
    `Metric.aggregate` of their sum gives `value` (see `Metric`).
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
    higher_is_better: bool
    signature: str
    statistics: tuple[tuple[float, ...], ...] = field(repr=False, default=())


@dataclass(frozen=True)
class Evaluation:
    """One suite after one stage: its items and the scores drawn from them."""

    stage: int
    suite: str
    items: tuple[Item, ...]
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    kind: `run_started`, `progress`, `data`, `evaluated`, `stage_started`, `step`, `stage_finished`, `run_finished`,
    `run_failed`, `warning`. stage: index of the stage, from 1; 0 before the first. data: what happened, by kind.
    """

    kind: str
    stage: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)


class Progress(Protocol):
    """How a room tells that a long phase moves. total: 0 while it is unknown. unit: of `done`, e.g. `B`, `rows`."""

    def __call__(self, phase: str, done: int, total: int, note: str = "", unit: str = "") -> None: ...


def silent(phase: str, done: int, total: int, note: str = "", unit: str = "") -> None:
    """A `Progress` that nobody watches."""


# -- what plugins extend ----------------------------------------------------------------------------------------------


class Template:
    """A way to render a conversation."""

    def render(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, open: bool = False
    ) -> tuple[Span, ...]:
        """The conversation as spans of text, end of turn and begin- and end-of-sequence tokens included.

        open: the conversation ends before the response, so the rendering ends with the response's header.
        Raises HarnessError when the format has no place for one of the messages.
        """
        raise NotImplementedError

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The strings that end a response; generation stops at any of them."""
        raise NotImplementedError


class Source:
    """A place that rows come from."""

    def records(self) -> Iterator[Record]:
        """Every raw row with its place, in a fixed order. Raises HarnessError for what cannot be read."""
        raise NotImplementedError


class Mode:
    """A way to lay sources out as training stages. Its module imports nothing heavy."""

    def stages(self) -> tuple[Stage, ...]:
        """The stages in order. `Stage.train` holds only what differs from the spec's `train`."""
        raise NotImplementedError


class Mitigation:
    """One way to forget less. Every method's default changes nothing.

    Its module imports nothing heavy at the top: `validate` makes mitigations to fold their plans.
    """

    order: ClassVar[int] = 0
    """Mitigations are applied in this order, then by name; never in the order of the JSON file."""

    reads_logits: bool = False
    """Whether `batch_penalty` is to be called; it costs the full logits of each batch."""

    def plan(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """Which data, in what shares. Depends on the options alone: the instance that trains is another one."""
        return stages

    def model(self, model: PreTrainedModel) -> PreTrainedModel:
        """Which weights can move: called once, before the first stage."""
        return model

    def begin_stage(self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[Row]]) -> None:
        """Remember where this stage began. rows: tokenised training rows of the sources that the options name."""

    def weight_pull(self, model: PreTrainedModel) -> torch.Tensor | None:
        """Add the gradient of a function of the weights alone to their `.grad`, in place, and return its value.

        Called once per update, after the task's gradient has been clipped. None: nothing was added.
        """
        return None

    def batch_penalty(
        self, model: PreTrainedModel, batch: Mapping[str, torch.Tensor], logits: torch.Tensor
    ) -> torch.Tensor | None:
        """A scalar of this micro-batch, averaged over its trained tokens, with its graph. None: nothing to add.

        batch: `input_ids` and `labels` of shape (B, T). logits: (B, T, V), before the shift.
        """
        return None

    def end_stage(self, stage: Stage, model: PreTrainedModel, rows: Sequence[Row]) -> None:
        """Learn from the stage just finished. rows: the rows that it trained on."""

    def state_dict(self) -> dict[str, Any]:
        """What must be kept with each checkpoint: tensors, numbers and strings, nested in dicts."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""


class Metric:
    """A number drawn from a suite's items.

    A metric gives one vector of statistics an item; the value over any set of items is `aggregate` of their sum.
    That makes every metric, corpus metrics such as BLEU included, resample without being computed anew.
    """

    reads: ClassVar[Literal["answer", "likelihood"]]
    """Whether the metric needs generated answers or the likelihood of the reference."""

    higher_is_better: bool = True

    names: tuple[str, ...]
    """The scores that it gives, e.g. `("rouge1", "rouge2", "rougeL")`."""

    def signature(self) -> str:
        """What the number means: tokeniser, version, options, in one line."""
        raise NotImplementedError

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Score name -> statistics of one item; the vectors of one score are equally long for every item."""
        raise NotImplementedError

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        """The score `name` of the items whose statistics sum to `total`."""
        raise NotImplementedError
