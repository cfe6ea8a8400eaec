"""What a hub answers over HTTP: its API, and Flower."""

import http.client
import json
import ssl
from pathlib import Path
from typing import Any

from sendense import pki
from sendense.diagnosis.finding import Trouble
from sendense.hub.folder import service_lock
from sendense.settings import Settings, host_and_port
from sendense.supervise.child import is_heard_of
from sendense.supervise.web import refusal

ANSWER_SECONDS = 10.0
"""For one answer: GET /readyz looks at all parts, for up to 8 s."""

_LOOPBACKS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where this machine reaches what listens on all of its addresses."""


def api(settings: Settings) -> str:
    """The API answers at its address, is this hub's, and calls itself ready."""
    listen, folder = settings.api_listen, settings.tls_dir
    _must_be_ours(settings, "api_listen", listen)
    status, body = _get("api", listen, "/healthz", folder)
    if status != http.client.OK or body != {"status": "ok"}:
        raise _taken("api_listen", f"what answers at {listen} is not the API (status {status})")
    status, body = _get("api", listen, "/readyz", folder)
    if status != http.client.OK:
        wrong = [f"{each['name']}: {each['error']}" for each in body.get("checks", []) if each.get("error")]
        raise Trouble("not-ready", "; ".join(wrong) or f"status {status}", "What it lacks is what to mend.")
    return f"ready at {'https' if folder else 'http'}://{listen}"


def flower(settings: Settings) -> str:
    """Flower answers at its address. Nothing depends on it."""
    _must_be_ours(settings, "flower_listen", settings.flower_listen)
    status, _ = _get("flower", settings.flower_listen, "/healthcheck", settings.tls_dir)
    if status not in (http.client.OK, http.client.UNAUTHORIZED):
        raise _taken("flower_listen", f"what answers at {settings.flower_listen} is not Flower (status {status})")
    return f"answers at {settings.flower_listen}"


def _must_be_ours(settings: Settings, setting: str, listen: str) -> None:
    """Another hub of this machine would answer as this one does."""
    if refusal(listen) and not is_heard_of(service_lock(settings.hub_dir), host_and_port(listen)[1]):
        raise _taken(setting, f"who listens at {listen} is not of this hub")


def _taken(setting: str, detail: str) -> Trouble:
    fix = f"End who listens there (ss -ltnp), or set {setting} to another address; then restart the hub."
    return Trouble("port-taken", detail, fix)


def _get(part: str, listen: str, path: str, folder: Path | None) -> tuple[int, dict[str, Any]]:
    host, port = host_and_port(listen)
    connection = _connection(_LOOPBACKS.get(host, host), port, folder)
    log = f"The hub starts it again by itself; {part}.log in its folder says why it ended."
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, _object(response.read())
    except ssl.SSLCertVerificationError as exc:
        fix = "Renew it (sendense pki init --renew), and restart the hub: it serves the one that it started with."
        raise Trouble(f"{part}-certificate", f"{listen}: {exc.verify_message}", fix) from exc
    except TimeoutError as exc:
        fix = "It is stopped, or overloaded: the hub starts it again after half a minute; if not, restart the hub."
        raise Trouble(f"{part}-silent", f"{listen}: no answer in {ANSWER_SECONDS:.0f} s", fix) from exc
    except (OSError, http.client.HTTPException) as exc:
        said = getattr(exc, "strerror", "") or str(exc) or type(exc).__name__
        raise Trouble(f"{part}-away", f"{listen}: {said}", log) from exc
    finally:
        connection.close()


def _connection(host: str, port: int, folder: Path | None) -> http.client.HTTPConnection:
    if not folder:
        return http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
    context = ssl.create_default_context(cafile=folder.absolute() / pki.CA_CERT)
    context.check_hostname = False  # it has the names that others reach it under
    return http.client.HTTPSConnection(host, port, timeout=ANSWER_SECONDS, context=context)


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
