"""The documents as data, and rooms in which what they say to type is typed: machines of their own for one page."""

import ast
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers import short_folder

ROOT = Path(__file__).parents[1]

COMMAND_SECONDS = 240.0
"""The longest that one command may take: twenty times what the longest does take."""

START_SECONDS = 180.0
"""The longest that a service may take to be ready; a hub takes three."""

QUICK = {
    "SENDENSE_TICK_SECONDS": "0.5",
    "SENDENSE_REQUEST_BYTES": str(256 * 1024),
    "SENDENSE_REQUESTS_IN_FLIGHT": "2",  # at the end of a slow disk's slowness, what is under way still takes its time
}
"""Settings with which a page takes less time to type."""

FENCE = re.compile(r"^(\s*)```(\w*)\s*$")
HEADING = re.compile(r"^#{1,6} (.+?)\s*$")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")
SPAN = re.compile(r"`([^`]+)`")


@dataclass(frozen=True, slots=True)
class Block:
    """A code block: its page, the number of its first line, its language ("" where it is only indented), its lines."""

    page: str
    line: int
    language: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """As a file."""
        return "\n".join(self.lines) + "\n"


@dataclass(frozen=True, slots=True)
class Line:
    """What a block has to be typed, or shows; lines that end in a backslash go on in the next."""

    page: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.number}: {self.text}"


@dataclass(frozen=True, slots=True)
class Page:
    """A document: `name` is its path in the checkout; the rest is what is in it."""

    name: str
    blocks: tuple[Block, ...]
    headings: tuple[str, ...]
    links: tuple[str, ...]
    spans: tuple[Line, ...]

    @property
    def anchors(self) -> set[str]:
        """The fragments that a link may name, as GitHub makes them of headings."""
        found: set[str] = set()
        for heading in self.headings:
            slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            count = 0
            while (name := f"{slug}-{count}" if count else slug) in found:
                count += 1
            found.add(name)
        return found

    def lines(self) -> list[Line]:
        """
        What blocks of no language, or of a shell's, have line by line.

        Where a block has lines with a prompt, these alone, and whatever else begins as a command of ours: the others
        show what is printed.
        """
        found = []
        for block in self.blocks:
            if block.language not in ("", "sh", "bash", "shell", "console"):
                continue
            prompted = any(line.startswith(("$ ", "# ")) and line[2:].strip() for line in block.lines)
            number = block.line - 1
            rest = iter(block.lines)
            for line in rest:
                number += 1
                first, text = number, line
                while text.endswith("\\"):
                    text = text[:-1] + next(rest)
                    number += 1
                if prompted and text.startswith(("$ ", "# ")):
                    text = text[2:]
                elif prompted and not text.startswith(("sendense ", "./deploy/")):
                    continue
                if text.strip():
                    found.append(Line(block.page, first, text))
        return found


def pages() -> list[Page]:
    """The README, the change log, and all of docs/."""
    paths = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [read_page(path) for path in paths]


def read_page(path: Path) -> Page:
    """A document's parts."""
    name = str(path.relative_to(ROOT))
    blocks: list[Block] = []
    headings, links, spans = [], [], []
    collected: list[str] = []
    begun, language, indent, fenced, before = 0, "", 0, False, ""

    def end() -> None:
        while collected and not collected[-1].strip():
            collected.pop()
        if collected:
            blocks.append(Block(name, begun, language, tuple(collected)))
        collected.clear()

    for number, line in enumerate(path.read_text().splitlines(), 1):
        fence = FENCE.match(line)
        if fenced:
            if fence:
                end()
                fenced = False
            else:
                collected.append(line[indent:])
        elif fence:
            end()
            fenced, indent, language, begun = True, len(fence[1]), fence[2], number + 1
        elif line.startswith("    ") and (collected or not before.strip()):
            if not collected:
                begun, language = number, ""
            collected.append(line[4:])
        elif collected and not line.strip():
            collected.append("")
        else:
            end()
            if heading := HEADING.match(line):
                headings.append(re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]))
            links += [one or other for one, other in LINK.findall(SPAN.sub("", line))]
            links += [found[1] for found in re.finditer(r"\[`[^`]*`\]\(([^)\s]+)\)", line)]
            spans += [Line(name, number, text) for text in SPAN.findall(line)]
        before = line
    end()
    return Page(name, tuple(blocks), tuple(headings), tuple(links), tuple(spans))


