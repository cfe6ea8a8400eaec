"""Finding objects in the inventory's tree, whose edges are properties."""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

from sendense.lab.inventory import ROOT
from sendense.lab.vmomi import vim

Read = Callable[[Any, str], Any]
"""Reads a property of an object."""


def children(read: Read, ref: Any) -> list[Any]:
    """What stands right below an object in the tree of folders."""
    if isinstance(ref, vim.Folder):
        return list(read(ref, "childEntity"))
    if isinstance(ref, vim.Datacenter):
        return [read(ref, name) for name in ("vmFolder", "hostFolder", "datastoreFolder", "networkFolder")]
    if isinstance(ref, vim.ComputeResource):
        return [*read(ref, "host"), read(ref, "resourcePool")]
    return []


def below(read: Read, ref: Any, *, recursive: bool) -> Iterator[Any]:
    """All objects below one."""
    for found in children(read, ref):
        yield found
        if recursive:
            yield from below(read, found, recursive=True)


def child(read: Read, ref: Any, name: str) -> Any:
    """The object with this name right below another; None when there is none. VMware writes a slash as %2f."""
    return next((found for found in children(read, ref) if unquote(read(found, "name")) == unquote(name)), None)


def by_path(read: Read, path: str) -> Any:
    """The object at a path like `Lab/vm/production/web01`; None when there is none."""
    found = vim.Folder(ROOT)
    for name in path.strip("/").split("/"):
        found = child(read, found, name)
        if found is None:
            return None
    return found
