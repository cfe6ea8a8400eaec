"""One attempt at a notice over each way, to real servers in every mood: taken, refused, put off, never hanging."""

import hashlib
import hmac
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sendense.errors import InputError
from sendense.notices import Notice
from sendense.receivers import Notices
from sendense.service import mail, webhook
from sendense.service.webhook import Outcome
from tests import receivers
from tests.mailserver import PASSWORD
from tests.receivers import DRIPS, HANGS, Mailbox, Webhook, deaf
from tests.repository import run
from tests.servers import free_port

NOTICE = Notice(
    id="hub01:1795401698642-0",
    kind="job.failed",
    time=datetime(2026, 11, 23, 2, 41, 38, tzinfo=UTC),
    hub="hub01",
    subject="backup of wéb\r\nBcc: all@example.org: failed",
    text="read nbd://127.0.0.1: no reply in 30.0 s\n.\nVM w\x1b[2Jeb (vm-1), site oslo, job b46742f52c3c",
    hint="Look at the node.",
    commands=["sendense jobs show b46742f52c3c"],
)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file with the password."""
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    file.chmod(0o600)
    return file


def by_mail(address: str, **more: Any) -> Notices:
    """Two people, over a mail server."""
    given = {"mail_to": ["ops@example.org", "boss@example.org"], "mail_from": "hub@example.org", "smtp": address}
    return Notices(**{"smtp_security": "none", **given, **more})


def test_a_webhook_gets_it(hook: Webhook, secret: Path) -> None:
    """The body is the notice, and the signature is that of the time and the body."""
    assert webhook.post(Notices(webhook=hook.url, webhook_secret_file=secret), NOTICE) == Outcome()
    ((headers, body),) = hook.got
    assert Notice.model_validate_json(body) == NOTICE
    assert (headers["Content-Type"], headers["Sendense-Notice"]) == ("application/json", NOTICE.id)
    signed = headers["Sendense-Timestamp"].encode() + b"." + body
    assert headers["Sendense-Signature"] == "sha256=" + hmac.new(PASSWORD.encode(), signed, hashlib.sha256).hexdigest()
    assert PASSWORD not in str(headers)
    assert webhook.post(Notices(webhook=hook.url), NOTICE) == Outcome()
    assert "Sendense-Signature" not in hook.got[1][0]


def test_what_is_logged_of_it(hook: Webhook, caplog: pytest.LogCaptureFixture) -> None:
    """A process that logs all that it is told, as the API does, logs no secret of a URL's path."""
    with caplog.at_level(logging.INFO):
        assert webhook.post(Notices(webhook=f"{hook.url}/s3cret"), NOTICE) == Outcome()
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("uri", ["https://xn--zzzzzz/", "http://host.invalid:9/[x]"])
def test_a_host_that_cannot_be(uri: str) -> None:
    """What only the library finds wrong about it is an outcome as any other."""
    outcome = webhook.post(Notices(webhook=uri), NOTICE)
    assert (bool(outcome.error), outcome.final) == (True, False)


SILENT_DNS = """
import socket, sys, time
from sendense.notices import Notice
from sendense.receivers import Notices
from sendense.service import mail, webhook
silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
silent.bind(("127.0.0.1", 53))
webhook.WEBHOOK_SECONDS = webhook.STEP_SECONDS = mail.MAIL_SECONDS = 1.0
began = time.monotonic()
notice = Notice.model_validate_json(sys.argv[1])
outcome = webhook.post(Notices(webhook="http://hooks.example.org/"), notice)
silent.recv(512, socket.MSG_DONTWAIT)
whom = dict(mail_to=["ops@example.org"], mail_from="hub@example.org", smtp="mail.example.org:25", smtp_security="none")
mailed = mail.send(Notices(**whom), notice)
silent.recv(512, socket.MSG_DONTWAIT)
print(time.monotonic() - began, outcome.error, mailed.error, sep="|", flush=True)
import os
os._exit(0)
"""