def command_in(page: str, command: str) -> str:
    """
    A command that a document has a reader type, for a test that types it elsewhere than in a room.

    Both arguments have to be strings as they are: what no room can type is looked for in the tests by these calls.
    """
    there = {uncommented(line.text) for line in read_page(ROOT / page).lines()}
    assert command in there, f"{page} has no line any more that says: {command}"
    return command


def commands_elsewhere() -> dict[tuple[str, str], Path]:
    """What tests take by command_in: pages and commands, and the test that types each."""
    found = {}
    for path in sorted((ROOT / "tests/integration").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == command_in.__name__:
                page, command = map(ast.literal_eval, node.args)
                found[page, command] = path
    return found


def uncommented(text: str) -> str:
    """A line without its comment."""
    return re.sub(r"\s+# .*", "", text)


class Room:
    """
    A machine of its own, as far as a page can tell: a network with a loopback alone, processes, and an /etc, /opt,
    /srv, /var/lib and /usr/local to write to. All of it is gone when the block ends; nothing of it reaches this
    machine.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self._count = 0
        (folder / "home").mkdir()
        self.work.mkdir()
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("SENDENSE_", "XDG_"))}
        path = f"{ROOT / '.venv/bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        variables |= {"HOME": str(folder / "home"), "PATH": path, "COLUMNS": "200", **QUICK}
        own = ["--mount", "--net", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        with (folder / "shell.log").open("wb") as log:
            self._shell = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", *user, *own, "bash", "-c", _PREPARE, "room", folder],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.work,
                env=variables,
                text=True,
            )
        status, said = self.run(f"ln -s {ROOT} /opt/sendense && touch /run/ready")
        assert status == 0, said + (folder / "shell.log").read_text()

    def run(self, command: str, seconds: float = COMMAND_SECONDS) -> tuple[int, str]:
        """Type a command, and wait for its end: its exit status, and what it printed."""
        self._count += 1
        script, said, done = (self.folder / f"{self._count}.{kind}" for kind in ("sh", "out", "status"))
        script.write_text(command + "\n")
        assert self._shell.stdin
        self._shell.stdin.write(f". {script} </dev/null >{said} 2>&1; echo $? >{done}.new; mv {done}.new {done}\n")
        self._shell.stdin.flush()
        deadline = time.monotonic() + seconds
        while not done.exists():
            assert self._shell.poll() is None, f"the shell ended at: {command}"
            assert time.monotonic() < deadline, f"not ended within {seconds:.0f} s: {command}\n{said.read_text()}"
            time.sleep(0.02)
        return int(done.read_text()), said.read_text(errors="replace")

    def start(self, command: str, words: str, seconds: float = START_SECONDS) -> str:
        """Start what stays, as `$stays`, and wait until it said these words; what it printed."""
        said = self.folder / f"{self._count + 1}.stays"
        said.touch()
        self.run(f"{{ exec {command.rstrip(' &')}\n}} >{said} 2>&1 & stays=$!")
        deadline = time.monotonic() + seconds
        while words not in (text := said.read_text(errors="replace")):
            assert self.run("kill -0 $stays")[0] == 0, f"{command} ended: {text}"
            assert time.monotonic() < deadline, f"{command} did not say {words!r} within {seconds:.0f} s: {text}"
            time.sleep(0.1)
        return text

    def close(self) -> None:
        """End all that runs in it."""
        self._shell.kill()
        self._shell.communicate(timeout=COMMAND_SECONDS)


_PREPARE = """
set -e
ip link set lo up
mkdir $1/over
mount -t tmpfs none $1/over
for place in /etc /usr/local; do
    mkdir -p $1/over/new$place $1/over/work$place
    mount -t overlay overlay -o lowerdir=$place,upperdir=$1/over/new$place,workdir=$1/over/work$place $place
done
for place in /opt /srv /run /var/lib; do mount -t tmpfs none $place; done
hostname room
set +e
while read -r line; do eval "$line"; done
"""


@contextmanager
def open_room() -> Iterator[Room]:
    """A machine that nobody else is on."""
    with short_folder() as folder:
        room = Room(folder)
        try:
            yield room
        finally:
            room.close()
