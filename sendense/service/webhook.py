"""Notices by webhook: a POST of JSON, signed, to a URL; one attempt, under one deadline."""

import asyncio
import hashlib
import hmac
import logging
import os
import ssl
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sendense.addresses import is_loopback
from sendense.errors import InputError
from sendense.files import read_secret
from sendense.notices import Notice
from sendense.receivers import Notices

WEBHOOK_SECONDS = 15.0
"""For all of an attempt, from the name's look-up to the status: a receiver that does more should do it afterwards."""

STEP_SECONDS = 10.0
"""For each wait within that."""

logging.getLogger("httpx").setLevel(logging.WARNING)
"""It logs each request with its URL, and some have a secret in their path."""

_AGAIN = {408, 429}
"""Statuses of 4xx that mean a later attempt may be taken."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt. `error`: empty when the notice was taken; `final`: trying again would not help."""

    error: str = ""
    final: bool = False
    left: tuple[str, ...] = ()
    """Who still is to get the notice, where others have taken it: no one else is sent it again."""
    note: str = ""
    """What is to be known of a notice that was taken."""
    answered: bool = field(default=False, compare=False)
    """Somebody is there, whatever he said."""


def post(notices: Notices, notice: Notice) -> Outcome:
    """Send a notice once; InputError when the secret or the certificate cannot be read."""
    body = notice.model_dump_json().encode()
    headers = {"Content-Type": "application/json", "Sendense-Notice": notice.id}
    if key := secret(notices):
        headers |= signature(key, body, int(time.time()))
    return _attempt(notices, "POST", body, headers)


def reach(notices: Notices) -> Outcome:
    """Ask for nothing but an answer, which may be any."""
    outcome = _attempt(notices, "HEAD", b"", {})
    return Outcome() if outcome.answered else outcome


def secret(notices: Notices) -> str:
    """The key that signs; empty without one. InputError when it cannot be read."""
    return read_secret(notices.webhook_secret_file, "webhook_secret_file") if notices.webhook_secret_file else ""


def signature(key: str, body: bytes, now: int) -> dict[str, str]:
    """The headers that prove who sent a body, and when: HMAC-SHA256 over the time, a dot and the body."""
    signed = hmac.new(key.encode(), f"{now}.".encode() + body, hashlib.sha256).hexdigest()
    return {"Sendense-Timestamp": str(now), "Sendense-Signature": f"sha256={signed}"}


def trusting(notices: Notices) -> ssl.SSLContext:
    """Whom to believe that a receiver is who it says; InputError when the file cannot be read."""
    try:
        return ssl.create_default_context(cafile=notices.ca_file)
    except OSError as exc:
        what = getattr(exc, "strerror", None) or exc
        raise InputError(
            f"ca_file {notices.ca_file}: {what}", "It has to be the PEM certificate of who signed the receivers'."
        ) from exc


def _attempt(notices: Notices, method: str, body: bytes, headers: dict[str, str]) -> Outcome:
    import httpx  # late: it takes long to load, and commands that send nothing load this module

    verify = trusting(notices)
    try:
        return _run(_ask(notices.webhook, method, body, headers | {"User-Agent": "sendense"}, verify))
    except TimeoutError:
        return Outcome(f"no whole answer in {WEBHOOK_SECONDS:.0f} s")
    except httpx.TimeoutException as exc:
        return Outcome(f"no answer in {STEP_SECONDS:.0f} s ({type(exc).__name__})")
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, OSError) as exc:  # some find a host's name wrong late
        return Outcome(_reason(exc))


def _run(asking: Coroutine[object, object, Outcome]) -> Outcome:
    """As asyncio.run, which would wait at its end for a look-up of a name that nobody answers."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(asking)
    finally:
        loop.close()


async def _ask(url: str, method: str, body: bytes, headers: dict[str, str], verify: ssl.SSLContext) -> Outcome:
    import httpx

    here = is_loopback(urlsplit(url).hostname or "")
    async with (
        asyncio.timeout(WEBHOOK_SECONDS),
        httpx.AsyncClient(verify=verify, trust_env=not here, timeout=STEP_SECONDS) as client,
        client.stream(method, url, content=body, headers=headers, follow_redirects=False) as answer,
    ):
        status = answer.status_code
        if 200 <= status < 300:
            return Outcome(answered=True)
        if 300 <= status < 400:
            error = f"answered {status}, a redirect: set webhook to where it leads"
            return Outcome(error, final=True, answered=True)
        final = status < 500 and status not in _AGAIN
        return Outcome(f"answered {status} {answer.reason_phrase}".strip(), final=final, answered=True)


def _reason(exc: BaseException) -> str:
    """What is behind an error, in the words of whoever noticed it first."""
    found = f"the connection failed ({type(exc).__name__})"
    cause: BaseException | None = exc
    while cause:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is refused: {cause.verify_message}"
        if isinstance(cause, OSError) and cause.errno:  # asyncio has words of its own, with less in them
            found = os.strerror(cause.errno) if cause.errno > 0 else cause.strerror or found
        cause = cause.__cause__ or cause.__context__
    return found
