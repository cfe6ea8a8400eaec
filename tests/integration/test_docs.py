"""The documents: what they say to type is typed, what they show is loaded or sent, where they point something is."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sendense.settings import load_settings
from tests.commands import GENERAL, command_of, unknown_options
from tests.docs import ROOT, Line, Room, commands_elsewhere, open_room, pages, uncommented
from tests.stories import AS_USER, BY_CI, NOWHERE, STORIES, Story, furnish, must, of, spoken, typed, way_of

PAGES = {page.name: page for page in pages()}


TO_TYPE = [name for name, page in PAGES.items() if typed(page)]


@pytest.mark.parametrize("name", PAGES)
def test_every_line_has_a_rule(name: str) -> None:
    """A new kind of line in a document needs a rule here."""
    for line in PAGES[name].lines():
        assert way_of(line), f"{line}\n  no rule covers this: see UNTYPED, SHOWN and TYPED"


def test_what_no_room_can_type_is_typed_elsewhere() -> None:
    """Each such line is taken from its page by another test, and no test takes one that is not there."""
    lines = {(line.page, uncommented(line.text)): line for page in PAGES.values() for line in page.lines()}
    taken = commands_elsewhere()
    for key, line in lines.items():
        if way_of(line) == "elsewhere" or line.text.startswith(AS_USER):
            assert key in taken, f"{line}\n  no test types this: it takes command_in{key}"
    assert taken.keys() | BY_CI | NOWHERE <= lines.keys()
    make = subprocess.run(["make", "-n", "check"], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    ci = (ROOT / ".ci/run").read_text()
    assert "make check" in ci.splitlines()
    for _, command in BY_CI:
        assert f"./{command.removeprefix('./')}" in [*ci.splitlines(), *make.stdout.splitlines()], command


# The command's own words


def mentions() -> list[Line]:
    """All that documents say of the command: lines of blocks, and code in the text."""
    found = [line for page in PAGES.values() for line in typed(page)]
    found += [line for page in PAGES.values() for line in page.spans if re.match(r"sendense [a-z-]", line.text)]
    return [line for line in found if re.match(r"(\.venv/bin/)?sendense ", line.text)]


def test_every_option_exists() -> None:
    """Each command that a document names is there, with each option that is named with it."""
    for line in mentions():
        text = re.sub(r"\s#.*|&&.*|[|>].*(?<!\w\|)$|;.*", "", line.text) if " # " in line.text else line.text
        words = re.findall(r"--?[a-z][\w-]*|[^\s\[\]=|]+", text.split("sendense ", 1)[1])
        if words[:1] == ["--hub"]:
            words = words[2:]
        assert command_of(words) is not GENERAL, f"{line}\n  no such command"
        unknown = unknown_options(words)
        assert not unknown, f"{line}\n  no such option: {', '.join(sorted(unknown))}"


# Typed in rooms


@pytest.fixture
def room() -> Iterator[Room]:
    """A machine for one page."""
    with open_room() as room:
        yield room


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TO_TYPE)
def test_typed(room: Room, name: str) -> None:
    """Every command of a page, one after the other on one machine, does what the page says: it works."""
    story = STORIES.get(name, Story())
    furnish(room, story.room)
    done: set[str] = set()
    for line in typed(PAGES[name]):
        for key, text in story.before.items():
            if line.text.startswith(key) and key not in done:
                done.add(key)
                must(room, text)
        command = of(story.instead, line, "") or spoken(line.text)
        if words := of(story.stays, line, ""):
            room.start(command, words)
            continue
        status, said = room.run(command)
        assert status == of(story.ends, line, 0), f"{line}\n  typed: {command}\n  ended with {status}: {said}"
    unused = {key for key in story.before if key not in done}
    assert not unused, f"{name} has no line any more that begins with {unused}"


# Shown


def test_settings_that_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every TOML block is a settings file that loads; `…` stands for what a reader fills in."""
    thumbprint = ":".join(["AB"] * 20)
    blocks = [block for page in PAGES.values() for block in page.blocks if block.language == "toml"]
    assert blocks
    config = tmp_path / "sendense.toml"
    monkeypatch.setenv("SENDENSE_CONFIG", str(config))
    for block in blocks:
        config.write_text(re.sub(r'"[0-9A-F:]+:…"', f'"{thumbprint}"', block.text))
        try:
            load_settings()
        except Exception as exc:
            raise AssertionError(f"{block.page}:{block.line}: {exc}\n{block.text}") from exc


def test_programs_that_are_shown() -> None:
    """Every Python block can be read by Python; the example is the file that it names."""
    for page in PAGES.values():
        for block in page.blocks:
            if block.language == "python":
                body = block.text if not block.text.rstrip().endswith(":") else block.text + "    pass\n"
                compile(body, f"{block.page}:{block.line}", "exec")
    example = (ROOT / "examples" / "submit.py").read_text()
    assert any(block.text in example for block in PAGES["docs/programs.md"].blocks)


# Pointed at


