"""Answers to messages that a server renders by its own chat template, compared with what the run would do.

A model that is good in training is bad when served if the server's chat template, end of turn, sampling settings or
weights are others. So two things are compared:

- the number of tokens of every prompt (`usage.prompt_tokens`), and the tokens themselves where the server has vLLM's
  endpoint `/tokenize`,
- a sample of the answers, with the greedy answers of the run's model.

The sample is asked first. An answer is passed on, and stored, only after it was compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

import torch

from harness.errors import RunError
from harness.evaluation.context import EvalContext
from harness.evaluation.generation import (
    Answer,
    Decoding,
    StopConditions,
    decode_tokens,
    generate_answers,
)
from harness.evaluation.server import AnswerServer, collect_answers, parse_chat
from harness.types import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLE_SIZE = 8
"""Answers that are compared with those of the run's model."""

MAX_CANDIDATES = 64
"""Most likely tokens among which the next token of a served answer is searched."""

_MAX_BRANCHES = 3
"""Candidates that are followed at each position: part of a character, or white space, may be a dead end."""

_UNSUPPORTED = frozenset({400, 404, 405, 415, 422, 501})
"""Status codes of a server that cannot tokenize messages."""

_PROMPT_HINT = (
    "the run's chat template was not saved with the served model: serve the folder that "
    "`harness export RUN --to merged FOLDER` writes"
)
_ANSWER_HINT = (
    "the server has other weights, another end of turn or other sampling settings (generation_config.json): serve the "
    "folder that `harness export RUN --to merged FOLDER` writes; for quantized weights raise server.tolerance"
)


