"""`python -m tests.mailserver FOLDER PORT SECURITY TLS USER`: a real mail server that keeps what it takes there."""

import asyncio
import json
import ssl
import sys
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

PASSWORD = "s3cret of the mail server"


class _Handler:
    """Answers as the file `mood` says."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._answered = folder, 0
        self._mood = ""

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, to: str, options: object) -> str:
        """Whether a recipient is known."""
        mood = self._read()
        if to in mood["refused"]:
            return str(mood["answer"])
        envelope.rcpt_tos.append(to)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Take a mail, or not."""
        answers = self._read()["answers"]
        answer = answers[self._answered] if self._answered < len(answers) else "250 OK"
        self._answered += 1
        if answer.startswith("2"):
            content = envelope.original_content
            assert content
            number = len(list(self._folder.glob("*.eml")))
            (self._folder / "part").write_bytes(f"X-Got: {','.join(envelope.rcpt_tos)}\r\n".encode() + content)
            (self._folder / "part").rename(self._folder / f"{number:04}.eml")
        return str(answer)

    def _read(self) -> Any:
        text = (self._folder / "mood").read_text()
        if text != self._mood:
            self._mood, self._answered = text, 0
        return json.loads(text)


async def main() -> None:
    """Serve until killed."""
    folder, port, security, tls, user = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6]
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(Path(tls) / "server-cert.pem", Path(tls) / "server-key.pem")
    handler = _Handler(folder)

    def login(server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: object) -> AuthResult:
        assert isinstance(data, LoginPassword)
        return AuthResult(success=(data.login, data.password) == (user.encode(), PASSWORD.encode()), handled=False)

    def protocol() -> SMTP:
        return SMTP(
            handler,
            hostname="mail.example",
            tls_context=context if security == "starttls" else None,
            require_starttls=security == "starttls",
            authenticator=login if user else None,
            auth_required=bool(user),
            auth_require_tls=False,
        )

    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", port, ssl=context if security == "tls" else None)
    (folder / "ready").touch()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
