"""What `sendense` takes: its commands and their options, by the words that a document or an alert names."""

from typing import Any

import typer.main

from sendense.cli.main import app

GENERAL: Any = typer.main.get_command(app)
"""The command itself, with the options that stand before all others."""


def command_of(words: list[str]) -> Any:
    """The command that words name; they begin behind `sendense`."""
    found = GENERAL
    for word in words:
        if word not in getattr(found, "commands", {}):
            break
        found = found.commands[word]
    return found


def unknown_options(words: list[str]) -> set[str]:
    """The long options among these words that their command does not take."""
    taken = {
        name
        for command in (GENERAL, command_of(words))
        for option in command.params
        for name in (*option.opts, *option.secondary_opts)
    }
    return {word for word in words if word.startswith("--")} - taken
