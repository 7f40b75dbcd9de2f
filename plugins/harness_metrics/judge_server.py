"""A judge behind OpenAI's chat API: concurrent requests with retries and a budget."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from harness import HarnessError, Item
from harness.errors import RunError
from harness.rating.rubric import Rubric
from harness.utils.http_requests import post_json
from harness_metrics.judge_prompts import SYSTEM, grading_prompt, pair_prompt, parse_grades, parse_slot

_URL_HINT = "check server.url: it must be the address of the API, e.g. http://127.0.0.1:8000/v1"
_LOOPBACK = frozenset({"localhost", "::1"})
DEFAULTS: Mapping[str, Any] = {"key_env": None, "concurrency": 8, "timeout": 120, "retries": 4, "body": {}}


def read_key(server: Mapping[str, Any], where: str) -> str | None:
    """Return the API key from the environment; None if the server needs none.

    Raises:
        HarnessError: The environment variable is not set.
    """
    variable = server.get("key_env")
    key = os.environ.get(variable) if variable else None
    if variable and not key:
        what = f"the environment variable {variable} with the API key is not set"
        raise HarnessError(f"{where}.server.key_env", what, f"export {variable}=…, or remove key_env")
    return key


def server_identity(server: Mapping[str, Any]) -> str:
    """Return model, host and path of a server, and a digest of the additional fields; no secret, and no request.

    Scheme, port and user are left out, and all names of this machine are one: the same server behind another tunnel, or
    started again at another port, gives the same grades, which are not paid for twice. Another host, path or model name
    is another judge.

    Args:
        server: The option `server`.
    """
    parts = urlsplit(server["url"])
    host = (parts.hostname or "").rstrip(".")
    place = "localhost" if host in _LOOPBACK or host.startswith("127.") else host
    body = json.dumps(server.get("body") or {}, sort_keys=True)
    digest = hashlib.sha256(body.encode()).hexdigest()[:12] if body != "{}" else "none"
    return f"model:{server['model']}|server:{place}{parts.path.rstrip('/')}|body:{digest}"


@dataclass
class RequestBudget:
    """Counts attempts of requests, from several threads.

    Attributes:
        limit: The most attempts; None: any number.
        where: Location in errors.
    """

    limit: int | None
    where: str
    used: int = 0
    _lock: Lock = field(default_factory=Lock, repr=False)

    def spend(self) -> None:
        """Count an attempt. Raises RunError if there was none left."""
        with self._lock:
            if self.limit is not None and self.used >= self.limit:
                what = f"max_requests is reached: {self.used} requests were sent"
                hint = "the grades so far are kept; raise max_requests and resume: harness run --resume RUN"
                raise RunError(f"{self.where}.max_requests", what, hint)
            self.used += 1


class ServerGrader:
    """Grades by a server."""

    def __init__(self, server: Mapping[str, Any], rubric: Rubric, max_requests: int | None, where: str) -> None:
        """Use a server.

        Args:
            server: The option `server`.
            rubric: The rubric.
            max_requests: The most requests of one call of `grade`.
            where: The metric's key in the spec, for errors.
        """
        self._server = {**DEFAULTS, **server}
        self._rubric, self._max_requests, self._where = rubric, max_requests, where

    def close(self) -> None:
        """Do nothing: each call of `grade` ends its own threads."""

    def grade(self, items: Sequence[Item], *, pairs: bool) -> Iterator[tuple[Item, dict[str, Any]]]:
        """Yield each item with its grades, as soon as its replies are there.

        After a failure no further item is started. Items in progress are finished and yielded; then the error is
        raised.

        Raises:
            RunError: A request failed, or the budget is spent.
        """
        budget, key = RequestBudget(self._max_requests, self._where), read_key(self._server, self._where)
        waiting = iter(items)
        in_progress: dict[Future[dict[str, Any]], Item] = {}
        first_error: HarnessError | None = None
        with ThreadPoolExecutor(self._server["concurrency"]) as pool:
            while True:
                while first_error is None and len(in_progress) < self._server["concurrency"]:
                    item = next(waiting, None)
                    if item is None:
                        break
                    in_progress[pool.submit(self._grade_item, item, budget, key, pairs=pairs)] = item
                if not in_progress:
                    break
                for future in wait(in_progress, return_when=FIRST_COMPLETED).done:
                    item = in_progress.pop(future)
                    try:
                        value = future.result()
                    except HarnessError as error:
                        first_error = first_error or error
                        continue
                    yield item, value
        if first_error is not None:
            raise first_error

    def _grade_item(self, item: Item, budget: RequestBudget, key: str | None, *, pairs: bool) -> dict[str, Any]:
        prompt, code = grading_prompt(item, self._rubric)
        reply, tokens = self._ask(prompt, budget, key)
        grades = parse_grades(reply, code, self._rubric)
        value: dict[str, Any] = {"grades": grades or {}, "failures": int(grades is None), "replies": 1}
        for name, answer_first in (("first", True), ("second", False)) if pairs else ():
            before, texts, after, code = pair_prompt(item, self._rubric, answer_first=answer_first, as_json=True)
            reply, more_tokens = self._ask(before + texts + after, budget, key)
            value[name] = parse_slot(reply, code)
            value["failures"] += value[name] is None
            value["replies"] += 1
            tokens += more_tokens
        return {**value, "tokens": tokens}

    def _ask(self, prompt: str, budget: RequestBudget, key: str | None) -> tuple[str, int]:
        """Return the judge's reply and the tokens of the request. An empty reply is not valid, so it is a failure."""
        request = {
            "model": self._server["model"],
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}],
            "temperature": 0,
            **self._server["body"],
        }
        reply = post_json(
            f"{self._server['url'].rstrip('/')}/chat/completions",
            request,
            key=key,
            timeout=self._server["timeout"],
            retries=self._server["retries"],
            url_hint=_URL_HINT,
            on_attempt=budget.spend,
        )
        try:
            (choice,) = reply["choices"]
            text = choice["message"]["content"] or ""
            tokens = int((reply.get("usage") or {}).get("total_tokens") or 0)
        except (KeyError, TypeError, ValueError) as error:
            what = f"the reply has no message: {json.dumps(reply)[:200]}"
            raise RunError(self._server["url"], what, "use a server with OpenAI's chat API") from error
        return str(text), tokens
