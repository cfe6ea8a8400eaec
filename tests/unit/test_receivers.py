"""The settings of notices: what cannot work is refused when they are read, and no secret of theirs is shown."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from sendense.errors import InputError
from sendense.notices import Kind
from sendense.receivers import Notices
from sendense.service.notices import OCCASIONS
from sendense.settings import load_settings

MAIL: dict[str, Any] = {"mail_to": ["ops@example.org"], "mail_from": "hub@example.org", "smtp": "mail.example.org:587"}
LOGIN: dict[str, Any] = {"smtp_user": "hub", "smtp_password_file": "/etc/sendense/smtp.password"}
PAGE = Path(__file__).parents[2] / "docs" / "notices.md"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"webhook": "https://hooks.example/T1/s3cret"},
        {"webhook": "http://127.0.0.1:8080/x?y=z", "webhook_secret_file": "/etc/sendense/key"},
        MAIL,
        MAIL | LOGIN | {"smtp_security": "tls", "ca_file": "/etc/ssl/own.pem"},
        MAIL | LOGIN | {"smtp_security": "none", "smtp": "127.0.0.1:25"},
        {"webhook": "http://[::1]:8080/x"},
        MAIL | {"smtp": "[::1]:25"},
        MAIL | {"smtp": "mail_server:25", "mail_to": ["o'brien.x+y@example.org"]},
        MAIL | {"webhook": "https://hooks.example/", "on": ["failure", "success", "overdue"]},
    ],
)
def test_what_works(given: dict[str, Any]) -> None:
    """Each receiver alone, and both."""
    notices = Notices(**given)
    assert notices.receivers == [
        *(["webhook"] if "webhook" in given else []),
        *(["mail"] if "mail_to" in given else []),
    ]


@pytest.mark.parametrize(
    ("given", "where", "words"),
    [
        ({"webhook": "https://me:s3cret@hooks.example/"}, "webhook", "a user or a password in it"),
        ({"webhook": "ftp://hooks.example/s3cret"}, "webhook", "is no http://"),
        ({"webhook": "https:///s3cret"}, "webhook", "is no http://"),
        ({"webhook": "https://hooks.example:0/s3cret"}, "webhook", "is no http://"),
        ({"webhook": "https://hooks.example:99999/s3cret"}, "webhook", "is no http://"),
        ({"webhook": "https://hooks.example/a b"}, "webhook", "is no http://"),
        ({"webhook": "https://hooks.example/s3cret\r\nX: y"}, "webhook", "is no http://"),
        ({"webhook": "https://xn--/s3cret"}, "webhook", "is no http://"),
        ({"webhook": "https://a..b/s3cret"}, "webhook", "is no http://"),
        ({"webhook": "https://[v1.a]/s3cret"}, "webhook", "is no http://"),
        ({"webhook": f"https://{'a' * 64}.example/s3cret"}, "webhook", "is no http://"),
        ({"webhook": f"https://hooks.example/s3cret{'x' * 2048}"}, "webhook", "at most 2048"),
        ({"webhook": "https://hooks.example/s3cret#there"}, "webhook", "has a '#'"),
        ({"webhook_secret_file": "/key"}, "", "webhook_secret_file is set, and webhook is not"),
        ({"webhook_secret_file": "", "webhook": "https://a.example/"}, "webhook_secret_file", "names nothing"),
        ({"mail_to": ["a@example.org"]}, "", "smtp is not"),
        ({"mail_to": ["a@example.org"], "smtp": "mail:25"}, "", "mail_from is not"),
        ({"smtp": "mail:25"}, "", "mail_to is not"),
        ({"mail_from": "a@example.org"}, "", "mail_to is not"),
        (MAIL | {"mail_to": ["ops"]}, "mail_to", "is no mail address"),
        (MAIL | {"mail_to": ["a..b@example.org"]}, "mail_to", "is no mail address"),
        (MAIL | {"mail_to": [".a@example.org"]}, "mail_to", "is no mail address"),
        (MAIL | {"mail_to": ["a.@example.org"]}, "mail_to", "is no mail address"),
        (MAIL | {"mail_to": ["a@example..org"]}, "mail_to", "is no mail address"),
        (MAIL | {"mail_from": f"a@{'a' * 64}.org"}, "mail_from", "is no mail address"),
        (MAIL | {"mail_to": "ops@example.org"}, "mail_to", "is no list"),
        (MAIL | {"mail_to": ["a@example.org, b@example.org"]}, "mail_to", "is no mail address"),
        (MAIL | {"mail_to": ["a@example.org\r\nBcc: b@example.org"]}, "mail_to", "is no mail address"),
        (MAIL | {"mail_to": ["a@example.org", "a@example.org"]}, "mail_to", "twice"),
        (MAIL | {"mail_from": "Hub <hub@example.org>"}, "mail_from", "is no mail address"),
        (MAIL | {"smtp": "mail.example.org"}, "smtp", "is no HOST:PORT, such as mail"),
        (MAIL | {"smtp": "mail..example.org:25"}, "smtp", "has no host"),
        (MAIL | {"smtp": f"{'a' * 64}.example.org:25"}, "smtp", "has no host"),
        (MAIL | {"smtp": "mail.example.org:0"}, "smtp", "its port is none"),
        (MAIL | {"smtp_user": "hub"}, "", "smtp_password_file is not"),
        (MAIL | {"smtp_password_file": "/p"}, "", "smtp_user is not"),
        (MAIL | LOGIN | {"smtp_security": "none"}, "", "would send the password readable"),
        (MAIL | {"smtp_security": "ssl"}, "smtp_security", "'starttls', 'tls' or 'none'"),
        ({"on": []}, "on", "at least 1"),
        ({"on": ["failures"]}, "on.0", "'failure', 'success' or 'overdue'"),
        ({"web_hook": "https://a.example/"}, "web_hook", "no such setting"),
    ],
)
def test_what_cannot_work(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], where: str, words: str) -> None:
    """It is refused with the key and the reason, and without what may be a secret."""
    monkeypatch.setenv("SENDENSE_NOTICES", json.dumps(given))
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        load_settings()
    assert str(caught.value).startswith(".".join(["SENDENSE_NOTICES", *([where] if where else [])]))
    assert "s3cret" not in str(caught.value) + caught.value.hint


def test_in_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The table is read from the file, and what is wrong there is named with the file."""
    file = tmp_path / "sendense.toml"
    monkeypatch.setenv("SENDENSE_CONFIG", str(file))
    file.write_text('[notices]\nwebhook = "https://hooks.example/T1/s3cret"\n')
    notices = load_settings().notices
    assert (notices.on, notices.show("webhook")) == (["failure", "overdue"], "https://hooks.example")
    file.write_text('[notices]\nmail_to = ["ops"]\n')
    with pytest.raises(InputError, match=r"^.*sendense.toml: notices.mail_to = \['ops'\]: is no mail address"):
        load_settings()


def test_no_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is no JSON is refused by its name."""
    monkeypatch.setenv("SENDENSE_NOTICES", "{")
    with pytest.raises(InputError, match="SENDENSE_NOTICES: is no JSON"):
        load_settings()


def test_the_page() -> None:
    """docs/notices.md has each key and each kind, and none that is not there."""
    text = PAGE.read_text()
    rows = re.findall(r"^\| `([a-z._]+)` \|", text, re.MULTILINE)
    fields = ["version", "id", "kind", "time", "hub", "job", "vms", "schedule"]
    assert rows == [*Notices.model_fields, *rows[len(Notices.model_fields) :]]
    kinds = rows[len(Notices.model_fields) :]
    assert [kind for kind in kinds if kind not in fields] == sorted(get_args(Kind), key=kinds.index)
    assert set(OCCASIONS) == {kind for kind in get_args(Kind) if kind != "test"}
