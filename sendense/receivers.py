"""The settings of notices: who is told that a backup failed, and over which way."""

import re
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sendense.addresses import ADDRESS, host_and_port, is_host, is_loopback

Receiver = Literal["webhook", "mail"]

Occasion = Literal["failure", "success", "overdue"]

_URL = re.compile(r"https?://[^\s\x00-\x1f\x7f]+")

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_MAIL = re.compile(rf"(?=.{{1,64}}@){_ATOM}(?:\.{_ATOM})*@([A-Za-z0-9.-]*[A-Za-z0-9])")
"""A dot-atom and a host (RFC 5322, 3.4.1): nothing that could become a second one, or a second header."""

URL_LETTERS = 2048
"""Of a webhook's URL at most: what every web server takes."""


class Notices(BaseModel):
    """Table [notices] of the settings file, on a hub: `webhook` and `mail_to` are the receivers, each by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    on: list[Occasion] = Field(default=["failure", "overdue"], min_length=1)
    """What is told of. Successes also where a schedule asks for them."""

    webhook: str = Field(default="", max_length=URL_LETTERS)
    """http(s):// URL that takes a POST of each notice as JSON. Some have a secret in their path: it is not shown."""

    webhook_secret_file: Path | None = None
    """Holds the key that signs what is sent there, readable by its owner alone."""

    mail_to: list[str] = Field(default_factory=list, max_length=20)
    """Addresses; one that stands for a team is better than many."""

    mail_from: str = ""
    """The address that mail comes from: mail servers refuse one that is not theirs."""

    smtp: str = ""
    """HOST:PORT of the mail server: 587 for starttls, 465 for tls, 25 for none, in most places."""

    smtp_security: Literal["starttls", "tls", "none"] = "starttls"

    smtp_user: str = Field(default="", max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")

    smtp_password_file: Path | None = None
    """Holds that user's password, readable by its owner alone."""

    ca_file: Path | None = None
    """Who may have signed the receivers' certificates; unset: whom the system trusts."""

    @property
    def receivers(self) -> list[Receiver]:
        """Those that are set."""
        found: list[tuple[Receiver, bool]] = [("webhook", bool(self.webhook)), ("mail", bool(self.mail_to))]
        return [name for name, is_set in found if is_set]

    def show(self, receiver: Receiver) -> str:
        """Where notices go, as far as everybody may see it."""
        if receiver == "mail":
            return f"{', '.join(self.mail_to)} by {self.smtp}"
        parts = urlsplit(self.webhook)
        return f"{parts.scheme}://{parts.netloc}"

    @field_validator("webhook_secret_file", "smtp_password_file", "ca_file", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if value == "":
            raise ValueError("names nothing")
        return value

    @field_validator("webhook")
    @classmethod
    def _is_url(cls, value: str) -> str:
        if not value:
            return value
        try:
            parts = urlsplit(value)
            host = parts.hostname or ""
            named = is_host(host) and (":" in host) == ("[" in parts.netloc) and parts.port != 0
        except ValueError:  # of a port, or of brackets
            named = False
        if not (named and _URL.fullmatch(value) and value.isascii()):
            raise ValueError("is no http://HOST/PATH or https://HOST/PATH")
        if "@" in parts.netloc:
            raise ValueError("has a user or a password in it: sign what is sent, with webhook_secret_file")
        if parts.fragment:
            raise ValueError("has a '#': what follows it would not be sent")
        return value

    @field_validator("mail_to", "mail_from")
    @classmethod
    def _are_addresses(cls, value: list[str] | str) -> list[str] | str:
        for each in [value] if isinstance(value, str) else value:
            found = _MAIL.fullmatch(each)
            if each and not (found and is_host(found[1])):
                raise ValueError("is no mail address: NAME@HOST")
        if isinstance(value, list) and ("" in value or len(set(value)) < len(value)):
            raise ValueError("names an address twice, or nothing")
        return value

    @field_validator("smtp")
    @classmethod
    def _has_port(cls, value: str) -> str:
        if not value:
            return value
        if not re.fullmatch(ADDRESS, value):
            raise ValueError("is no HOST:PORT, such as mail.example.org:587")
        host, port = host_and_port(value)
        if not is_host(host):
            raise ValueError("has no host that there can be: HOST:PORT")
        if not 0 < port < 65536:
            raise ValueError("its port is none: 1 to 65535")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        needs = [
            (self.webhook_secret_file, self.webhook, "webhook_secret_file is set, and webhook is not"),
            (self.mail_to, self.smtp, "mail_to is set, and smtp is not: name the mail server, HOST:PORT"),
            (self.mail_to, self.mail_from, "mail_to is set, and mail_from is not"),
            (self.smtp or self.mail_from, self.mail_to, "smtp or mail_from is set, and mail_to is not"),
            (self.smtp_user, self.smtp_password_file, "smtp_user is set, and smtp_password_file is not"),
            (self.smtp_password_file, self.smtp_user, "smtp_password_file is set, and smtp_user is not"),
            (self.smtp_user, self.smtp, "smtp_user is set, and smtp is not"),
        ]
        for one, other, wrong in needs:
            if one and not other:
                raise ValueError(wrong)
        if self.smtp_user and self.smtp_security == "none" and not is_loopback(host_and_port(self.smtp)[0]):
            raise ValueError("smtp_security none would send the password readable: take starttls or tls")
        return self
