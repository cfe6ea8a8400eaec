"""How commands print what they found: tables, fields and sentences for people, one line of JSON for programs."""

import json
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

GAP = 2
"""Columns between two columns."""

LEAST_WRAPPED = 24
"""Columns that a last column needs at least to be worth wrapping."""


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence below a table's row, about it."""

    text: str


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str] | Note], *, right: Collection[str] = ()) -> None:
    """
    Print rows below their headings, as wide as their content; the columns named in `right` end at one edge.

    On a terminal that is too narrow the last column goes on in the next line.
    """
    found = [row if isinstance(row, Note) else [plain(cell) for cell in row] for row in rows]
    cells = [list(headings), *(row for row in found if not isinstance(row, Note))]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    sides = [heading in right for heading in headings]
    for row in [list(headings), *found]:
        if isinstance(row, Note):
            say(row.text, indent=4)
        else:
            _print_row(row, widths, sides)


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Names and values, a line each; those without a value are left out."""
    shown = [(name, plain(value)) for name, value in fields if value]
    widths = [max((_width(name) for name, _ in shown), default=0), 0]
    for row in shown:
        _print_row(row, widths, [False, False], indent=2)


def print_json(value: Any) -> None:
    """One line of JSON, and nothing else on stdout; of models what their fields are."""
    from pydantic_core import to_jsonable_python

    print(json.dumps(to_jsonable_python(value)), flush=True)


def say(text: str, indent: int = 0) -> None:
    """A sentence: wrapped on a terminal, one line for whoever reads a pipe."""
    for line in _wrapped(plain(text), _columns() - indent):
        print(" " * indent + line)


def plain(text: str) -> str:
    """Text from outside without what would steer the terminal: a VM's name may have anything in it."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _print_row(row: Sequence[str], widths: Sequence[int], right: Sequence[bool], indent: int = 0) -> None:
    line = " " * indent
    for cell, width, at_right in zip(row[:-1], widths[:-1], right[:-1], strict=True):
        padding = " " * (width - _width(cell))
        line += (padding + cell if at_right else cell + padding) + " " * GAP
    start = indent + sum(widths[:-1]) + GAP * (len(widths) - 1)
    last = " " * (widths[-1] - _width(row[-1])) + row[-1] if right[-1] else row[-1]
    room = _columns() - start
    parts = _wrapped(last, room) if room >= LEAST_WRAPPED and not right[-1] else [last]
    print((line + parts[0]).rstrip())
    for part in parts[1:]:
        print(" " * start + part)


def _wrapped(text: str, room: int) -> list[str]:
    return textwrap.wrap(text, max(room, LEAST_WRAPPED), break_long_words=False, break_on_hyphens=False) or [""]


def _columns() -> int:
    """The terminal's width; without a terminal more than any line has."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000


def _width(text: str) -> int:
    """Columns of a terminal (Unicode Standard Annex 11, "East Asian Width")."""
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text
    )
