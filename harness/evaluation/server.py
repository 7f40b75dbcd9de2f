"""Answers from a server with OpenAI's API: vLLM, llama.cpp and others.

`POST <url>/completions` sends the tokens (or the text) of a prompt as in training. With `chat`, `POST
<url>/chat/completions` sends messages, which the server renders; `harness.evaluation.served_chat` compares. Only the
server knows which weights a model name refers to: use a new name for new weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from harness.errors import HarnessError, RunError
from harness.evaluation.generation import Answer, truncate_at_stop
from harness.utils.http_requests import post_json

_URL_HINT = "check server.url: it must be the address of the API, e.g. http://127.0.0.1:8000/v1"


@dataclass(frozen=True)
class AnswerServer:
    """A server and how it is called; `SERVER_KEYS` describes the settings.

    Attributes:
        url: Address of the API, e.g. http://127.0.0.1:8000/v1.
        model: Name of the model on the server.
        prompts: `tokens` or `text`.
        chat: Whether the server renders the prompts by its own chat template.
        tolerance: With `chat`: nats by which sampled answers may differ; None: they are not compared.
        concurrency: Number of requests at the same time.
        timeout: Seconds for one request.
        retries: Number of further attempts after an error that may be temporary.
        body: Additional fields of each request.
        key: The API key.
    """

    url: str
    model: str
    prompts: str
    chat: bool
    tolerance: float | None
    concurrency: int
    timeout: float
    retries: int
    body: Mapping[str, Any]
    key: str | None = field(repr=False, default=None)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stage: int) -> AnswerServer:
        """Return the server of a suite at a stage.

        Raises:
            HarnessError: The environment variable of the API key is not set.
        """
        fields = dict(settings)
        variable = fields.pop("key_env")
        key = os.environ.get(variable) if variable else None
        if variable and not key:
            what = f"the environment variable {variable} with the API key is not set"
            raise HarnessError("server.key_env", what, f"export {variable}=…, or remove key_env")
        model = fields.pop("model").replace("{stage}", str(stage))
        return cls(**{**fields, "url": fields["url"].rstrip("/")}, model=model, key=key)

    def fingerprint(self) -> dict[str, Any]:
        """Return what the answers depend on, as far as the client knows it."""
        rendering = {"chat": True} if self.chat else {"prompts": self.prompts}
        return {"url": self.url, "model": self.model, **rendering, "body": dict(self.body)}

    def request_completion(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Request the completion of a prompt and return the server's reply; see `post`."""
        return self.post(f"{self.url}/completions", {"n": 1, "stream": False, **request})

    def request_chat(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Request the answer to messages and return the server's reply; see `post`."""
        return self.post(f"{self.url}/chat/completions", {"stream": False, **request})

    def post(self, address: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send a request with the model's name and the additional fields, and return the server's reply.

        It is repeated up to `retries` times, see `post_json`.

        Raises:
            RunError: Any other error, or the last attempt failed.
        """
        fields = {key: value for key, value in request.items() if value != []}  # some servers reject an empty list
        return post_json(
            address,
            {"model": self.model, **fields, **self.body},
            key=self.key,
            timeout=self.timeout,
            retries=self.retries,
            url_hint=_URL_HINT,
        )


def collect_answers(
    requests: Mapping[int, Mapping[str, Any]],
    ask: Callable[[int, Mapping[str, Any]], Answer],
    on_answer: Callable[[int, Answer], None],
    *,
    concurrency: int,
    where: str,
) -> None:
    """Send all requests, `concurrency` at a time.

    After a failure no further request is sent. Requests in progress are finished and their answers are passed on; then
    the error is raised.

    Args:
        requests: Key -> fields of the request.
        ask: Takes a key and its fields, sends the request and returns the answer; called in several threads.
        on_answer: Receives the key and the answer of each request, in this thread.
        concurrency: Number of requests at the same time.
        where: Location in error messages.

    Raises:
        RunError: A request failed.
    """
    waiting = iter(requests.items())
    in_progress: dict[Future[Answer], int] = {}
    first_error: RunError | None = None
    with ThreadPoolExecutor(concurrency) as pool:
        while True:
            while first_error is None and len(in_progress) < concurrency:
                key_and_request = next(waiting, None)
                if key_and_request is None:
                    break
                key, request = key_and_request
                in_progress[pool.submit(ask, key, request)] = key
            if not in_progress:
                break
            for future in wait(in_progress, return_when=FIRST_COMPLETED).done:
                key = in_progress.pop(future)
                try:
                    answer = future.result()
                except HarnessError as error:
                    first_error = first_error or RunError(f"{where}: {error.where}", error.what, error.hint)
                    continue
                on_answer(key, answer)
    if first_error is not None:
        raise first_error


def parse_completion(reply: Mapping[str, Any], stop_strings: Sequence[str]) -> Answer:
    """Return the answer in the reply to a completion.

    The finish reason `stop` becomes `eos` if the server reports that no string stopped the answer (vLLM's
    `stop_reason`: null). Otherwise it stays `stop`.

    Args:
        reply: The server's reply.
        stop_strings: Strings at which the answer is truncated.

    Raises:
        RunError: The reply has another structure or finish reason.
    """
    try:
        (choice,) = reply["choices"]
        text = choice["text"] or ""
        return _build_answer(reply, choice, text, stop_strings)
    except (KeyError, TypeError, ValueError) as error:
        what = f"has no completion: {json.dumps(reply)[:200]}"
        raise RunError("the reply", what, "use a server with OpenAI's completions API") from error


def parse_chat(reply: Mapping[str, Any], stop_strings: Sequence[str]) -> Answer:
    """Return the answer in the reply to messages; see `parse_completion`.

    Raises:
        RunError: The reply has another structure or finish reason, or the server has taken the answer apart.
    """
    try:
        (choice,) = reply["choices"]
        message = choice["message"]
        for key, parser in (("tool_calls", "tool call"), ("reasoning_content", "reasoning")):
            if message.get(key):
                what = f"has {key}, which the server has cut out of the answer"
                raise RunError("the reply", what, f"start the server without its {parser} parser, or remove chat")
        return _build_answer(reply, choice, message["content"] or "", stop_strings)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"has no message: {json.dumps(reply)[:200]}"
        raise RunError("the reply", what, "use a server with OpenAI's chat API") from error


def _build_answer(
    reply: Mapping[str, Any], choice: Mapping[str, Any], text: str, stop_strings: Sequence[str]
) -> Answer:
    finish = choice["finish_reason"]
    token_count = int((reply.get("usage") or {}).get("completion_tokens") or 0)
    if finish not in ("stop", "length"):
        what = f"has the finish_reason {finish!r}, so it is not a complete answer"
        raise RunError("the reply", what, "disable content filters on the server")
    truncated = truncate_at_stop(text, stop_strings)
    if finish == "stop" and truncated == text and "stop_reason" in choice and choice["stop_reason"] is None:
        finish = "eos"
    elif truncated != text:
        finish = "stop"
    return Answer(truncated, finish if truncated.strip() else "empty", token_count)
