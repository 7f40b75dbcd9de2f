"""Answers from a server with OpenAI's completions API: vLLM, llama.cpp and others.

Prompts are rendered here: `POST <url>/completions` sends the tokens (or the text) of the prompt as in training, never
messages that the server would render. Only the server knows which weights a model name refers to: use a new name for
new weights.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from harness.errors import HarnessError, RunError
from harness.evaluation.generation import Answer, truncate_at_stop
from harness.utils.json_depth import load_json

RETRYABLE_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Status codes of errors that may be temporary."""

_URL_HINT = "check server.url: it must be the address of the API, e.g. http://127.0.0.1:8000/v1"

MAX_RETRY_PAUSE = 30.0
"""Seconds; the maximum, also for a longer `Retry-After`."""


@dataclass(frozen=True)
class CompletionServer:
    """A server and how it is called; `SERVER_KEYS` describes the settings.

    Attributes:
        url: Address of the API, without `/completions`.
        model: Name of the model on the server.
        prompts: `tokens` or `text`.
        concurrency: Number of requests at the same time.
        timeout: Seconds for one request.
        retries: Number of further attempts after an error that may be temporary.
        body: Additional fields of each request.
        key: The API key.
    """

    url: str
    model: str
    prompts: str
    concurrency: int
    timeout: float
    retries: int
    body: Mapping[str, Any]
    key: str | None = field(repr=False, default=None)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any], stage: int) -> CompletionServer:
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
        return {"url": self.url, "model": self.model, "prompts": self.prompts, "body": dict(self.body)}

    def request_completion(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Request one completion and return the server's reply.

        After an error that may be temporary (no connection, timeout, `RETRYABLE_STATUS`) the request is repeated up to
        `retries` times. The pause is 1, 2, 4 … seconds with jitter, or the server's `Retry-After`.

        Raises:
            RunError: Any other error, or the last attempt failed.
        """
        fields = {key: value for key, value in request.items() if value != []}  # some servers reject an empty list
        body = json.dumps({"model": self.model, "n": 1, "stream": False, **fields, **self.body}).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        for attempt in range(self.retries + 1):
            http_request = urllib.request.Request(f"{self.url}/completions", body, headers, method="POST")
            pause = 2.0**attempt * random.uniform(0.75, 1.25)
            try:
                with urllib.request.urlopen(http_request, timeout=self.timeout) as response:
                    reply = load_json(response.read())
                    if not isinstance(reply, dict):
                        raise RunError(self.url, "the reply is not a JSON object", _URL_HINT)
                    return reply
            except urllib.error.HTTPError as error:
                what = f"the server returns status {error.code}: {_response_error_text(error)}"
                if error.code not in RETRYABLE_STATUS:
                    raise RunError(self.url, what, _hint_for_status(error.code)) from error
                retry_after = error.headers.get("Retry-After", "")
                pause = float(retry_after) if retry_after.isdigit() else pause
            except json.JSONDecodeError as error:
                raise RunError(self.url, "the reply is not valid JSON", _URL_HINT) from error
            except (OSError, http.client.HTTPException) as error:  # no connection, an interrupted one, or a timeout
                what = f"the server does not respond: {getattr(error, 'reason', error)}"
            if attempt < self.retries:
                time.sleep(min(pause, MAX_RETRY_PAUSE))
        raise RunError(self.url, f"{what}, after {self.retries + 1} attempts", "check the server, and evaluate again")


def request_completions(
    server: CompletionServer,
    requests: Mapping[int, Mapping[str, Any]],
    on_answer: Callable[[int, Answer], None],
    *,
    where: str,
) -> None:
    """Send all requests, `concurrency` at a time.

    After a failure no further request is sent. Requests in progress are finished and their answers are passed on; then
    the error is raised.

    Args:
        server: The server.
        requests: Key -> fields of the request.
        on_answer: Receives the key and the answer of each request, in this thread.
        where: Location in error messages.

    Raises:
        RunError: A request failed.
    """
    waiting = iter(requests.items())
    in_progress: dict[Future[Mapping[str, Any]], int] = {}
    first_error: RunError | None = None
    with ThreadPoolExecutor(server.concurrency) as pool:
        while True:
            while first_error is None and len(in_progress) < server.concurrency:
                key_and_request = next(waiting, None)
                if key_and_request is None:
                    break
                key, request = key_and_request
                in_progress[pool.submit(server.request_completion, request)] = key
            if not in_progress:
                break
            for future in wait(in_progress, return_when=FIRST_COMPLETED).done:
                key = in_progress.pop(future)
                try:
                    answer = parse_completion(future.result(), requests[key]["stop"])
                except HarnessError as error:
                    first_error = first_error or RunError(f"{where}: {error.where}", error.what, error.hint)
                    continue
                on_answer(key, answer)
    if first_error is not None:
        raise first_error


def parse_completion(reply: Mapping[str, Any], stop_strings: list[str]) -> Answer:
    """Return the answer in a server's reply.

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
        text, finish = choice["text"] or "", choice["finish_reason"]
        token_count = int((reply.get("usage") or {}).get("completion_tokens") or 0)
    except (KeyError, TypeError, ValueError) as error:
        what = f"has no completion: {json.dumps(reply)[:200]}"
        raise RunError("the reply", what, "use a server with OpenAI's completions API") from error
    if finish not in ("stop", "length"):
        what = f"has the finish_reason {finish!r}, so it is not a complete answer"
        raise RunError("the reply", what, "disable content filters on the server")
    truncated = truncate_at_stop(text, stop_strings)
    if finish == "stop" and truncated == text and "stop_reason" in choice and choice["stop_reason"] is None:
        finish = "eos"
    elif truncated != text:
        finish = "stop"
    return Answer(truncated, finish if truncated.strip() else "empty", token_count)


def _response_error_text(error: urllib.error.HTTPError) -> str:
    text = " ".join(error.read(2000).decode("utf-8", "replace").split())
    return text[:200] or str(error.reason)


def _hint_for_status(code: int) -> str:
    if code in (401, 403):
        return "set key_env to the environment variable with the API key"
    return "check the model's name and the length of the prompt" if code in (400, 404, 422) else ""
