"""Notices by mail: text that a person can read at night, handed to a mail server; one attempt, under deadlines."""

import smtplib
import socket
import ssl
import threading
from contextlib import suppress
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from textwrap import wrap

from sendense.addresses import host_and_port
from sendense.files import read_secret
from sendense.notices import Notice
from sendense.receivers import Notices
from sendense.service.bounded import within
from sendense.service.notices import plain, show_time
from sendense.service.webhook import Outcome, trusting

MAIL_SECONDS = 20.0
"""For all of an attempt, from the name's look-up on; a server that greylists or looks names up answers within ten."""

STEP_SECONDS = 10.0
"""For each wait within that, but for the look-up of a name."""

CUT_SECONDS = 2.0
"""For an attempt to end that is cut off; one that has no connection yet cannot be, and is left behind."""

LINE_LETTERS, MOST_LETTERS = 76, 998
"""Of a line, where it can be wrapped at words; and of any (RFC 5322, 2.1.1)."""

SUBJECT_LETTERS = 200
"""Of a subject at most: a VM's name has up to 80."""


def send(notices: Notices, notice: Notice) -> Outcome:
    """Hand a notice over once; InputError when the password or the certificate cannot be read."""
    return _attempt(notices, message(notices, notice))


def reach(notices: Notices) -> Outcome:
    """Log in as for a mail, and send none."""
    return _attempt(notices, None)


def password(notices: Notices) -> str:
    """The password of the user at the mail server; empty without one. InputError when it cannot be read."""
    return read_secret(notices.smtp_password_file, "smtp_password_file") if notices.smtp_password_file else ""


def _attempt(notices: Notices, said: EmailMessage | None) -> Outcome:
    try:
        return within(MAIL_SECONDS + CUT_SECONDS, lambda: _cut_in_time(notices, said))
    except TimeoutError:
        return _late()


def _cut_in_time(notices: Notices, said: EmailMessage | None) -> Outcome:
    secret, verify = password(notices), trusting(notices)
    server, done, cut = _server(notices, verify), threading.Event(), threading.Event()
    # Each wait has a limit; a server that answers a letter at a time makes many waits.
    threading.Thread(target=_cut_late, args=[server, done, cut], name="mail", daemon=True).start()
    try:
        outcome = _converse(server, notices, verify, secret, said, cut)
        return _late() if outcome.error and cut.is_set() else outcome
    except smtplib.SMTPRecipientsRefused as exc:
        return Outcome(_refused(exc.recipients), final=all(code >= 500 for code, _ in exc.recipients.values()))
    except smtplib.SMTPDataError as exc:
        return Outcome(f"answered {_answer(exc.smtp_code, exc.smtp_error)}", final=exc.smtp_code >= 500)
    except smtplib.SMTPResponseException as exc:  # greeting, login, sender: somebody may put that right
        return Outcome(f"answered {_answer(exc.smtp_code, exc.smtp_error)}")
    except (smtplib.SMTPException, OSError) as exc:
        return _late() if cut.is_set() else Outcome(_reason(exc))
    finally:
        done.set()
        with suppress(OSError):
            server.close()


def message(notices: Notices, notice: Notice) -> EmailMessage:
    """The mail: its subject says what; its body says what, where, and what to do."""
    mail = EmailMessage(SMTP)
    mail["Subject"] = plain(f"[sendense {notice.hub}] {notice.subject}")[:SUBJECT_LETTERS]
    mail["From"] = Address("Sendense", addr_spec=notices.mail_from)
    mail["To"] = [Address(addr_spec=each) for each in notices.mail_to]
    mail["Date"] = format_datetime(notice.time)
    # The same at every attempt, so that mail servers and readers can drop a second one.
    mail["Message-ID"] = f"<{notice.id.replace(':', '.')}@{notices.mail_from.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Sendense-Notice"] = notice.id
    mail["X-Sendense-Kind"] = notice.kind
    body = _body(notice)
    # Not encoded where it can be read as it is: some look at raw mail.
    fits = body.isascii() and all(len(line) <= MOST_LETTERS for line in body.splitlines())
    mail.set_content(body, cte="7bit" if fits else "quoted-printable")
    return mail


