"""A client is not stopped by what a newer hub adds to its answers."""

import inspect
import typing
from collections.abc import Iterator

import pytest
from pydantic import TypeAdapter

from sendense.client import calls
from sendense.client.calls import Call
from sendense.requests import Event
from sendense.views import Job


def answers() -> Iterator[object]:
    """What the calls of the API return."""
    for _, function in inspect.getmembers(calls, inspect.isfunction):
        returned = typing.get_type_hints(function).get("return")
        if function.__module__ == calls.__name__ and typing.get_origin(returned) is Call:
            yield from (each for each in typing.get_args(returned) if not isinstance(each, typing.TypeVar))


@pytest.mark.parametrize("answer", [*{str(each): each for each in answers()}.values(), Event, Job], ids=str)
def test_unknown_fields_are_passed_over(answer: object) -> None:
    """No model of an answer, nor of anything in it, refuses fields that it does not know."""
    adapter: TypeAdapter[object] = TypeAdapter(answer)  # type: ignore[arg-type]
    schema = adapter.json_schema()
    parts = {"answer": schema, **schema.get("$defs", {})}
    assert [name for name, part in parts.items() if part.get("additionalProperties") is False] == []
