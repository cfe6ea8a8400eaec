"""Rules on the source itself: who may import whom, and how long a module may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LAYERS = (
    {"sendense"},  # the version; and it loads the client for whoever names that
    {"sendense.units", "sendense.lifeline", "sendense.beat", "sendense.wording"},
    {"sendense.errors"},
    {"sendense.models", "sendense.extents", "sendense.retry", "sendense.files", "sendense.addresses", "sendense.times"},
    {"sendense.receivers"},
    {
        "sendense.settings",
        "sendense.requests",
        "sendense.maps",
        "sendense.schedules",
        "sendense.throttles",
        "sendense.pki",
    },
    {"sendense.orders", "sendense.occurrences"},
    {"sendense.nbd", "sendense.vsphere"},
    {"sendense.repository", "sendense.exports"},
    {"sendense.jobs", "sendense.views"},
    {"sendense.notices"},
    {"sendense.supervise", "sendense.coordinator"},
    {"sendense.service"},
    {"sendense.local", "sendense.hub", "sendense.node", "sendense.lab", "sendense.api", "sendense.client"},
    {"sendense.diagnosis"},
    {"sendense.cli"},
    {"sendense.__main__"},
)
"""A module imports what is in its own package or in an earlier layer; parts of one layer know nothing of each other."""

ALLOWED = {
    "nbd": {"sendense.nbd"},
    "redis": {
        *("sendense.jobs.access", "sendense.jobs.ledger", "sendense.jobs.presence", "sendense.jobs.slots"),
        "sendense.jobs.throttle",
        *("sendense.jobs.tally", "sendense.jobs.clock"),
        *("sendense.coordinator.record", "sendense.coordinator.outbox"),
        "sendense.service.runs",
    },
    "pyVmomi": {"sendense.vsphere", "sendense.lab"},
    "qemu.qmp": {"sendense.exports"},
    "celery": {"sendense.jobs.broker", "workers"},
    "kombu": {"sendense.jobs.broker"},
    "billiard": set[str](),
    "flower": {"workers.flower"},
    "tornado": {"workers.flower"},
    "cryptography": {"sendense.pki", "sendense.lab.certificate"},
    "fastapi": {"sendense.api"},
    "starlette": {"sendense.api"},
    "uvicorn": {"sendense.api"},
    "limits": {"sendense.api"},
    "typer": {"sendense.cli"},
    "rich": {"sendense.cli"},
    "psutil": {"sendense.supervise"},
    "prometheus_client": {"sendense.service.metrics", "sendense.service.families", "sendense.api.metrics"},
    "pydantic_settings": {"sendense.settings"},
}
"""Libraries that only one place touches: the packages and modules that may import them."""

LONGEST = 500
"""Lines of a module: in other code bases, each larger module is where they hurt."""


def _sources() -> dict[str, Path]:
    """Every module of the product, by its name."""
    found = {}
    for path in sorted([*(ROOT / "sendense").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = _sources()


@cache
def _imports(module: str) -> frozenset[str]:
    """
    Names of the modules that a module imports anywhere in its text, also within functions.

    `from a import b` is a.b where that is a module of ours, otherwise a.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            assert node.module
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in SOURCES else node.module)
    return frozenset(found)


def _our_imports(module: str) -> Iterator[str]:
    return (name for name in _imports(module) if name in SOURCES)


def _within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _part(module: str) -> str:
    """The entry of LAYERS that a module belongs to."""
    if module == "sendense":
        return module
    return next((part for layer in LAYERS[1:] for part in layer if _within(module, part)), "")


def _layer(part: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


SENDENSE = [module for module in SOURCES if _within(module, "sendense")]


@pytest.mark.parametrize("module", SENDENSE)
def test_every_module_has_a_layer(module: str) -> None:
    """A new package has to say where it stands."""
    assert _part(module)


@pytest.mark.parametrize("module", SENDENSE)
def test_imports_point_one_way(module: str) -> None:
    """A module imports its own package and earlier layers, and nothing else of ours: `workers` least of all."""
    part = _part(module)
    for name in _our_imports(module):
        if (module, name) == ("sendense", "sendense.client"):
            continue
        assert not _within(name, "workers"), f"{module} imports {name}"
        assert _part(name) == part or _layer(_part(name)) < _layer(part), f"{module} imports {name}"


def test_no_cycles() -> None:
    """No module imports itself by a detour, not even within a package."""
    try:
        TopologicalSorter({module: set(_our_imports(module)) for module in SOURCES}).prepare()
    except CycleError as exc:
        raise AssertionError(f"cycle: {' <- '.join(exc.args[1])}") from exc


@pytest.mark.parametrize("library", ALLOWED)
def test_a_library_stays_in_its_place(library: str) -> None:
    """A library whose errors have to be translated, or that is slow to load, is imported in one place only."""
    places = {module for module in SOURCES if any(_within(name, library) for name in _imports(module))}
    strangers = {module for module in places if not any(_within(module, place) for place in ALLOWED[library])}
    unused = {place for place in ALLOWED[library] if not any(_within(module, place) for module in places)}
    assert (strangers, unused) == (set(), set())


@pytest.mark.parametrize(
    ("module", "libraries"),
    [("sendense.cli.main", {"pydantic", "httpx", "redis", "celery"}), ("sendense.hub.local", {"httpx", "fastapi"})],
)
def test_what_loads_slowly_is_loaded_late(module: str, libraries: set[str]) -> None:
    """A command waits only for what it needs: all load the first of these, those without --hub also the second."""
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert libraries.isdisjoint(loaded.stdout.split())


@pytest.mark.parametrize("module", SOURCES)
def test_modules_are_short(module: str) -> None:
    """A module has at most 500 lines."""
    assert len(SOURCES[module].read_text().splitlines()) <= LONGEST


def test_the_rules_see_something() -> None:
    """The source is where this test looks for it, and its imports are found."""
    assert {"sendense.nbd.connect", "sendense.jobs.ledger", "workers.tasks"} <= set(SOURCES)
    assert {"sendense.extents", "redis", "redis.retry"} <= _imports("sendense.jobs.ledger")
    assert "sendense.jobs.driver" in _imports("workers.tasks")
