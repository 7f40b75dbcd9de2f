"""The web server of a rating task: a page from the wheel, and an interface in JSON that needs a token.

The token is in the fragment of the address that `harness rate` prints, which browsers send to no server, and the page
sends it in a header. A page of another site therefore cannot use the interface, and a name that is resolved to this
machine (DNS rebinding) is refused by the check of the header `Host`.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from harness.errors import HarnessError
from harness.rating.session import InvalidDecision, RatingSession
from harness.rating.store import clean_rater_name
from harness.utils.json_depth import load_json

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

STATIC_FOLDER = Path(__file__).with_name("static")
STATIC_FILES = {"/": "rate.html", "/rate.js": "rate.js", "/rate.css": "rate.css"}
CONTENT_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_BODY = 64 * 1024
"""Bytes of a request."""

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """Who may use the server.

    Attributes:
        token: The token of this start.
        host: The address that the server listens at.
        names: Names of this machine, in lower case, that a shared server is called by.
    """

    token: str
    host: str = "127.0.0.1"
    names: frozenset[str] = frozenset()

    @classmethod
    def create(cls, host: str) -> Access:
        """Return an access with a new random token. Names of this machine are asked for only here: it takes long."""
        is_shared = host.lower() not in LOCAL_HOSTS
        names = frozenset({socket.gethostname().lower(), socket.getfqdn().lower()}) if is_shared else frozenset[str]()
        return cls(secrets.token_urlsafe(24), host, names)

    def address(self, port: int, rater: str = "") -> str:
        """Return the address to open. It contains the token."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::", "") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/#token={self.token}" + (
            f"&rater={rater}" if rater else ""
        )

    def refusal(self, headers: Mapping[str, str], path: str, method: str) -> tuple[int, str] | None:
        """Return status and reason if a request is refused, else None.

        Args:
            headers: The headers, with names in lower case.
            path: The path.
            method: The method.
        """
        host = headers.get("host", "")
        if not self._is_allowed_host(host):
            return 403, "this name is not an address of the server"
        origin = headers.get("origin")
        if (origin is not None or method == "POST") and origin != f"http://{host}":
            return 403, "the request comes from another page"
        if not path.startswith("/api/"):
            return None
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return 401, "the token is not valid: open the address that harness rate prints"
        return None

    def _is_allowed_host(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in LOCAL_HOSTS or name == self.host.lower():
            return True
        if self.host.lower() in LOCAL_HOSTS:
            return False
        return name in self.names or _is_ip_address(name)


def create_app(session: RatingSession, access: Access) -> Starlette:
    """Return the application.

    Args:
        session: The raters of a task.
        access: Who may use it.
    """
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    def static_route(path: str, name: str) -> Route:
        content = (STATIC_FOLDER / name).read_bytes()
        media_type = CONTENT_TYPES[Path(name).suffix]

        async def serve(request: Request) -> Response:
            return Response(content, media_type=media_type)

        return Route(path, serve, methods=["GET"])

    def state_response(rater: str, status: int = 200, error: str = "") -> JSONResponse:
        body = {"task": session.describe_task(), "error": error, **session.describe_state(rater)}
        return JSONResponse(body, status_code=status)

    async def show(request: Request) -> Response:
        rater = clean_rater_name(unquote(request.headers.get("x-rater", "")))
        if rater is None:
            return JSONResponse({"error": "the name of the rater is missing"}, status_code=400)
        return await run_in_threadpool(state_response, rater)

    def action_route(name: str, act: Callable[[str, Mapping[str, Any]], None]) -> Route:
        async def handle(request: Request) -> Response:
            rater = clean_rater_name(unquote(request.headers.get("x-rater", "")))
            body = _parse_body(await _read_body(request))
            if rater is None or body is None:
                return JSONResponse({"error": "the request is not valid"}, status_code=400)
            try:
                await run_in_threadpool(act, rater, body)
            except InvalidDecision as error:
                return await run_in_threadpool(state_response, rater, 409, str(error))
            except HarnessError as error:
                return JSONResponse({"error": str(error)}, status_code=500)
            response = await run_in_threadpool(state_response, rater)
            if name == "finish":
                response.background = BackgroundTask(session.publish)
            return response

        return Route(f"/api/{name}", handle, methods=["POST"])

    actions = (session.rate, session.skip, session.comment, session.undo, session.finish)
    routes = [
        *(static_route(path, name) for path, name in STATIC_FILES.items()),
        Route("/api/state", show, methods=["GET"]),
        *(action_route(action.__name__, action) for action in actions),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(_Guard, access=access)
    return app


class _Guard:
    """Refuses requests without access, and adds the headers of security to every response."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from starlette.datastructures import Headers, MutableHeaders
        from starlette.responses import JSONResponse

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        headers = {name.lower(): value for name, value in Headers(scope=scope).items()}
        refusal = self._access.refusal(headers, scope["path"], scope["method"])
        if refusal is not None:
            status, reason = refusal
            await JSONResponse({"error": reason}, status_code=status)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)


async def _read_body(request: Request) -> bytes | None:
    """Return the body; None if it is too long."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            return None
    return body


def _parse_body(body: bytes | None) -> Mapping[str, Any] | None:
    try:
        document = load_json(body) if body is not None else None
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def serve_session(session: RatingSession, access: Access, port: int, on_start: Callable[[int], None]) -> None:
    """Serve until Ctrl-C.

    Args:
        session: The raters of a task.
        access: Who may use the server.
        port: The port; 0: any that is free.
        on_start: Receives the port.

    Raises:
        HarnessError: The address or the port cannot be used.
    """
    import uvicorn

    family = socket.AF_INET6 if ":" in access.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((access.host, port))
        listener.listen()  # a browser that opens the page at once waits
    except OSError as error:
        listener.close()
        what = f"cannot listen there: {error.strerror or error}"
        raise HarnessError(f"{access.host}:{port}", what, "give another --port, or leave it out") from error
    config = uvicorn.Config(create_app(session, access), log_level="error", lifespan="off", server_header=False)
    on_start(listener.getsockname()[1])
    with listener:
        uvicorn.Server(config).run(sockets=[listener])
