"""Answers from a server that speaks OpenAI's completions protocol: vLLM, llama.cpp and others.

The template stays ours: a server is sent the very tokens (or the text) of the prompt that training renders, by
`POST <url>/completions`, never a list of messages for it to render its own way. Which weights stand behind a name the
server alone knows: give new weights a new name.
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
"""Status codes after which it is worth to ask again."""

MAX_RETRY_PAUSE = 30.0
"""Seconds; a longer `Retry-After` is not waited for whole."""


@dataclass(frozen=True)
class CompletionServer:
    """Where answers come from, and with what patience; as `SERVER_KEYS` describes it."""

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
        """The server of a suite at a stage. Raises HarnessError when the key's environment variable is not set."""
        given = dict(settings)
        name = given.pop("key_env")
        key = os.environ.get(name) if name else None
        if name and not key:
            what = f"the environment variable {name}, which is to hold the API key, is not set"
            raise HarnessError("server.key_env", what, f"export {name}=…, or leave key_env out")
        model = given.pop("model").replace("{stage}", str(stage))
        return cls(**{**given, "url": given["url"].rstrip("/")}, model=model, key=key)

    def fingerprint(self) -> dict[str, Any]:
        """What its answers depend on, as far as it is known here."""
        return {"url": self.url, "model": self.model, "prompts": self.prompts, "body": dict(self.body)}

    def request_completion(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """One completion: the server's reply, as JSON.

        A failure that may pass (no connection, time out, status 429 or 5xx) is tried again `retries` times, after 1,
        2, 4 … seconds with some jitter, or as long as the server asks for. Raises RunError for any other, or the last.
        """
        given = {key: value for key, value in request.items() if value != []}  # some refuse an empty list of stops
        body = json.dumps({"model": self.model, "n": 1, "stream": False, **given, **self.body}).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        for attempt in range(self.retries + 1):
            call = urllib.request.Request(f"{self.url}/completions", body, headers, method="POST")
            pause = 2.0**attempt * random.uniform(0.75, 1.25)
            try:
                with urllib.request.urlopen(call, timeout=self.timeout) as reply:
                    found = load_json(reply.read())
                    if not isinstance(found, dict):
                        raise RunError(self.url, "the server's reply is no JSON object", "is this its API's address?")
                    return found
            except urllib.error.HTTPError as error:
                what = f"the server answers with status {error.code}: {_response_error_text(error)}"
                if error.code not in RETRYABLE_STATUS:
                    raise RunError(self.url, what, _hint_for_status(error.code)) from error
                asked = error.headers.get("Retry-After", "")
                pause = float(asked) if asked.isdigit() else pause
            except json.JSONDecodeError as error:
                raise RunError(self.url, "the server's reply is no JSON", "is this its API's address?") from error
            except (OSError, http.client.HTTPException) as error:  # no connection, a broken one, or a time out
                what = f"the server does not answer: {getattr(error, 'reason', error)}"
            if attempt < self.retries:
                time.sleep(min(pause, MAX_RETRY_PAUSE))
        raise RunError(self.url, f"{what}, after {self.retries + 1} tries", "see to the server, and evaluate again")


def request_completions(
    server: CompletionServer,
    requests: Mapping[int, Mapping[str, Any]],
    on_answer: Callable[[int, Answer], None],
    *,
    where: str,
) -> None:
    """Ask everything, `concurrency` requests at a time; `on_answer` is called here, for each answer as it comes.

    When one fails, those under way are waited for and kept, no further one is sent, and its RunError is raised.
    """
    waiting = iter(requests.items())
    under_way: dict[Future[Mapping[str, Any]], int] = {}
    failed: BaseException | None = None
    with ThreadPoolExecutor(server.concurrency) as pool:
        while True:
            while failed is None and len(under_way) < server.concurrency:
                following = next(waiting, None)
                if following is None:
                    break
                under_way[pool.submit(server.request_completion, following[1])] = following[0]
            if not under_way:
                break
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                key = under_way.pop(future)
                try:
                    answer = parse_completion(future.result(), requests[key]["stop"])
                except HarnessError as error:
                    failed = failed or RunError(f"{where}: {error.where}", error.what, error.hint)
                    continue
                on_answer(key, answer)
    if failed is not None:
        raise failed


def parse_completion(reply: Mapping[str, Any], stop_strings: list[str]) -> Answer:
    """The answer in a server's reply.

    The finish reason `stop` is `stop` where the server says which string stopped it, or the text holds one; where it
    says that none did (vLLM's `stop_reason`: null), it is `eos`. Raises RunError for a reply of another shape.
    """
    try:
        (choice,) = reply["choices"]
        text, finish = choice["text"] or "", choice["finish_reason"]
        tokens = int((reply.get("usage") or {}).get("completion_tokens") or 0)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            "its reply", f"has no completion: {json.dumps(reply)[:200]}", "is it a completions API?"
        ) from error
    if finish not in ("stop", "length"):
        raise RunError("its reply", f"ends for the reason {finish!r}", "what was cut off by a filter is no answer")
    kept = truncate_at_stop(text, stop_strings)
    if finish == "stop" and kept == text and "stop_reason" in choice and choice["stop_reason"] is None:
        finish = "eos"
    elif kept != text:
        finish = "stop"
    return Answer(kept, finish if kept.strip() else "empty", tokens)


def _response_error_text(error: urllib.error.HTTPError) -> str:
    text = " ".join(error.read(2000).decode("utf-8", "replace").split())
    return text[:200] or str(error.reason)


def _hint_for_status(code: int) -> str:
    if code in (401, 403):
        return "name the environment variable with the API key in key_env"
    return "is the model's name right, and the prompt within its context?" if code in (400, 404, 422) else ""
