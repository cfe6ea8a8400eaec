"""Properties of many managed objects in few round trips (vSphere Web Services SDK, "PropertyCollector")."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException
from typing import Any, NamedTuple

from pyVmomi import vim, vmodl

from sendense.vsphere.faults import moref_of
from sendense.vsphere.session import Session

PAGE_OBJECTS = 200
"""Objects in one answer: a VM's devices are some 20 KiB, and vCenter cuts answers itself where they get too large."""

GATHER_SECONDS = 600.0
"""For all pages of a site's inventory: 10 000 VMs are 50 pages, of seconds each."""

_collector: Any = vmodl.query.PropertyCollector


class Found(NamedTuple):
    """A managed object and those of its properties that it has and the user may see."""

    kind: type
    moref: str
    properties: dict[str, Any]


def gather(session: Session, what: str, wanted: Mapping[type, Sequence[str]]) -> list[Found]:
    """
    All objects of the wanted kinds in the site's inventory with the wanted properties.

    The view and the pages belong to one session: where that ends in between, all is read again.
    """

    def act() -> list[Found]:
        content = session.content
        view = content.viewManager.CreateContainerView(content.rootFolder, list(wanted), True)
        try:
            walk = _collector.TraversalSpec(name="view", type=vim.view.ContainerView, path="view", skip=False)
            start = _collector.ObjectSpec(obj=view, skip=True, selectSet=[walk])
            kinds = [_collector.PropertySpec(type=kind, pathSet=list(paths)) for kind, paths in wanted.items()]
            return list(_pages(session, _collector.FilterSpec(objectSet=[start], propSet=kinds)))
        finally:
            with suppress(vmodl.MethodFault, OSError, HTTPException):
                view.Destroy()  # it would go with the session

    return session.call(what, act, seconds=GATHER_SECONDS)


def read(session: Session, what: str, managed: Any, paths: Sequence[str]) -> dict[str, Any]:
    """Those of one object's properties that it has."""

    def act() -> list[Found]:
        kind = _collector.PropertySpec(type=type(managed), pathSet=list(paths))
        start = _collector.ObjectSpec(obj=managed, skip=False)
        return list(_pages(session, _collector.FilterSpec(objectSet=[start], propSet=[kind])))

    found = session.call(what, act)
    return found[0].properties if found else {}


def _pages(session: Session, wanted: Any) -> Iterator[Found]:
    collector = session.content.propertyCollector
    options = _collector.RetrieveOptions(maxObjects=PAGE_OBJECTS)
    page = collector.RetrievePropertiesEx([wanted], options)
    while page:
        for item in page.objects:
            yield Found(type(item.obj), moref_of(item.obj), {prop.name: prop.val for prop in item.propSet})
        page = collector.ContinueRetrievePropertiesEx(page.token) if page.token else None
