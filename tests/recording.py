"""
Records a real run of the demo as a picture: an SVG that plays once, at the times that the lines came, and then stands.

    deploy/record
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path

DEMO = Path(__file__).parents[1] / "deploy" / "demo"

DEMO_SECONDS = 300.0
"""The longest that a run may take; it takes half a minute."""

SPEED = 3.0
"""How many times faster than it was the picture plays."""

SECTIONS = "2345678"
"""Of the demo's steps, those that are shown; the others are set-up and lists."""

PASSING = re.compile(
    r"sendense: |(copy|prepare|read): |\(0\.\d s\)|\$ (qemu-img convert|e2fsck) |e2fsck |Pass \d|lab: |Your own next"
)
"""What a terminal draws over while it goes on, what took no time, and what is as long as all the rest."""

NOTE = (
    f"Played {SPEED:.0f} times as fast as it ran. Left out: steps 1 and 9, progress, times below a second,",
    "and a check of a restored disk's file system (e2fsck).",
)
"""What stands under the recording: nobody is to take it for all that the demo says."""

NUMBERS = (
    (r"\b\d{8}T\d{6}Z-\w{4}\b", "POINT"),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "UUID"),
    (r"\b\d+ [A-Z][a-z]{2} \d\d:\d\d\b", "TIME"),
    (r"/(guest|dir\d+)/\S+", "FILE"),
    (r"\d+(\.\d+)? ([KMGT]i)?B\b", "SIZE"),
    (r"\d+(\.\d+)?", "N"),
    (r" +", " "),
)
"""What differs from run to run."""

STYLES = (
    (re.compile(r"\$ "), "command"),
    (re.compile(r"\d\. |Done in"), "step"),
    (re.compile(r"\(\d+\.\d s\)"), "aside"),
    (re.compile(r"Images are identical|.*, verified$|.*: done"), "good"),
)

FONT, WIDE, HIGH, EDGE, BAR = 14, 8.43, 19, 18, 34
"""Pixels: the letters, a letter's width and height, the empty edge, the window's bar."""

HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">
<title>A recorded run of ./deploy/demo</title>
<style>
text {{ font: {font}px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #d3d7de; white-space: pre; }}
.step {{ fill: #ffffff; font-weight: bold; }}
.command {{ fill: #6cc7f6; }}
.aside {{ fill: #8b949e; }}
.good {{ fill: #7ee08a; }}
@keyframes come {{ from {{ visibility: hidden; }} to {{ visibility: hidden; }} }}
</style>
<rect x="0.5" y="0.5" width="{inner}" height="{tall}" rx="9" fill="#161b22" stroke="#4b535d"/>
<circle cx="20" cy="17" r="6" fill="#f0655a"/>
<circle cx="40" cy="17" r="6" fill="#f3bd4e"/>
<circle cx="60" cy="17" r="6" fill="#5fc454"/>
"""


@dataclass(frozen=True, slots=True)
class Said:
    """A line, and how many seconds after the first one that is shown it came."""

    text: str
    at: float


def shown(lines: Iterable[str]) -> Iterator[str]:
    """Of what the demo says, the lines that are in the picture, each as soon as it is there."""
    section = ""
    for line in lines:
        text = line.rstrip()
        if found := re.match(r"(\d)\. ", text):
            section = found[1]
        if text.startswith("Done in") or (section and section in SECTIONS and not PASSING.match(text)):
            yield text


def record() -> list[Said]:
    """Run the demo; what of it is shown."""
    command = ["timeout", str(DEMO_SECONDS), str(DEMO)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout
        said = [Said(text, time.monotonic()) for text in shown(demo.stdout)]
    if demo.returncode:
        raise SystemExit(f"{DEMO} ended with {demo.returncode}")
    return [Said(each.text, each.at - said[0].at) for each in said]


def words_of(lines: Iterable[str]) -> list[str]:
    """What does not differ from run to run: lines without their numbers, and without those that are nothing else."""
    found = []
    for line in lines:
        text = line.strip()
        for pattern, word in NUMBERS:
            text = re.sub(pattern, word, text)
        if text and text != "(N s)":
            found.append(text)
    return found


def lines_of(picture: str) -> list[str]:
    """The recorded lines of a picture."""
    return [unescape(text) for text in re.findall(r"<text [^>]*>([^<]*)</text>", picture)][: -len(NOTE)]


def draw(said: list[Said]) -> str:
    """As SVG. Where nothing moves, all lines are to be seen at once."""
    lines = [*said, Said("", 0.0), *(Said(text, 0.0) for text in NOTE)]
    width = round(max(len(each.text) for each in lines) * WIDE) + 2 * EDGE
    height = len(lines) * HIGH + BAR + EDGE
    parts = [HEAD.format(width=width, height=height, font=FONT, inner=width - 1, tall=height - 1)]
    for number, each in enumerate(lines):
        style = next((style for pattern, style in STYLES if pattern.match(each.text)), "")
        style = "aside" if each.text in NOTE else style
        named = f' class="{style}"' if style else ""
        wait = f"animation: come {each.at / SPEED:.1f}s"
        row = BAR + (number + 1) * HIGH - 5
        if each.text:
            parts.append(f'<text x="{EDGE}" y="{row}"{named} style="{wait}">{escape(each.text)}</text>\n')
    return "".join([*parts, "</svg>\n"])


def main() -> None:
    """Write the picture to the path that is the only argument."""
    Path(sys.argv[1]).write_text(draw(record()))


if __name__ == "__main__":
    main()
