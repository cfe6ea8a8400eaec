"""Tables and sentences, as commands print them."""

import pytest

from sendense.cli import tables
from sendense.cli.tables import Note, print_fields, print_json, print_table, say


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 40 columns."""
    monkeypatch.setattr(tables, "_columns", lambda: 40)


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns are as wide as their content, in a terminal's columns; nothing trails; notes stand below their row."""
    print_table(
        ["vm", "size", "why"], [["仮想", "1", ""], Note("a note"), ["e\u0301x", "100", "because"]], right=("size",)
    )
    assert capsys.readouterr().out == "vm    size  why\n仮想     1\n    a note\ne\u0301x     100  because\n"


def test_a_pipe_gets_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """What is no terminal gets a line for a row, however long it is."""
    print_table(["a", "b"], [["x", "word " * 100]])
    say("word " * 100)
    assert [len(line) for line in capsys.readouterr().out.splitlines()] == [4, 502, 499]


@pytest.mark.usefixtures("narrow")
def test_a_terminal_gets_wrapped_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal the last column and sentences go on below where they began; paths are not cut."""
    path = "/" + "folder/" * 10
    print_table(["name", "why"], [["first", "one two three four five six seven eight"], ["second", path]])
    say("one two three four five six seven eight nine", indent=4)
    assert capsys.readouterr().out.splitlines() == [
        "name    why",
        "first   one two three four five six",
        "        seven eight",
        f"second  {path}",
        "    one two three four five six seven",
        "    eight nine",
    ]


def test_fields_without_a_value_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Names are aligned, and control characters do not reach the terminal."""
    print_fields([("name", "web\x1b[2J"), ("none", ""), ("a", "b")])
    print_json({"name": "web\x1b"})
    assert capsys.readouterr().out == '  name  web\N{REPLACEMENT CHARACTER}[2J\n  a     b\n{"name": "web\\u001b"}\n'
