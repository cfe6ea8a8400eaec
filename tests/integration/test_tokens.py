"""Tokens: made, listed and revoked by the command, kept as hashes, found by whoever shows one."""

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sendense.errors import Conflict, InputError, NotFound
from sendense.service.tokens import SECRET_BYTES, Tokens
from sendense.settings import Settings
from tests.integration.support import Lab


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    """Those of an empty state folder."""
    return Tokens(Settings(state_dir=tmp_path / "state"))


def test_the_commands(lab: Lab) -> None:
    """A token is printed alone on stdout, listed without it, and gone when it is revoked."""
    made = lab.run("token", "create", "--role", "operator", "--name", "nightly", "--days", "30")
    secret = made.stdout.strip()
    assert made.status == 0
    assert secret.startswith("sendense_")
    assert "nightly" in made.stderr
    assert secret not in made.stderr
    reader = lab.run("token", "create", "--role", "reader", "--json").summary
    found = Tokens(Settings(state_dir=lab.state))
    token = found.find(secret)
    assert token
    assert (token.name, token.role) == ("nightly", "operator")
    assert token.expires
    assert abs(token.expires - datetime.now(UTC) - timedelta(days=30)) < timedelta(hours=1)
    listed = lab.run("token", "list")
    assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [
        ["nightly", "operator"],
        [reader["name"], "reader"],
    ]
    named = json.loads(lab.run("token", "list", "--json").stdout)
    assert [each["name"] for each in named] == ["nightly", reader["name"]]
    assert "digest" not in named[0]
    assert lab.run("token", "revoke", "nightly").status == 0
    assert found.find(secret) is None
    again = lab.run("token", "revoke", "nightly")
    assert (again.status, again.error[1]) == (2, "  List them: sendense token list")
    assert lab.run("token", "create", "--role", "king").status == 2


def test_only_hashes_are_kept(tokens: Tokens, tmp_path: Path) -> None:
    """The file has no token, is its owner's alone, and each token is of 256 random bits."""
    made = [tokens.create("reader") for _ in range(20)]
    file = tmp_path / "state" / "tokens.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = file.read_text()
    for token, secret in made:
        assert secret not in content
        assert len(secret.removeprefix("sendense_")) * 6 >= SECRET_BYTES * 8
        assert tokens.find(secret) == token
    assert len({secret for _, secret in made}) == 20


@pytest.mark.parametrize("shown", ["", " ", "sendense_", "sendense_x", "\udcff", "ä" * 5000])
def test_what_is_no_token(tokens: Tokens, shown: str) -> None:
    """Nothing else is taken for a token, whatever it looks like."""
    tokens.create("operator")
    assert tokens.find(shown) is None


def test_a_token_ends(tokens: Tokens) -> None:
    """A token whose time is over is not taken any more."""
    token, secret = tokens.create("operator", days=0)
    assert token.has_expired
    assert tokens.find(secret) is None


def test_names(tokens: Tokens) -> None:
    """A name is of one token at a time, and can be written anywhere."""
    tokens.create("reader", "ci")
    with pytest.raises(Conflict):
        tokens.create("operator", "ci")
    for name in ("a b", "-x", "x" * 64, "a\n"):
        with pytest.raises(InputError):
            tokens.create("reader", name)
    with pytest.raises(NotFound):
        tokens.revoke("cd")
    tokens.revoke("ci")
    tokens.create("operator", "ci")


def test_made_at_once(tokens: Tokens, tmp_path: Path) -> None:
    """Commands that make tokens at the same time lose none."""

    def create(number: int) -> str:
        return Tokens(Settings(state_dir=tmp_path / "state")).create("reader", f"t{number}")[1]

    with ThreadPoolExecutor(8) as pool:
        secrets = list(pool.map(create, range(16)))
    assert all(tokens.find(secret) for secret in secrets)
    assert len(tokens.all()) == 16


def test_a_damaged_file_lets_nobody_in(tokens: Tokens, tmp_path: Path) -> None:
    """A file that cannot be read is an error that says so, and nobody is taken for somebody."""
    _, secret = tokens.create("operator")
    file = tmp_path / "state" / "tokens.json"
    whole = file.read_text()
    os.truncate(file, 40)
    with pytest.raises(InputError, match=r"tokens\.json: is damaged"):
        tokens.find(secret)
    file.write_text(whole)
    assert tokens.find(secret)
