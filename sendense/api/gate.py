"""What every request passes before a route sees it: who it is from, what that one may do, how much and how often."""

import asyncio
import logging
import time
import uuid
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sendense.api import problems
from sendense.api.calls import Calls, action_of
from sendense.api.limits import BODY_BYTES, BODY_SECONDS, Limits
from sendense.api.problems import Kind, problem
from sendense.errors import SendenseError
from sendense.service.audit import Who
from sendense.service.tokens import Token

log = logging.getLogger(__name__)

GUARDED = ("/api/", "/metrics")
"""Begin the paths that need a token."""

LOOKING = ("GET", "HEAD", "OPTIONS", "TRACE")
"""Methods that change nothing."""

REQUESTS_AT_ONCE = 256
"""More are turned away: each waits for one of a few threads, and has memory meanwhile."""


@dataclass
class _Refused(Exception):
    kind: Kind
    detail: str
    hint: str = ""
    headers: dict[str, str] | None = None


class Gate:
    """ASGI middleware. `scope["state"]` gets the request's `id`, and `who` and `token` where there is a token."""

    def __init__(self, app: ASGIApp, calls: Calls, limits: Limits) -> None:
        self._app, self._calls, self._limits = app, calls, limits
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on; every request has a line in the log, and every refused change one in the audit log."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["id"] = str(uuid.uuid4())
        began, request = time.monotonic(), Request(scope, receive)
        status, self._open = 500, self._open + 1

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                await self._record(request, status)
            await send(message)

        try:
            response: Response | None = None
            try:
                receive = await self._pass(request, receive)
            except _Refused as exc:
                response = problem(request, exc.kind, exc.detail, exc.hint, headers=exc.headers)
            except SendenseError as exc:
                response = problems.of_error(request, exc)
            except ClientDisconnect:
                return
            if response:
                await response(scope, receive, answer)
            else:
                await self._app(scope, receive, answer)
        finally:
            self._open -= 1
            log.log(
                logging.INFO if status < 400 else logging.WARNING,
                "%s %s %d %.0f ms %s %s",
                action_of(request),
                scope["query_string"].decode("ascii", "replace") or "-",
                status,
                (time.monotonic() - began) * 1000,
                _address(request),
                _name(state) or "-",
                extra={"action": "request", "request_id": state["id"]},
            )

    async def _pass(self, request: Request, receive: Receive) -> Receive:
        """What the route is to receive from; raises _Refused."""
        if self._open > REQUESTS_AT_ONCE:
            raise _Refused(problems.UNAVAILABLE, f"{REQUESTS_AT_ONCE} requests are under way", "Ask again later.")
        if request.scope["path"].startswith(GUARDED):  # what the router goes by; request.url trusts the Host header
            self._let_in(request)
        elif seconds := self._limits.stranger(_address(request)):
            raise _too_many("this address", seconds)
        headers = request.headers
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            return await _receive_whole(headers, receive)
        return receive

    def _let_in(self, request: Request) -> None:
        state, address = request.scope["state"], _address(request)
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        token = self._calls.tokens.find(secret.strip()) if scheme.lower() == "bearer" else None
        if not token:
            state["who"] = Who("", "", address)
            if seconds := self._limits.failure(address):
                raise _too_many("this address without a right token", seconds)
            what = "the token is not known, was revoked or has expired" if secret else "the request has no token"
            hint = "Send 'Authorization: Bearer TOKEN'; at the hub: sendense token create --role operator"
            raise _Refused(problems.UNAUTHORIZED, what, hint, {"WWW-Authenticate": 'Bearer realm="sendense"'})
        state["token"], state["who"] = token, Who(token.name, token.role, address)
        if seconds := self._limits.token(token.name):
            raise _too_many(f"token {token.name}", seconds)
        if token.role != "operator" and request.method not in LOOKING:
            hint = "Use one of an operator: sendense token create --role operator"
            raise _Refused(problems.FORBIDDEN, f"token {token.name} is a reader's: it may only look", hint)

    async def _record(self, request: Request, status: int) -> None:
        """Note a change that was refused before it came to its route. Not one too many: that could fill the disk."""
        state = request.scope["state"]
        if status < 400 or status == problems.TOO_MANY.status or state.get("recorded") or "who" not in state:
            return
        if request.method in LOOKING:
            return
        detail = state.get("problem", "")
        try:
            await asyncio.to_thread(
                self._calls.audit.write, state["id"], state["who"], action_of(request), "refused", error=detail
            )
        except SendenseError as exc:
            log.error("a refusal is not in the audit log: %s", exc, extra={"action": "audit"})


async def _receive_whole(headers: Headers, receive: Receive) -> Receive:
    """The body, all of it, within its limits; what follows it is received as it comes."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise _Refused(problems.NO_JSON, "the body is no JSON", "Send Content-Type: application/json.")
    body, more = bytearray(), True
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > BODY_BYTES:
        raise _too_large()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > BODY_BYTES:
                    raise _too_large()
    except TimeoutError as exc:
        hint = "Look at the way from the client to the hub."
        raise _Refused(problems.SLOW, f"the body was not there within {BODY_SECONDS:.0f} s", hint) from exc
    whole: list[dict[str, Any]] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def replay() -> Message:
        return whole.pop() if whole else await receive()

    return replay


def _too_large() -> _Refused:
    # Whatever is left of it would be read as the next request.
    headers = {"Connection": "close"}
    return _Refused(problems.TOO_LARGE, f"the body has more than {BODY_BYTES} bytes", "Split the order.", headers)


def _too_many(who: str, seconds: int) -> _Refused:
    hint = f"Ask again in {seconds} s, and less often."
    return _Refused(
        problems.TOO_MANY, f"too many requests of {who} in this minute", hint, {"Retry-After": str(seconds)}
    )


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _name(state: dict[str, Any]) -> str:
    token = state.get("token")
    return token.name if isinstance(token, Token) else ""