def _body(notice: Notice) -> str:
    lines = [*_wrapped(notice.subject), "", *(part for line in notice.text.splitlines() for part in _wrapped(line)), ""]
    lines += [f"Hub {notice.hub}, {show_time(notice.time)}", ""]
    if notice.hint or notice.commands:
        lines += ["What to do"]
        lines += _wrapped(notice.hint, "  ") if notice.hint else []
        lines += ["", *(f"    {command}" for command in notice.commands)] if notice.commands else []
        lines += [""]
    return "\n".join([*lines, f"Notice {notice.id}", ""])


def _wrapped(text: str, indent: str = "") -> list[str]:
    """Text as lines that end with words; what is long without a space stays whole, to be copied."""
    return wrap(
        plain(text),
        LINE_LETTERS,
        initial_indent=indent,
        subsequent_indent=indent or "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _server(notices: Notices, verify: ssl.SSLContext) -> smtplib.SMTP:
    """Not connected yet, so that whoever watches the time can cut it off."""
    name = socket.gethostname()
    name = name if "." in name else "[127.0.0.1]"  # smtplib would ask the DNS, without a limit
    if notices.smtp_security == "tls":
        return smtplib.SMTP_SSL(local_hostname=name, timeout=STEP_SECONDS, context=verify)
    return smtplib.SMTP(local_hostname=name, timeout=STEP_SECONDS)


def _converse(
    server: smtplib.SMTP,
    notices: Notices,
    verify: ssl.SSLContext,
    secret: str,
    said: EmailMessage | None,
    cut: threading.Event,
) -> Outcome:
    host, port = host_and_port(notices.smtp)
    server._host = host  # type: ignore[attr-defined]  # smtplib checks the certificate against what its constructor got
    code, words = server.connect(host, port)
    if cut.is_set():  # nobody waits for it any more, and the next attempt sends the same
        return _late()
    if code != 220:
        return Outcome(f"answered {_answer(code, words)}")
    if notices.smtp_security == "starttls":
        server.ehlo_or_helo_if_needed()
        if not server.has_extn("starttls"):
            return Outcome("offers no STARTTLS: set smtp_security to tls (port 465), or none on a way that is safe")
        server.starttls(context=verify)
    if notices.smtp_user:
        server.login(notices.smtp_user, secret)
    refused = server.send_message(said, notices.mail_from, notices.mail_to) if said else {}
    with suppress(smtplib.SMTPException, OSError):  # what counts is done
        server.quit()
    if any(code < 500 for code, _ in refused.values()):  # greylisted, or a mailbox that is full
        return Outcome(_refused(refused), left=tuple(refused))
    return Outcome(note=_refused(refused) if refused else "")


def _cut_late(server: smtplib.SMTP, done: threading.Event, cut: threading.Event) -> None:
    if done.wait(MAIL_SECONDS):
        return
    cut.set()
    while not done.wait(0.5):  # again: it may be in the middle of having its socket replaced by one with TLS
        if connection := server.sock:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _refused(recipients: dict[str, tuple[int, bytes]]) -> str:
    each = (f"{name} ({_answer(code, words)})" for name, (code, words) in recipients.items())
    return f"refused {', '.join(each)}"


def _answer(code: int, words: bytes | str) -> str:
    """A server's answer, bounded: it is shown and kept."""
    text = words.decode(errors="replace") if isinstance(words, bytes) else words
    return plain(f"{code} {' '.join(text.split())}")[:300]


def _late() -> Outcome:
    return Outcome(f"was not done within {MAIL_SECONDS:.0f} s")


def _reason(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        return f"TLS failed ({exc.reason}): does smtp_security fit the port?"
    if isinstance(exc, TimeoutError) or isinstance(exc.__context__, TimeoutError):
        return f"no answer in {STEP_SECONDS:.0f} s"
    return plain(getattr(exc, "strerror", None) or str(exc) or type(exc).__name__)[:300]