class ServedChat:
    """Asks a server for greedy answers to the prompts of a suite."""

    def __init__(
        self,
        context: EvalContext,
        server: AnswerServer,
        stops: StopConditions,
        prompts: Mapping[int, Sequence[int]],
        max_prompt_tokens: int,
    ) -> None:
        """Use a server.

        Args:
            context: The model and the suite. Without a model, answers are not compared.
            server: The server.
            stops: What ends an answer of the run.
            prompts: Index of an item -> tokens of its complete prompt in the run.
            max_prompt_tokens: Longest prompt that the run's model could answer.
        """
        self._context, self._server, self._stops = context, server, stops
        self._prompts, self._max_prompt_tokens = prompts, max_prompt_tokens
        self._can_tokenize = True
        self._where = f"evaluate.{context.suite.name}.server"
        control_tokens = {*context.tokenizer.all_special_tokens, *context.tokenizer.get_added_vocab()}
        self._control_tokens = [token for token in control_tokens if token.strip()]

    def request_answers(self, order: Sequence[int], on_answer: Callable[[int, Answer], None]) -> None:
        """Ask for the answers of items and compare them.

        Args:
            order: Indices of the items.
            on_answer: Receives the index and the answer of each item.

        Raises:
            RunError: A request failed, or a prompt or an answer is not that of the run.
        """
        sample = self._choose_sample(order)
        sampled, expected = set(sample), self._generate_here(sample)
        different: dict[int, str] = {}

        def on_sampled_answer(index: int, answer: Answer) -> None:
            difference = self._describe_difference(index, answer, expected[index]) if expected else None
            if difference is None:
                on_answer(index, answer)
            else:
                different[index] = difference

        self._collect(sample, on_sampled_answer)
        if different:
            index = next(index for index in sample if index in different)
            what = f"{len(different)} of {len(sample)} sampled answers are not the run's: {different[index]}"
            raise RunError(f"{self._where}: {self._context.examples[index].location}", what, _ANSWER_HINT)
        self._collect([index for index in order if index not in sampled], on_answer)

    def _collect(self, indices: Sequence[int], on_answer: Callable[[int, Answer], None]) -> None:
        requests = {index: self._build_request(index) for index in indices}
        collect_answers(requests, self._ask, on_answer, concurrency=self._server.concurrency, where=self._where)

    def _build_request(self, index: int) -> dict[str, Any]:
        # The stops of the run's template are not sent: the server itself has to know where an answer ends.
        suite = self._context.suite
        return {
            **build_chat_prompt(self._context.examples[index]),
            "max_tokens": suite.max_new_tokens,
            "temperature": 0,
            "stop": list(suite.stop),
        }

    def _ask(self, index: int, request: Mapping[str, Any]) -> Answer:
        reply = self._server.request_chat(request)
        answer = parse_chat(reply, request["stop"])
        if self._is_comparable(index):
            self._compare_prompt(index, reply, request)
        return answer

    def _is_comparable(self, index: int) -> bool:
        """Return whether no message contains a control token: a server reads it as one, the run as plain text."""
        messages = self._context.examples[index].messages[:-1]
        return not any(token in _message_text(message) for message in messages for token in self._control_tokens)

    def _compare_prompt(self, index: int, reply: Mapping[str, Any], request: Mapping[str, Any]) -> None:
        """Raise RunError if the server's prompt is not that of the run."""
        expected, location = list(self._prompts[index]), self._context.examples[index].location
        try:
            count = int(reply["usage"]["prompt_tokens"])
        except (KeyError, TypeError, ValueError):
            hint = "use a server that reports it, or remove chat"
            raise RunError(location, "the reply has no usage.prompt_tokens to compare", hint) from None
        if count != len(expected):
            what = f"the server's prompt has {count} tokens, the run's {len(expected)}"
            raise RunError(location, what, _PROMPT_HINT)
        ids = self._tokenize_by_server(request) if self._can_tokenize else None
        if ids is not None and ids != expected:
            position = next((at for at, pair in enumerate(zip(ids, expected, strict=False)) if pair[0] != pair[1]), 0)
            names = self._context.tokenizer.convert_ids_to_tokens([ids[position], expected[position]])
            what = f"token {position + 1} of the server's prompt is {names[0]!r}, of the run's {names[1]!r}"
            raise RunError(location, f"{what}; both have {count} tokens", _PROMPT_HINT)

    def _tokenize_by_server(self, request: Mapping[str, Any]) -> list[int] | None:
        """Return the tokens of a prompt by vLLM's endpoint; None if the server does not have it."""
        address = f"{self._server.url.removesuffix('/v1')}/tokenize"
        prompt = {key: request[key] for key in ("messages", "tools") if key in request}
        try:
            reply = self._server.post(address, {**prompt, "add_generation_prompt": True})
        except RunError as error:
            if isinstance(error.__cause__, HTTPError) and error.__cause__.code in _UNSUPPORTED:
                self._can_tokenize = False
                return None
            raise
        tokens = reply.get("tokens")
        if not isinstance(tokens, list) or len(tokens) != reply.get("count"):  # another endpoint of this name
            self._can_tokenize = False
            return None
        return tokens

    def _choose_sample(self, order: Sequence[int]) -> list[int]:
        """Return items whose answers can be compared, evenly over their lengths."""
        if self._context.model is None or self._server.tolerance is None:
            return []
        comparable = [
            index
            for index in order
            if len(self._prompts[index]) <= self._max_prompt_tokens and self._is_comparable(index)
        ]
        return comparable[:: max(1, len(comparable) // SAMPLE_SIZE)][:SAMPLE_SIZE]

    def _generate_here(self, indices: Sequence[int]) -> dict[int, Answer]:
        """Return the greedy answers of the run's model, one prompt at a time: no padding changes a rounding."""
        if not indices:
            return {}
        context, answers = self._context, dict[int, Answer]()
        context.notify("comparing answers of the server with the run's")
        generate_answers(
            context.require_model(),
            context.tokenizer,
            {index: self._prompts[index] for index in indices},
            stops=self._stops,
            decoding=Decoding(
                context.suite.max_new_tokens,
                use_cache=context.batch_support.cache,
                where=f"evaluate.{context.suite.name}",
            ),
            on_answer=answers.__setitem__,
        )
        return answers

    def _describe_difference(self, index: int, served: Answer, expected: Answer) -> str | None:
        """Return how an answer differs; None if it is the run's, up to rounding."""
        if served.text.strip() == expected.text.strip():
            ends_here, ends_there = expected.finish in ("eos", "stop"), served.finish != "length"
            if ends_there or not ends_here or served.token_count <= expected.token_count:
                return None
            return (
                f"{_shorten(served.text)} does not end after {expected.token_count} tokens as in the run, and is cut "
                f"after {served.token_count}"
            )
        context = self._context
        gap = largest_gap(
            context.require_model(),
            context.tokenizer,
            self._prompts[index],
            served,
            self._stops,
            use_cache=context.batch_support.cache,
        )
        if self._server.tolerance is not None and gap <= self._server.tolerance:
            return None
        apart = f"its tokens are up to {gap:.2g} nats less likely" if gap < float("inf") else "far less likely"
        return (
            f"{_shorten(served.text)} ({served.token_count} tokens) instead of {_shorten(expected.text)} "
            f"({expected.token_count} tokens), {apart}"
        )


def build_chat_prompt(example: Example) -> dict[str, Any]:
    """Return the fields `messages` and `tools` of a request: the conversation up to its response, in OpenAI's format.

    Calls without an id are numbered. A tool's answer without an id answers the first open call of its tool.
    """
    messages: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str]] = []  # name and id
    number = 0
    for message in example.messages[:-1]:
        fields: dict[str, Any] = {"role": message.role, "content": _message_text(message)}
        if message.reasoning is not None:
            fields["reasoning_content"] = message.reasoning
        if message.tool_calls:
            fields["tool_calls"], open_calls = [], []
            for call in message.tool_calls:
                number += 1
                call_id = call.id or f"call{number:05d}"
                arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
                function = {"name": call.name, "arguments": arguments}
                fields["tool_calls"].append({"id": call_id, "type": "function", "function": function})
                open_calls.append((call.name, call_id))
        if message.role == "tool":
            fields["tool_call_id"] = message.tool_call_id or _take_call_id(open_calls, message.name)
            if message.name is not None:
                fields["name"] = message.name
        messages.append(fields)
    if not example.tools:
        return {"messages": messages}
    return {"messages": messages, "tools": [{"type": "function", "function": dict(tool)} for tool in example.tools]}