def test_a_name_that_nobody_looks_up(tmp_path: Path) -> None:
    """A name server that says nothing holds an attempt up no longer than any other silence."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:2\n")
    (tmp_path / "dns").write_text("hosts: dns\n")
    script = (
        'ip link set lo up; mount --bind "$1/resolv.conf" "$(realpath /etc/resolv.conf)"; '
        'mount --bind "$1/dns" /etc/nsswitch.conf; exec "$2" -c "$3" "$4"'
    )
    words = ("sh", tmp_path, sys.executable, SILENT_DNS, NOTICE.model_dump_json())
    said = run("unshare", "--map-root-user", "--mount", "--net", "sh", "-ec", script, *words)
    seconds, error, mailed = said.strip().split("|")
    assert float(seconds) < 25.0, "two requests of 30 s each"
    assert error.startswith("no ")
    assert mailed == "was not done within 1 s"


@pytest.mark.parametrize(
    ("status", "final"),
    [(301, True), (307, True), (400, True), (404, True), (410, True), (408, False), (429, False), (500, False)],
)
def test_a_webhook_refuses_it(hook: Webhook, status: int, final: bool) -> None:
    """What no further attempt can help is told from what one may; a redirect is not followed."""
    hook.answers = [status]
    outcome = webhook.post(Notices(webhook=hook.url), NOTICE)
    assert (outcome.error.startswith(f"answered {status}"), outcome.final) == (True, final)
    assert len(hook.got) == 1


def test_a_webhook_that_says_nothing(hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that is silent holds an attempt up, nor one that answers a letter at a time."""
    monkeypatch.setattr(webhook, "STEP_SECONDS", 1.5)
    monkeypatch.setattr(webhook, "WEBHOOK_SECONDS", 3.0)
    hook.answers = [HANGS, DRIPS]
    assert "no answer in 2 s" in webhook.post(Notices(webhook=hook.url), NOTICE).error
    assert "no whole answer in 3 s" in webhook.post(Notices(webhook=hook.url), NOTICE).error


def test_a_webhook_with_tls(tls_folder: Path) -> None:
    """Its certificate is checked: by the system's authorities, or by those that the settings name."""
    with receivers.webhook(tls_folder) as hook:
        assert webhook.post(Notices(webhook=hook.url, ca_file=tls_folder / "ca-cert.pem"), NOTICE) == Outcome()
        refused = webhook.post(Notices(webhook=hook.url), NOTICE)
        assert refused.error.startswith("its certificate is refused: unable to get local issuer")
        assert not refused.final
        assert len(hook.got) == 1


@pytest.mark.parametrize("send", [webhook.post, mail.send])
def test_nobody_there(send: Callable[[Notices, Notice], Outcome]) -> None:
    """A receiver that is down, or whose name nobody knows, may be there later."""
    for host in (f"127.0.0.1:{free_port()}", "nosuch.invalid:25"):
        outcome = send(by_mail(host, webhook=f"http://{host}/"), NOTICE)
        assert (bool(outcome.error), outcome.final) == (True, False)


@pytest.mark.parametrize("send", [webhook.post, mail.send])
def test_a_secret_that_cannot_be_read(send: Callable[[Notices, Notice], Outcome], secret: Path) -> None:
    """A file that others may read, or that is not there, is named before anything is sent."""
    given = {"webhook_secret_file": secret, "smtp_user": "hub", "smtp_password_file": secret}
    notices = by_mail(f"127.0.0.1:{free_port()}", webhook="http://127.0.0.1:1/", **given)
    secret.chmod(0o644)
    with pytest.raises(InputError, match="is open to others"):
        send(notices, NOTICE)
    secret.unlink()
    with pytest.raises(InputError, match="No such file"):
        send(notices, NOTICE)


@pytest.fixture(scope="module", params=["none", "starttls", "tls"])
def box(request: pytest.FixtureRequest, tls_folder: Path) -> Iterator[Mailbox]:
    """A mail server of each kind, which wants a login where that is safe."""
    user = "" if request.param == "none" else "hub"
    with receivers.mailbox(tls_folder, security=request.param, user=user) as box:
        yield box


def settings_of(box: Mailbox, tls: Path, secret: Path, **more: Any) -> Notices:
    """Those that fit the server."""
    given: dict[str, Any] = {"smtp_security": box.security, "ca_file": tls / "ca-cert.pem"}
    if box.user:
        given |= {"smtp_user": box.user, "smtp_password_file": secret}
    return by_mail(box.address, **(given | more))


