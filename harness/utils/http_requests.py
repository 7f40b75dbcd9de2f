"""Send a request in JSON to a server, and repeat it after an error that may be temporary."""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from harness.errors import RunError
from harness.utils.formatting import printable
from harness.utils.json_depth import load_json
from harness.utils.redaction import redact_text

RETRYABLE_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Status codes of errors that may be temporary."""
MAX_RETRY_PAUSE = 30.0
"""Seconds; the maximum, also for a longer `Retry-After`."""
MAX_REPLY = 64 << 20
"""Bytes of a reply."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})


def post_json(
    url: str,
    body: Mapping[str, Any],
    *,
    key: str | None,
    timeout: float,
    retries: int,
    url_hint: str,
    on_attempt: Callable[[], None] = lambda: None,
) -> Mapping[str, Any]:
    """Send a request and return the JSON object of the reply.

    After an error that may be temporary (no connection, timeout, `RETRYABLE_STATUS`) the request is repeated. The pause
    is 1, 2, 4 … seconds with jitter, or the server's `Retry-After`. Redirects are not followed, since the key and the
    texts would go to another address.

    Args:
        url: The address; errors show it without its last part.
        body: The request.
        key: The API key; None: none is sent.
        timeout: Seconds for one attempt.
        retries: Number of further attempts.
        url_hint: The remedy for a wrong address.
        on_attempt: Called before each attempt; what it raises ends the request.

    Raises:
        RunError: Any other error, or the last attempt failed.
    """
    where = redact_text(url.rpartition("/")[0])
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    for attempt in range(retries + 1):
        request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
        pause = 2.0**attempt * random.uniform(0.75, 1.25)
        on_attempt()
        try:
            with _open(request, timeout) as response:
                return _parse_reply(response.read(MAX_REPLY + 1), where, url_hint)
        except urllib.error.HTTPError as error:
            if error.code in REDIRECTS:
                raise RunError(where, _redirect_text(error), url_hint) from None
            what = f"the server returns status {error.code}: {_response_error_text(error)}"
            if error.code not in RETRYABLE_STATUS:
                raise RunError(where, what, _hint_for_status(error.code)) from error
            retry_after = error.headers.get("Retry-After", "")
            pause = float(retry_after) if retry_after.isdigit() else pause
        except (OSError, http.client.HTTPException) as error:  # no connection, an interrupted one, or a timeout
            what = f"the server does not respond: {getattr(error, 'reason', error)}"
        if attempt < retries:
            time.sleep(min(pause, MAX_RETRY_PAUSE))
    raise RunError(where, f"{what}, after {retries + 1} attempts", "check the server, and evaluate again")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect to the handler of errors, which raises it."""

    def http_error_302(self, *_: Any, **__: Any) -> Any:
        """Follow no redirect."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _open(request: urllib.request.Request, timeout: float) -> Any:
    return urllib.request.build_opener(_NoRedirects).open(request, timeout=timeout)


def _parse_reply(reply: bytes, where: str, url_hint: str) -> Mapping[str, Any]:
    if len(reply) > MAX_REPLY:
        raise RunError(where, f"the reply has more than {MAX_REPLY >> 20} MiB", url_hint)
    try:
        document = load_json(reply.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RunError(
            where, f"the reply is not text in UTF-8: {error.reason} at byte {error.start}", url_hint
        ) from error
    except ValueError as error:
        raise RunError(where, "the reply is not valid JSON", url_hint) from error
    if not isinstance(document, dict):
        raise RunError(where, "the reply is not a JSON object", url_hint)
    return document


def _redirect_text(error: urllib.error.HTTPError) -> str:
    """Return the redirect and its target, without user, query and fragment, which can have secrets."""
    try:
        target = urlsplit(error.headers.get("Location", ""))
    except ValueError:
        target = urlsplit("")
    host = target.netloc.rpartition("@")[2]
    place = printable(f"{target.scheme}://{host}{target.path}" if host else target.path)[:200] or "nowhere"
    return f"the server redirects (status {error.code}) to {place}, which is not followed"


def _response_error_text(error: urllib.error.HTTPError) -> str:
    text = " ".join(error.read(2000).decode("utf-8", "replace").split())
    return text[:200] or str(error.reason)


def _hint_for_status(code: int) -> str:
    if code in (401, 403):
        return "set key_env to the environment variable with the API key"
    return "check the model's name and the length of the prompt" if code in (400, 404, 422) else ""
