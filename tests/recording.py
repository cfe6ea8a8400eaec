"""
Records a real run of the demo as a picture: an SVG that plays once, at the times that the lines came, and then stands.

    deploy/record
"""

import re
import subprocess
import sys
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path

DEMO = Path(__file__).parents[1] / "deploy" / "demo"

DEMO_SECONDS = 300.0
"""The longest that a run may take; it takes half a minute."""

SPEED = 3.0
"""How many times faster than it was the picture plays."""

SECTIONS = "2345678"
"""Of the demo's steps, those that are shown; the others are set-up and lists."""

PASSING = re.compile(
    r"sendense: |(copy|prepare|read): |\(0\.\d s\)|  disk 2001: \d{8}T|"
    r"\$ (mkdir|qemu-img convert|e2fsck) |e2fsck |Pass \d|lab: "
)
"""What a terminal draws over while it goes on, what took no time, and what says the same as the lines beside it."""

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


def record() -> list[Said]:
    """Run the demo; what of it is shown."""
    with subprocess.Popen([DEMO], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout
        said: list[Said] = []
        section, began = "", time.monotonic()
        for line in demo.stdout:
            text = line.rstrip()
            if found := re.match(r"(\d)\. ", text):
                section = found[1]
            if time.monotonic() - began > DEMO_SECONDS:
                demo.terminate()
            shown = text.startswith("Done in") or (section in SECTIONS and not PASSING.match(text))
            if section and shown and not text.startswith("Your own next"):
                said.append(Said(text, time.monotonic()))
    if demo.returncode:
        raise SystemExit(f"{DEMO} ended with {demo.returncode}")
    while said and not said[0].text:
        said.pop(0)
    return [Said(each.text, each.at - said[0].at) for each in said]


def draw(said: list[Said]) -> str:
    """As SVG. Where nothing moves, all lines are to be seen at once."""
    width = round(max(len(each.text) for each in said) * WIDE) + 2 * EDGE
    height = len(said) * HIGH + BAR + EDGE
    parts = [HEAD.format(width=width, height=height, font=FONT, inner=width - 1, tall=height - 1)]
    for number, each in enumerate(said):
        style = next((style for pattern, style in STYLES if pattern.match(each.text)), "")
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
