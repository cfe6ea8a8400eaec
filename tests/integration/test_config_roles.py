"""`sendense config check` of what a hub, a node and notices need: there and usable, or named with what to do."""

import json
import socket
from pathlib import Path

import pytest

from sendense import pki
from sendense.hub.folder import locked, service_lock
from tests import receivers
from tests.hub import open_hub
from tests.integration.support import Lab
from tests.servers import free_port, locked_by_another


def config(folder: Path, text: str) -> Path:
    """A settings file."""
    file = folder / "sendense.toml"
    file.write_text(text)
    return file


def wrong(lab: Lab, file: Path, *options: str) -> tuple[str, str]:
    """What is wrong first, and what to do about it."""
    result = lab.run("config", "check", *options, config=file)
    assert result.status == 2, result
    return result.error[0], result.error[1]


def found(lab: Lab, file: Path, *options: str) -> dict[str, str]:
    """What was found, where all is well."""
    result = lab.run("config", "check", "--json", *options, config=file)
    assert result.status == 0, result
    return {each["thing"]: each["found"] for each in json.loads(result.stdout)}


def test_notices(lab: Lab, tmp_path: Path) -> None:
    """Receivers are asked whether they are there, and are sent nothing; offline only files are looked at."""
    secret = tmp_path / "secret"
    secret.write_text("k\n")
    secret.chmod(0o600)
    with receivers.webhook() as hook, receivers.mailbox() as box:
        text = f"""
[notices]
webhook = "{hook.url}"
webhook_secret_file = "{secret}"
mail_to = ["ops@example.org"]
mail_from = "hub@example.org"
smtp = "{box.address}"
smtp_security = "none"
"""
        file = config(tmp_path, text)
        things = found(lab, file)
        assert things["notices: webhook"] == hook.url.removesuffix("/hook")
        assert things["notices: mail"] == f"ops@example.org by {box.address}"
        assert (hook.got, box.mails()) == ([], [])
        other = config(tmp_path, text.replace('"none"', '"starttls"'))
        error, hint = wrong(lab, other)
        assert "notices: mail: offers no STARTTLS" in error
        assert "sendense notices test" in hint
        file = config(tmp_path, text)
        secret.chmod(0o644)
        error, hint = wrong(lab, file, "--offline")
        assert f"webhook_secret_file {secret} is open to others" in error
        secret.chmod(0o600)
        secret.write_text("")
        assert "Write the secret into it" in wrong(lab, file, "--offline")[1]
        secret.write_text("k")
    assert "notices: webhook: Connection refused" in wrong(lab, file)[0]
    found(lab, file, "--offline")


def test_a_hub(lab: Lab, tmp_path: Path) -> None:
    """Its certificates, and whether the addresses at which it is to listen are free."""
    folder = tmp_path / "pki"
    pki.init(folder, ["hub.example"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = f'tls_dir = "{folder}"\nredis_listen = "127.0.0.1:{free_port()}"\n'
        things = found(lab, config(tmp_path, text))
        assert "-cert.pem ends" in things["certificates"]
        assert "api_listen" not in things
        error, hint = wrong(lab, config(tmp_path, f'{text}api_listen = "127.0.0.1:{port}"\n'))
        assert f"api_listen: 127.0.0.1:{port}: Address already in use" in error
        assert "Set api_listen to" in hint

        (lab.state / "hub").mkdir(parents=True)
        lock, own = service_lock(lab.state / "hub"), config(tmp_path, f'api_listen = "127.0.0.1:{port}"\n')
        with locked(lock):  # as if this process were the hub
            assert found(lab, own)["api_listen"] == f"127.0.0.1:{port}, of the hub that runs"
        with locked_by_another(lock):
            assert "Address already in use" in wrong(lab, own)[0]
    assert "exports_listen: 192.0.2.1:1" in wrong(lab, config(tmp_path, f'{text}exports_listen = "192.0.2.1:1"\n'))[0]


def test_a_node(lab: Lab, tmp_path: Path) -> None:
    """Whether the hub's Redis and its exports can be reached, and the password's file."""
    with open_hub() as hub, socket.create_server(("127.0.0.1", 0)) as exports:
        text = f'exports = "nbd://127.0.0.1:{exports.getsockname()[1]}"\n'
        things = found(lab, config(tmp_path, f'{text}redis = "{hub.url}"\n'))
        assert things["redis"].startswith(f"{hub.url}: answers in")
        assert things["exports"].startswith("nbd://127.0.0.1:")
        missing = config(tmp_path, f'{text}redis = "{hub.url}"\nredis_password_file = "{tmp_path / "none"}"\n')
        assert f"redis_password_file {tmp_path / 'none'}: No such file" in wrong(lab, missing)[0]
    away = config(tmp_path, f'{text}redis = "redis://127.0.0.1:{free_port()}"\n')
    error, hint = wrong(lab, away)
    assert "redis: redis://127.0.0.1" in error
    assert "refused" in error
    assert "sendense hub" in hint
    assert "exports: nbd://" in wrong(lab, config(tmp_path, text))[0]
    found(lab, away, "--offline")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hub", "hub:7780", "jobs"], "--hub = 'hub:7780': is no http://"),
        (["node", "--site", "oslo", "--name", "a b"], "--name = 'a b'"),
    ],
)
def test_options_are_named_as_they_were_given(lab: Lab, arguments: list[str], said: str) -> None:
    """An option that is wrong is blamed, not the variable that it becomes."""
    result = lab.run(*arguments)
    assert (result.status, said in result.error[0]) == (2, True), result


def test_the_doctor_names_its_option(lab: Lab) -> None:
    """So does the doctor, which has it among what it finds."""
    result = lab.run("doctor", "--node", "--site", "oslo", "--name", "a b", "--json")
    (found,) = json.loads(result.stdout)["findings"]
    assert (result.status, found["detail"].startswith("--name = 'a b'")) == (1, True), result


def test_a_token_is_no_password(lab: Lab, tmp_path: Path) -> None:
    """A missing file is to get what it is for."""
    result = lab.run("jobs", hub="http://127.0.0.1:1", token_file=tmp_path / "token")
    assert "Write the token into it" in result.error[1]
