"""
Questions that only a site can answer: asked from anywhere, answered by the site's control worker.

vCenter's credentials stay at the site. Where they are this machine's own, it answers itself.
"""

import logging
import time
import uuid
from contextlib import suppress
from typing import Any

import pydantic_core
from pydantic import BaseModel, ConfigDict

from sendense.coordinator import questions
from sendense.coordinator.context import Context
from sendense.errors import (
    Cancelled,
    Conflict,
    InputError,
    InternalError,
    NotFound,
    SendenseError,
    SiteFailed,
    SiteSilent,
)
from sendense.jobs import broker, presence
from sendense.jobs.queues import control_queue
from sendense.nbd.connect import Beat, no_beat

log = logging.getLogger(__name__)

ASKED_SECONDS = 30
"""A question whose asker has not renewed it for so long is dropped, also in the middle of its answering; one whose
answerer has not is asked again."""

ANSWER_SECONDS = 60
"""An answer that nobody fetched is forgotten."""

LOOK_SECONDS = 1
"""Of one wait for the answer; less than Redis' socket may be silent."""

GONE_SECONDS = 10.0
"""Without a living control worker the question is given up after this: one that was restarted is back before."""

_ERRORS: dict[str, type[InputError]] = {each.__name__: each for each in (InputError, NotFound, Conflict)}


class _Question(BaseModel):
    model_config = ConfigDict(frozen=True)

    site: str
    name: str
    arguments: dict[str, Any]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)

    value: Any = None
    error: str = ""
    """Name of the error's class."""
    message: str = ""
    hint: str = ""


def ask(context: Context, site: str, name: str, /, *, seconds: float, beat: Beat = no_beat, **arguments: Any) -> Any:
    """
    The answer to a question of `questions.QUESTIONS`, within so many seconds; beats at least every two.

    Raises what the site raised: InputError, NotFound or Conflict as they are, all else as SiteFailed; SiteSilent when
    nobody there answers.
    """
    kind = questions.QUESTIONS[name]
    if site in context.settings.sites:
        return kind.answer(context.settings, site, arguments, beat)
    plain = pydantic_core.to_jsonable_python(arguments)
    found = _ask(context, _Question(site=site, name=name, arguments=plain), seconds, beat)
    if found.error:
        error = _ERRORS.get(found.error, SiteFailed)
        raise error(found.message, found.hint)
    return kind.result.validate_python(found.value)


def _ask(context: Context, question: _Question, seconds: float, beat: Beat) -> _Answer:
    client, name, began = context.ledger.client, uuid.uuid4().hex, time.monotonic()
    client.set(_asked(name), question.model_dump_json(), ex=ASKED_SECONDS)
    try:
        found = _wait(context, question, name, began + seconds, beat)
    finally:
        with suppress(*broker.Unavailable):
            client.delete(_asked(name))
    if not found:
        raise SiteSilent(question.site, question.name, time.monotonic() - began)
    return found


def _wait(context: Context, question: _Question, name: str, deadline: float, beat: Beat) -> _Answer | None:
    client, queue, text = context.ledger.client, control_queue(question.site), question.model_dump_json()
    present, sent = time.monotonic(), -float("inf")
    while (now := time.monotonic()) < deadline:
        if now - sent > ASKED_SECONDS and not client.exists(_taken(name)):
            sent = now
            broker.send_answer(context.app, name, f"{question.name} of {question.site}", queue)
        if found := client.blpop([_answered(name)], timeout=LOOK_SECONDS):
            return _Answer.model_validate_json(found[1])
        beat()
        client.set(_asked(name), text, ex=ASKED_SECONDS)
        if presence.processes(client, queue):
            present = time.monotonic()
        elif time.monotonic() - present > GONE_SECONDS:
            return None
    return None


def answer(context: Context, name: str) -> None:
    """Answer a question that was asked of this machine's site, unless nobody waits for it any more."""
    client = context.ledger.client
    text = client.get(_asked(name))
    if text is None or not client.set(_taken(name), 1, nx=True, ex=ASKED_SECONDS):
        return
    question = _Question.model_validate_json(text)
    renewed = time.monotonic()

    def beat() -> None:
        nonlocal renewed
        if time.monotonic() - renewed > LOOK_SECONDS:
            renewed = time.monotonic()
            client.expire(_taken(name), ASKED_SECONDS)
            if not client.exists(_asked(name)):
                raise Cancelled(question.name)

    try:
        kind = questions.QUESTIONS[question.name]
        value = kind.answer(context.settings, question.site, question.arguments, beat)
        found = _Answer(value=kind.result.dump_python(value, mode="json"))
    except SendenseError as exc:
        known = next((each for each in type(exc).__mro__ if each.__name__ in _ERRORS), type(exc))
        found = _Answer(error=known.__name__, message=str(exc), hint=exc.hint)
    except Exception as exc:
        log.exception("a question failed", extra={"action": "question_failed", "question": question.name})
        fault = InternalError(exc)
        found = _Answer(error=type(fault).__name__, message=str(fault), hint="Look at that worker's log.")
    with client.pipeline() as pipe:
        pipe.rpush(_answered(name), found.model_dump_json())
        pipe.expire(_answered(name), ANSWER_SECONDS)
        pipe.execute()


def _asked(name: str) -> str:
    return f"sendense:asked:{name}"


def _taken(name: str) -> str:
    return f"sendense:taken:{name}"


def _answered(name: str) -> str:
    return f"sendense:answered:{name}"