def test_mail(box: Mailbox, tls_folder: Path, secret: Path) -> None:
    """It arrives as it is meant, and a VM's name becomes no second header and steers no terminal."""
    before = len(box.mails())
    assert mail.send(settings_of(box, tls_folder, secret), NOTICE) == Outcome()
    got = box.mails()[before]
    assert got["Subject"] == "[sendense hub01] backup of wéb��Bcc: all@example.org: failed"
    assert (got["X-Got"], got["Bcc"]) == ("ops@example.org,boss@example.org", None)
    assert (got["Message-ID"], got["X-Sendense-Notice"]) == ("<hub01.1795401698642-0@example.org>", NOTICE.id)
    body = got.get_content().replace("\r\n", "\n")
    assert "read nbd://127.0.0.1: no reply in 30.0 s\n.\nVM w�[2Jeb (vm-1)" in body
    assert "What to do\n  Look at the node.\n\n    sendense jobs show b46742f52c3c\n" in body


def test_mail_as_it_is_stored() -> None:
    """Whoever reads it raw reads whole words, in lines that end between two of them."""
    text = f"read {'/long' * 30} offset=80609280 length=65536: {'an error of many words ' * 8}"
    plain = NOTICE.model_copy(update={"subject": "backup of web01: failed", "text": text})
    raw = mail.message(by_mail("localhost:25"), plain).as_string().replace("\r\n", "\n")
    assert "Content-Transfer-Encoding: 7bit" in raw
    assert f"\n  {'/long' * 30}\n  offset=80609280 length=65536: an error" in raw
    endless = plain.model_copy(update={"text": "x" * 1500})
    assert max(map(len, mail.message(by_mail("localhost:25"), endless).as_bytes().splitlines())) <= 78


def test_mail_that_is_not_taken(box: Mailbox, tls_folder: Path, secret: Path) -> None:
    """Of several recipients those are told of that are refused; what may be taken later is not given up."""
    notices = settings_of(box, tls_folder, secret)
    box.mood(refused=["boss@example.org"])
    assert mail.send(notices, NOTICE) == Outcome(note="refused boss@example.org (550 nobody of that name)")
    box.mood(refused=["boss@example.org"], answer="450 later")
    assert mail.send(notices, NOTICE) == Outcome("refused boss@example.org (450 later)", left=("boss@example.org",))
    box.mood(refused=notices.mail_to)
    assert mail.send(notices, NOTICE).final
    box.mood("451 later", "554 no", "250 OK")
    found = [mail.send(notices, NOTICE) for _ in range(3)]
    assert found == [Outcome("answered 451 later"), Outcome("answered 554 no", final=True), Outcome()]


def test_mail_with_the_wrong_settings(
    box: Mailbox, tls_folder: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt says what does not fit, sends no password unprotected, and may be made again."""
    monkeypatch.setattr(mail, "STEP_SECONDS", 2.0)
    before = len(box.mails())
    wrong: dict[str, str] = {}
    for security in ("none", "starttls", "tls"):
        if security != box.security:
            other = settings_of(box, tls_folder, secret, smtp_security=security)
            wrong[security] = mail.send(other, NOTICE).error
    expected = {
        "none": {"starttls": "offers no STARTTLS", "tls": "does smtp_security fit the port?"},
        "starttls": {"none": "Must issue a STARTTLS command first", "tls": "does smtp_security fit the port?"},
        "tls": {"none": "no answer in 2 s", "starttls": "no answer in 2 s"},
    }[box.security]
    assert {name: expected[name] in said for name, said in wrong.items()} == dict.fromkeys(wrong, True), wrong
    if box.user:
        assert (
            "its certificate is refused" in mail.send(settings_of(box, tls_folder, secret, ca_file=None), NOTICE).error
        )
        refused = mail.send(settings_of(box, tls_folder, secret, smtp_user="other"), NOTICE)
        assert ("535" in refused.error, refused.final) == (True, False)
    assert len(box.mails()) == before


def test_a_mail_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that is silent holds an attempt up, nor one that answers a letter at a time."""
    monkeypatch.setattr(mail, "STEP_SECONDS", 1.5)
    monkeypatch.setattr(mail, "MAIL_SECONDS", 3.0)
    with deaf() as address:
        assert mail.send(by_mail(address), NOTICE).error == "no answer in 2 s"
    with deaf(b"2") as address:
        assert mail.send(by_mail(address), NOTICE).error == "was not done within 3 s"
