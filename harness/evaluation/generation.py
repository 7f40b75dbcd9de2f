"""Batched generation of answers; a row leaves the batch when its answer has ended, and a waiting one joins."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from harness.errors import RunError
from harness.evaluation.generation_rows import CachedRows, UncachedRows
from harness.interfaces.template import Template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


TokenSampler = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""Takes logits (B, V) and the key of each row, returns token ids (B,)."""

NUCLEUS_TOKENS = 1000
"""Tokens that are sorted first when a nucleus is sampled. On a CPU a sort of 50,000 tokens is slow."""


def greedy(logits: torch.Tensor, keys: Sequence[int]) -> torch.Tensor:
    """Return the most likely token of each row, (B,)."""
    return logits.argmax(-1)


class TopPSampler:
    """Samples from the most likely tokens that together have the probability `top_p`.

    This is nucleus sampling (Holtzman et al., 2020, arXiv:1904.09751). Each row has its own generator on the CPU, so
    its samples depend on neither the batch nor the device. Probabilities are computed in float64.
    """

    def __init__(self, temperature: float, top_p: float, seeds: Mapping[int, int]) -> None:
        """Create the sampler.

        Args:
            temperature: Divides the logits; above 0.
            top_p: Probability mass to sample from, 0 to 1.
            seeds: Key of a row -> seed of its generator.
        """
        self._temperature, self._top_p, self._seeds = temperature, top_p, seeds
        self._generators: dict[int, torch.Generator] = {}  # of the rows that are being generated; 5 kB each

    def __call__(self, logits: torch.Tensor, keys: Sequence[int]) -> torch.Tensor:
        """Return one sampled token per row, (B,)."""
        probabilities, tokens = self._candidates((logits.double() / self._temperature).softmax(-1))  # (B, K) each
        cumulative = probabilities.cumsum(-1)  # (B, K)
        # A token is in the nucleus if the tokens before it have less than top_p: the most likely one always is.
        nucleus = (cumulative - probabilities) < self._top_p  # (B, K)
        nucleus_mass = (probabilities * nucleus).sum(-1, keepdim=True)  # (B, 1)
        uniform = [torch.rand((), generator=self._generator(key), dtype=torch.float64) for key in keys]
        threshold = torch.stack(uniform).to(logits.device)[:, None] * nucleus_mass  # (B, 1)
        rank = torch.searchsorted(cumulative, threshold, right=True).clamp(max=tokens.shape[-1] - 1)
        last_rank = nucleus.sum(-1, keepdim=True) - 1  # rounding must not select a token outside the nucleus
        return tokens.gather(-1, torch.minimum(rank, last_rank).clamp(min=0))[:, 0]  # NaN: no nucleus

    def _candidates(self, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the probabilities and the tokens to sample from, (B, K) each.

        With `top_p` of 1 all tokens are returned, by id: no sort is needed. Otherwise they are sorted by probability,
        then by id. K is `NUCLEUS_TOKENS` if these contain the nucleus of every row. Else it is V. The tokens as likely
        as the last of the K do not count, since more tokens may be as likely.

        Args:
            probabilities: Of all tokens, (B, V).
        """
        if self._top_p >= 1:
            tokens = torch.arange(probabilities.shape[-1], device=probabilities.device)  # (V,)
            return probabilities, tokens.expand_as(probabilities)
        tokens = probabilities.topk(min(NUCLEUS_TOKENS, probabilities.shape[-1])).indices.sort(-1).values  # (B, K)
        top, order = probabilities.gather(-1, tokens).sort(stable=True, dim=-1, descending=True)
        if ((top * (top > top[:, -1:])).sum(-1) >= self._top_p).all():  # false for NaN
            return top, tokens.gather(-1, order)
        return probabilities.sort(stable=True, dim=-1, descending=True)

    def forget(self, key: int) -> None:
        """Free the generator of a row that has ended."""
        self._generators.pop(key, None)

    def _generator(self, key: int) -> torch.Generator:
        if key not in self._generators:
            self._generators[key] = torch.Generator().manual_seed(self._seeds[key])
        return self._generators[key]


@dataclass(frozen=True)
class StopConditions:
    """What ends an answer.

    Attributes:
        eos_id: The tokenizer's end-of-sequence token, if it has one.
        token_ids: Other tokens.
        strings: Texts.
    """

    eos_id: int | None
    token_ids: frozenset[int]
    strings: tuple[str, ...]


def resolve_stops(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    extra_stops: Sequence[str] = (),
    *,
    use_template_stops: bool = True,
) -> StopConditions:
    """Return what ends an answer: the template's stops, `extra_stops`, and the tokenizer's end-of-sequence token.

    A stop that is a single special or added token is compared as a token. Any other is compared as text, because a
    text can be tokenized in several ways.

    Args:
        template: The template of the prompts.
        tokenizer: The model's tokenizer.
        extra_stops: Stops of the suite.
        use_template_stops: False if prompts are not rendered by the template.
    """
    special_ids = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    token_ids = {**tokenizer.get_added_vocab(), **special_ids}
    stops = (*(template.stop_strings(tokenizer) if use_template_stops else ()), *extra_stops)
    stop_ids = frozenset(token_ids[stop] for stop in stops if stop in token_ids)
    stop_texts = tuple(stop for stop in stops if stop and stop not in token_ids)
    return StopConditions(tokenizer.eos_token_id, stop_ids - {tokenizer.eos_token_id}, stop_texts)


def decode_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Return the text of an answer's tokens without special tokens, with spaces as the model wrote them."""
    text = tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def completes_stop_string(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stop_strings: Sequence[str]
) -> bool:
    """Return whether the last token completes one of the strings. Only the last tokens are decoded."""
    if not stop_strings:
        return False
    # A token has at least one byte. 8 more allow for special tokens in between and a partial first character.
    tail_length = max(len(text.encode()) for text in stop_strings) + 8
    tail = decode_tokens(tokenizer, tokens[-tail_length:])
    return any(text in tail for text in stop_strings)


def truncate_at_stop(text: str, stop_strings: Sequence[str]) -> str:
    """Return the text before the first of the strings."""
    positions = [position for position in map(text.find, stop_strings) if position >= 0]
    return text[: min(positions)] if positions else text


@dataclass(frozen=True)
class Answer:
    """A generated answer.

    Attributes:
        text: The text before the stop.
        finish: `eos`, `stop`, `length`, or `empty` for a blank text.
        token_count: Number of generated tokens, including the one that ended the answer.
    """

    text: str
    finish: str
    token_count: int


class UndefinedLogits(RunError):
    """The outputs of a model are not numbers (NaN)."""

    def __init__(self, where: str) -> None:
        """Create the error. where: what the model computes."""
        hint = "its weights are damaged, or overflow in 16 bits: give another model, or set train.precision to float32"
        super().__init__(where, "the outputs of the model are not numbers (NaN)", hint)


@dataclass(frozen=True)
class Decoding:
    """How the tokens of an answer are selected.

    Attributes:
        max_new_tokens: Maximum number of tokens of an answer.
        sampler: Selects the next token of each row.
        batch_size: Maximum number of answers at once.
        use_cache: Whether keys and values are cached. Without a cache each token costs a complete forward pass.
        lines: Whether prompts may be computed on one line, see `BatchSupport`.
        where: What errors name.
    """

    max_new_tokens: int
    sampler: TokenSampler = greedy
    batch_size: int = 1
    use_cache: bool = True
    lines: bool = False
    where: str = "model"


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[int, Sequence[int]],
    *,
    stops: StopConditions,
    decoding: Decoding,
    on_answer: Callable[[int, Answer], None],
    on_token: Callable[[int, Sequence[int]], None] | None = None,
) -> None:
    """Generate the answers of all prompts, in their order, `decoding.batch_size` at a time.

    A row that has ended leaves the batch and its cache, and waiting prompts take its place:

        step 0    a0   b0   c0        three rows at once; prompts are computed without padding if the model can
        step 1    a1   b1   c1        b has ended
        step 2    a2   d0   c2        d has joined

    The model's generation config is not used. A model whose cache no row can join computes batch after batch.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompts: Key -> token ids. Padding is masked, so answers do not depend on the batch, up to rounding.
        stops: What ends an answer.
        decoding: How the tokens of an answer are selected.
        on_answer: Receives the key and the answer of each prompt as soon as it has ended.
        on_token: Receives the key and the tokens so far of each prompt after each token.

    Raises:
        UndefinedLogits: The outputs of the model are not numbers (NaN).
    """
    waiting, answers = deque(prompts), {key: list[int]() for key in prompts}
    ended: set[int] = set()
    keys: list[int] = []  # of the rows of the batch, also of ended ones
    batch: CachedRows | UncachedRows = UncachedRows(model, tokenizer.pad_token_id)
    if decoding.use_cache:
        batch = CachedRows(model, tokenizer.pad_token_id, lines=decoding.lines)
    while waiting or not ended.issuperset(keys):
        live = [key for key in keys if key not in ended]
        free = decoding.batch_size - len(live)
        joining: list[int] = []
        if waiting and (
            not live or (batch.can_join and free >= min(len(waiting), _REFILL_SHARE * decoding.batch_size))
        ):
            joining = [waiting.popleft() for _ in range(min(free, len(waiting)))]
        if joining or len(live) <= (1 - _REFILL_SHARE) * len(keys):
            batch.keep([row for row, key in enumerate(keys) if key not in ended])
            keys = [*live, *joining]
        if joining:
            asked, logits = joining, batch.join([prompts[key] for key in joining])
        else:
            asked = keys
            logits = batch.step([answers[key][-1] for key in keys], [key not in ended for key in keys])
        rows = [row for row, key in enumerate(asked) if key not in ended]
        logits = logits[rows]
        tokens = decoding.sampler(logits, [asked[row] for row in rows])  # (B,)
        tokens = torch.where(logits.isnan().any(-1), _UNDEFINED, tokens)  # read with the tokens, in one transfer
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if token == _UNDEFINED:
                raise UndefinedLogits(decoding.where)
            answer = answers[asked[row]]
            answer.append(token)
            if on_token is not None:
                on_token(asked[row], answer)
            finish = _finish_reason(tokenizer, answer, stops, decoding.max_new_tokens)
            if finish:
                ended.add(asked[row])
                on_answer(asked[row], _build_answer(tokenizer, answer, finish, stops))


_UNDEFINED = -1
"""Token of a row whose logits are not numbers."""

_REFILL_SHARE = 0.25
"""Share of a batch that has ended when others join or the batch shrinks: each time, keys and values are copied."""


def _finish_reason(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], stops: StopConditions, max_new_tokens: int
) -> str:
    """Return why the answer ends with its last token; "" if it does not end."""
    if tokens[-1] == stops.eos_id:
        return "eos"
    if tokens[-1] in stops.token_ids or completes_stop_string(tokenizer, tokens, stops.strings):
        return "stop"
    return "length" if len(tokens) == max_new_tokens else ""


def _build_answer(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], finish: str, stops: StopConditions
) -> Answer:
    ended_by_token = tokens[-1] == stops.eos_id or tokens[-1] in stops.token_ids
    text = truncate_at_stop(decode_tokens(tokenizer, tokens[:-1] if ended_by_token else tokens), stops.strings)
    return Answer(text, finish if text.strip() else "empty", len(tokens))
