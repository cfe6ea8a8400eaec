"""How the documents are gone through: which lines are typed, in which rooms, and what a reader puts in their places."""

import re
from dataclasses import dataclass, field
from typing import Any

from tests.docs import Line, Page, Room, uncommented

UNTYPED = (
    (r"(\./)?deploy/[\w.]+", "installs, or is the suite"),
    (r"(systemctl|systemd-analyze|journalctl|sshd -t && systemctl)\b", "no systemd runs in a room"),
    (r"docker ", "no engine for containers runs in a room"),
    (r"qemu-nbd --connect", "needs the kernel's nbd module"),
)
"""What is not typed in a room, and why: another test types it, which takes it from the page by command_in."""

AS_USER = "sudo -u sendense "
"""What follows is typed by root in a room, where all belongs to root, and as it is by another test."""

BY_CI = {("README.md", "./deploy/test"), ("docs/install.md", "deploy/setup dev")}
"""What the suite cannot type, since the suite is made by it: .ci/run does."""

NOWHERE = {("docs/backup.md", "mount -o ro /dev/nbd0p1 /mnt")}
"""What nothing types: it needs the kernel's nbd module."""

SHOWN = (
    r"[{\[\"]| \"",  # JSON
    r"(retry|id|data|event): ",  # an event stream
    r"((repository|settings)\.json|hub\.lock|vms/UUID/)",  # a tree of files
    r"\d+ \d+ \* \* \* ",  # a line of a crontab
    r"https?://\S+ +user: ",  # what to open in a browser
    r"hub\.example\.com ssh-ed25519",  # a line of a file
)
"""Lines that show something, and are not for typing."""

TYPED = (
    r"(sendense|\.venv/bin/sendense|export|unset|curl|install|ln|useradd|chown|chmod|mkdir|cp|mv|rm|tar|cat|echo|printf|"
    r"test|ls|df|du|kill|timeout|ssh-keygen|openssl|qemu-img|nbdinfo|promtool|\(umask) ?|"
    f"{AS_USER}"
)
"""The programs that are simply run."""

STAND_INS = (
    (r"https?://(hub|hub\.example|hub\.example\.com):7780", "http://127.0.0.1:7780"),
    (r"\bVM\|--all\b", "web01"),
    (r"\b(VM|SMALL_VM)\b", "web01"),
    (r"\bPOINT\b", "web01@latest"),
    (r"\b(JOB|b46742f52c3c)\b", "$(latest-job)"),
    (r"\bFOLDER\b", "$(mktemp -d)"),
    (r"\b(TARGET|new\.qcow2)\b", "$PWD/$(mktemp -u new-XXXXXX).qcow2"),
    (r"\bSOURCE\b", "nbd://127.0.0.1:10810"),
    (r"nbd://HOST:PORT/NAME", "nbd://127.0.0.1:10810"),
    (r"sendense copy nbd://127\.0\.0\.1:10809", "sendense copy nbd://127.0.0.1:10810"),
    (r"^sendense doctor nbd://127\.0\.0\.1:10809$", "sendense doctor nbd://127.0.0.1:10810"),
    (r"\bNAME\b", "name1"),
    (r"\bKEY\b", "2000"),
    (r"(?<![-\w])[NH]\b", "3"),
    (AS_USER, ""),
    (r"(^| )(deploy|examples)/", r"\1/opt/sendense/\2/"),
    (r"^\.venv/", "/opt/sendense/.venv/"),
    (r"^curl -s ", "curl -s --fail "),  # a reader sees that an answer is an error
)
"""What a reader would put in place of a document's words."""


@dataclass(frozen=True, slots=True)
class Story:
    """
    How a page is gone through, from its first line to its last; the keys of each table are beginnings of lines.

    before: what else a reader has or does by then; its lines are typed, and have to succeed
    instead: what is typed instead
    stays: lines that do not end, and what they say when they are there
    ends: exit statuses other than 0
    """

    room: str = "hub"
    before: dict[str, str] = field(default_factory=dict)
    instead: dict[str, str] = field(default_factory=dict)
    stays: dict[str, str] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)


SLOW = (
    "sendense lab set --vm db01 read-rate=150K && { sendense backup db01 --mode full >slow.log 2>&1 & "
    "} && until sendense jobs show $(latest-job) | grep -q 'db01.*\\(running\\|copy\\)'; do sleep 0.2; done"
)
"""A backup that is under way for as long as anybody looks."""