@torch.no_grad()
def largest_gap(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    answer: Answer,
    stops: StopConditions,
    *,
    use_cache: bool = True,
) -> float:
    """Return by how many nats a token of an answer is less likely than the model's first choice, at most.

    The answer is known as text only, so each token is the most likely one that continues this text. White space around
    the text is ignored, because some servers remove it.

    Args:
        model: The run's model.
        tokenizer: Its tokenizer.
        prompt: Tokens of the prompt.
        answer: The answer.
        stops: What ends an answer of the run.
        use_cache: Whether the model can cache keys and values.

    Returns:
        The gap; infinity if the text is not among the first `MAX_CANDIDATES` choices.
    """
    device = next(model.parameters()).device
    text = answer.text.strip().rstrip("\ufffd")
    invisible = {*tokenizer.all_special_ids, *stops.token_ids}
    ends = [token for token in (stops.eos_id, *stops.token_ids) if token is not None]
    open_paths: list[tuple[tuple[int, ...], float]] = [((), 0.0)]  # tokens and their gap; the most likely one is last
    for _ in range(8 + 4 * len(text.encode())):  # a token has at least one byte, and few paths are dead ends
        if not open_paths:
            break
        tokens, gap = open_paths.pop()
        row = torch.tensor([[*prompt, *tokens]], device=device)  # (1, T)
        output = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=use_cache)
        logits = output.logits[0, -1].float()  # (V,)
        best = float(logits.max())
        if decode_tokens(tokenizer, tokens).strip() == text:
            if answer.finish == "length" or not ends or stops.strings:  # cut at the limit, or maybe by a text
                return gap
            return max(gap, best - max(float(logits[token]) for token in ends))
        paths = []
        for token in logits.topk(min(MAX_CANDIDATES, len(logits))).indices.tolist():
            if token not in invisible and _begins(text, decode_tokens(tokenizer, [*tokens, token])):
                paths.append(((*tokens, token), max(gap, best - float(logits[token]))))
        open_paths += reversed(paths[:_MAX_BRANCHES])
    return float("inf")


def _begins(text: str, decoded: str) -> bool:
    """Return whether a text may begin with decoded tokens, of which the last may be a part of a character."""
    complete = decoded.lstrip().rstrip("\ufffd")
    if not decoded.endswith("\ufffd"):
        return text.startswith(complete) or complete.strip() == text
    return text.startswith(complete) and not text[len(complete) : len(complete) + 1].isascii()


def _message_text(message: Message) -> str:
    return f"{message.content}\n\n{message.input}" if message.input else message.content


def _take_call_id(open_calls: list[tuple[str, str]], tool: str | None) -> str:
    """Return the id of the first open call of a tool, or of any tool, and close it."""
    if not open_calls:
        return "call00000"
    call = next((call for call in open_calls if call[0] == tool), open_calls[0])
    open_calls.remove(call)
    return call[1]


def _shorten(text: str) -> str:
    words = " ".join(text.split())
    return repr(words if len(words) <= 60 else words[:57] + "...")
