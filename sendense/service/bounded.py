"""Waits that end in time, for calls that know no limit: a name's look-up, a file system that does not answer."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, ask: Callable[[], T]) -> T:
    """What a call comes to; TimeoutError when it takes longer: its thread is left behind, with what it waits for."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as exc:
            answer.set_exception(exc)

    threading.Thread(target=work, name="bounded", daemon=True).start()
    return answer.result(seconds)