DISK = (
    "qemu-img create -q -f qcow2 disk.qcow2 64M && { qemu-nbd --persistent --shared=8 --port=10810 disk.qcow2 & } && "
)
DISK += "for i in $(seq 100); do nbdinfo --size nbd://127.0.0.1:10810 2>/dev/null && break; sleep 0.1; done"
RECEIVER = """
cat > receiver.py <<'END'
import http.server

class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", 8099), Receiver).serve_forever()
END
{ python3 receiver.py & }
printf '[notices]\\nwebhook = "http://127.0.0.1:8099/"\\n' >> /etc/sendense/sendense.toml
kill $hub
wait $hub
{ sendense hub > hub.log 2>&1 & }
until grep -q "is ready" hub.log; do sleep 0.2; done
"""
"""A webhook's receiver, and a hub that knows it."""

USER = "useradd --system sendense"
MIGRATE, TARGETS = "sendense migrate VM --to TARGET [--to TARGET]...", "--to m1.raw --to m2.raw"

STORIES: dict[str, Story] = {
    "README.md": Story(
        before={
            "sendense hub": "kill $hub; wait $hub; true",
            "sendense nodes drain": "true",
            "sendense copy": DISK,
            "sendense --hub": "sendense token create --role operator > ~/token && chmod 600 ~/token && "
            "export SENDENSE_TOKEN_FILE=~/token && sendense nodes resume sna2",
        },
        instead={
            "sendense migrate": "sendense migrate web01 --to a.qcow2 --to b.qcow2",
            "sendense node ": "env SENDENSE_CONFIG=/etc/sendense/node.toml sendense node --site oslo --name sna2",
        },
        stays={"sendense hub": "is ready", "sendense node ": "is ready", "sendense serve": "nbd+unix"},
    ),
    "docs/copy.md": Story(room="bare", before={"sendense copy SOURCE": DISK}),
    "docs/operating.md": Story(
        room="node",
        before={
            "sendense jobs --last": "sendense backup web01",
            "sendense jobs show": f"{SLOW} && sendense jobs cancel $(latest-job)",
            "sendense jobs resume": "sendense lab set --vm db01 read-rate=0",
        },
    ),
    "docs/backup.md": Story(
        before={
            "sendense points": "sendense backup web01",
            "sendense jobs cancel": SLOW,
            "sendense jobs pause": SLOW,
            "sendense jobs resume": "sendense lab set --vm db01 read-rate=0",
            "sendense verify": "kill $stays; wait $stays; true",
            "export SENDENSE_TOKEN_FILE": "sendense backup web01 && mkdir -p ~/.config/sendense && "
            "sendense token create --role operator > ~/.config/sendense/token && chmod 600 ~/.config/sendense/token",
        },
        instead={
            MIGRATE: f"sendense migrate web01 {TARGETS}",
            f"{MIGRATE} --sync": f"sendense migrate web01 {TARGETS} --sync",
            f"{MIGRATE} --cutover": f"sendense migrate web01 {TARGETS} --cutover",
            "sendense restore": "sendense restore web01@latest $(mktemp -d)",
        },
        stays={"sendense serve": "nbd+unix"},
    ),
    "docs/first-backup.md": Story(
        room="bare",
        before={
            "unset SENDENSE_CONFIG": "mkdir -p ~/.config/sendense /etc/sendense && cp sendense-lab/sendense.toml "
            "~/.config/sendense/ && touch site.toml",
        },
        instead={
            "export PATH": "true",
            "sendense lab up": "sendense lab up --disk-size 128M --fill 24M",
            "sendense lab set --vm db01 read-rate=15M": "sendense lab set --vm db01 read-rate=2M",
            "timeout": "timeout -s KILL 4 sendense backup db01",
        },
        stays={"sendense lab up": "SENDENSE_CONFIG"},
        ends={"timeout": 137},
    ),
    "docs/deploying.md": Story(
        before={
            "install -m 600": "touch sendense.toml webhook.secret smtp.password",
            "useradd": "userdel sendense-tunnel",
            "(umask": "useradd --system --home-dir /var/lib/sendense-tunnel sendense-tunnel && mkdir -p "
            "/var/lib/sendense-tunnel/.ssh /etc/ssh/sshd_config.d && cp /opt/sendense/deploy/tunnel/sshd.conf "
            "/etc/ssh/sshd_config.d/sendense-tunnel.conf && touch /etc/ssh/ssh_host_ed25519_key",
            "printf": "mkdir -p /etc/redis && cp /var/lib/sendense/redis.password /etc/sendense/",
            "install -d": f"{USER}; id sendense",
            "tar": "kill $hub; wait $hub; rm -rf /var/lib/sendense/*",
        },
    ),
    "docs/lab.md": Story(room="bare", stays={"sendense lab up": "SENDENSE_CONFIG"}),
    "docs/api.md": Story(
        instead={"sendense token revoke": "sendense token revoke nightly"},
    ),
    "docs/nodes.md": Story(room="node", before={"sendense nodes drain": "true"}),
    "docs/notices.md": Story(before={"sendense config check": RECEIVER}),
    "docs/tunnel.md": Story(
        before={
            "install -m 644 deploy/tunnel/sshd.conf": "mkdir -p /etc/ssh/sshd_config.d",
            "chown": f"{USER}; true",
            "sendense pki init": "rm -rf /etc/sendense/pki",
        },
        instead={
            "sendense doctor nbd:": "sendense doctor nbd://127.0.0.1:10809 | grep no-such-export",
            "sendense doctor 'nbds": "sendense doctor 'nbd://127.0.0.1:10809/' | grep no-such-export",
        },
    ),
    "docs/troubleshooting.md": Story(
        before={"sendense doctor nbd": DISK, "sendense jobs": "sendense backup web01"},
        ends={"sendense doctor --node": 1},  # it is typed at the hub
    ),
}
"""Of pages for which it is not enough to type their lines where a hub runs."""


