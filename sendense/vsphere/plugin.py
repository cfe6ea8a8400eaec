"""nbdkit's plugin for a site's disks: whether it loads here, with its libraries, and which version it is."""

import os
import re
import subprocess

from sendense.errors import InputError
from sendense.settings import Site

LOAD_SECONDS = 20.0
"""For nbdkit to load a plugin and tell about it; VDDK's libraries are large."""

_LIBRARIES = ("script", "libdir")
"""The plugin's parameters without which it does not load."""


def describe(site: Site) -> str:
    """The plugin's name, its version and that of VDDK; InputError with nbdkit's complaint when it does not load."""
    options = [f"{key}={site.nbdkit_options[key]}" for key in _LIBRARIES if key in site.nbdkit_options]
    filters = [f"--filter={name}" for name in site.nbdkit_filters]
    command = ["nbdkit", *filters, "--dump-plugin", site.nbdkit_plugin, *options]
    hint = f"Set nbdkit_plugin and nbdkit_options; try: {' '.join(command)}"
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C"},
            errors="replace",
            timeout=LOAD_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as exc:
        raise InputError(f"{site.nbdkit_plugin}: did not load within {LOAD_SECONDS:.0f} s", hint) from exc
    except subprocess.CalledProcessError as exc:
        said = next(iter(exc.stderr.strip().splitlines()), "does not load")
        raise InputError(f"{site.nbdkit_plugin}: {said.removeprefix('nbdkit: error: ')}", hint) from exc
    except OSError as exc:
        raise InputError(f"nbdkit: {exc.strerror}", "Run 'sendense doctor' for what this machine needs.") from exc
    found = dict(re.findall(r"^(\w+)=(.*)$", done.stdout, re.MULTILINE))
    library = found.get("vddk_library_version", "")
    name = found.get("name", site.nbdkit_plugin)
    return f"{name} {found.get('version', '')}".strip() + (f", VDDK {library}" if library else "")