@pytest.mark.parametrize("name", PAGES)
def test_links(name: str) -> None:
    """A link to a document, a file or a heading of this checkout has something behind it."""
    page = PAGES[name]
    for link in page.links:
        if re.match(r"\w+://|mailto:", link):
            continue
        path, _, fragment = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert target.exists(), f"{name}: {link} is not there"
        if fragment and target.suffix == ".md":
            assert fragment in PAGES[str(target.relative_to(ROOT))].anchors, f"{name}: {link}: no such heading"


def test_every_picture_is_shown() -> None:
    """What is in docs/images is in a document."""
    linked = {((ROOT / name).parent / link).resolve() for name, page in PAGES.items() for link in page.links}
    assert {path.name for path in (ROOT / "docs/images").iterdir() if path.resolve() not in linked} == set()


def test_tests_that_are_named() -> None:
    """A test that a document names as a proof is there."""
    named = re.compile(r"(tests/[\w/]+\.py)(?:::(\w+))?")
    for page in PAGES.values():
        for span in page.spans:
            for path, function in named.findall(span.text):
                assert (ROOT / path).is_file(), f"{span}: no such file"
                assert not function or f"def {function}(" in (ROOT / path).read_text(), f"{span}: no such test"


def test_sources_of_the_comparison() -> None:
    """Each number stands for a source, and each source for something that is said."""
    text, _, sources = (ROOT / "docs/comparison.md").read_text().partition("\n## Sources\n")
    cited = {int(number) for number in re.findall(r"\[\[(\d+)\]\]\(#sources\)", text)}
    listed = [int(number) for number in re.findall(r"^(\d+)\. .*\(https?://", sources, re.M)]
    assert listed == sorted(cited)


def test_every_page_is_in_the_index() -> None:
    """docs/README.md leads to each page of docs."""
    linked = {link.partition("#")[0] for link in PAGES["docs/README.md"].links}
    there = {Path(name).name for name in PAGES if name.startswith("docs/")} - {"README.md"}
    assert there - linked == set()


@pytest.mark.timeout(900)
def test_the_api_that_is_shown(room: Room) -> None:
    """docs/api.md's routes are those of a real hub; what it shows of its answers and its audit log has their fields."""
    furnish(room, "hub")
    must(room, "sendense token create --role operator --name nightly > token; chmod 600 token")
    must(room, "printf 'Authorization: Bearer %s\\n' \"$(cat token)\" > header")
    url = "http://127.0.0.1:7780/api/v1"
    answer = json.loads(must(room, f"curl -s -H @header {url}/vms/web1?site=oslo"))
    order = "-H 'Content-Type: application/json' -d '{\"vm\": \"web01\"}'"
    job = json.loads(must(room, f"curl -s -H @header {order} {url}/backups"))
    log = must(room, "grep begun /var/lib/sendense/audit.log | tail -1; tail -1 /var/lib/sendense/audit.log")
    audited = json.loads(log.splitlines()[-1])
    (program,) = (block.text for block in PAGES["README.md"].blocks if block.language == "python")
    (room.work / "program.py").write_text(
        "token = open('token').read().strip()\n" + program.replace("https://hub.example:7780", "http://127.0.0.1:7780")
    )
    assert re.search(r"^\d{8}T", must(room, f"sendense jobs watch {job['id']} && python program.py"), re.M)
    text = (ROOT / "docs/api.md").read_text()
    for start, real in (('{"type": "urn', answer), ('{"id":"b46742f52c3c","kind"', job), ('{"time": "2026', audited)):
        shown = text[text.index(start) :].partition("\n\n")[0].splitlines()
        keys = set(re.findall(r'(?<=[{ ,])"(\w+)": ?', "".join(shown[: 1 if start.startswith('{"id') else 3])))
        inner = set(re.findall(r'"(\w+)"', json.dumps(real)))
        assert keys <= inner, f"{start}: {keys - inner}"
    there = {
        (method.upper(), re.sub(r"\{\w+\}", "{}", path.removeprefix("/api/v1")))
        for path, methods in json.loads(must(room, "curl -s http://127.0.0.1:7780/openapi.json"))["paths"].items()
        for method in methods
    }
    listed = routes(text)
    assert listed - there == {("GET", "/openapi.json")}
    assert there - listed == set()


def routes(text: str) -> set[tuple[str, str]]:
    """Methods and paths of docs/api.md's tables; of a path that begins as the one before, only the end is there."""
    found = set()
    for cell in re.findall(r"^\| ((?:GET|POST|PUT|PATCH|DELETE) [^|]+?) \|", text, re.M):
        method, first = "", ""
        for own, path in re.findall(r"(?:(GET|POST|PUT|PATCH|DELETE) )?`(/[^`]+)`", cell):
            method = own or method
            if first and path.count("/") == 1 and not own:
                path = first.rpartition("/")[0] + path
            first = first or path
            found.add((method, re.sub(r"\{\w+\}", "{}", path)))
    return found