def way_of(line: Line) -> str | None:
    """How a line is held: "typed" in a room, "elsewhere", "untyped", or "shown"; None where no rule covers it."""
    if (line.page, uncommented(line.text)) in BY_CI | NOWHERE:
        return "untyped"
    if any(re.match(pattern, line.text) for pattern, _ in UNTYPED):
        return "elsewhere"
    if re.match(TYPED, line.text):
        return "typed"
    return "shown" if any(re.match(pattern, line.text) for pattern in SHOWN) else None


def typed(page: Page) -> list[Line]:
    """What is to be typed in a room."""
    return [line for line in page.lines() if way_of(line) == "typed"]


LATEST_JOB = """
mkdir -p /usr/local/bin
cat > /usr/local/bin/latest-job <<'END'
#!/bin/sh
sendense jobs --last 1 --json | python3 -c "import json, sys; print(json.load(sys.stdin)[0]['id'])"
END
chmod 755 /usr/local/bin/latest-job
"""

SITE = "sendense lab up --vms 3 --disks 2 --disk-size 32M --fill 12M"

SETTINGS = """
mkdir -p /etc/sendense /srv/backup
lab=$PWD/sendense-lab/sendense.toml
cat > /etc/sendense/sendense.toml <<END
state_dir = "/var/lib/sendense"
repository = "/srv/backup"
redis_listen = "127.0.0.1:6379"
exports_listen = "127.0.0.1:10809"
END
sed -n '/^.sites.lab/,$p' $lab | sed 's/sites.lab/sites.oslo/' > site.toml
{ cat > /etc/sendense/node.toml <<END
state_dir = "/var/lib/sendense-node"
redis = "redis://127.0.0.1:6379"
redis_password_file = "/var/lib/sendense/redis.password"
exports = "nbd://127.0.0.1:10809"
END
cat site.toml >> /etc/sendense/node.toml; }
"""


def furnish(room: Room, kind: str) -> None:
    """
    What a reader has when a page begins.

    bare: nothing; hub: a simulated site, settings that name it, and a hub that runs; node: a hub that knows no site,
    and a node of the site called sna2.
    """
    must(room, LATEST_JOB)
    if kind == "bare":
        return
    room.start(SITE, "SENDENSE_CONFIG")
    must(room, SETTINGS)
    if kind != "node":
        must(room, "cat site.toml >> /etc/sendense/sendense.toml")
    room.start("sendense hub", "is ready")
    must(room, "hub=$stays")
    if kind == "node":
        room.start("env SENDENSE_CONFIG=/etc/sendense/node.toml sendense node --site oslo --name sna2", "is ready")


def must(room: Room, command: str) -> str:
    """Type what has to succeed; what it printed."""
    status, said = room.run(command)
    assert status == 0, f"{command}\n  ended with {status}: {said}"
    return said


def spoken(text: str) -> str:
    """A line as a reader types it: without what is optional, the first where there is a choice, stand-ins filled in."""
    text = uncommented(text)
    while (shorter := re.sub(r" \[[^\[\]]*\](\.\.\.)?", "", text)) != text:
        text = shorter
    for pattern, value in STAND_INS:
        text = re.sub(pattern, value, text)
    return re.sub(r"(?<=\w)\|[\w|-]+|(?<=\w)\.\.\.", "", text).strip()


def of(table: dict[str, Any], line: Line, default: Any) -> Any:
    """The entry with the longest beginning of the line."""
    keys = sorted((key for key in table if line.text.startswith(key)), key=len)
    return table[keys[-1]] if keys else default
