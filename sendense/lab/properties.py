"""The PropertyCollector: which objects a filter selects, what they have to say, and what changed since."""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sendense.lab.faults import fault, invalid_argument, not_found
from sendense.lab.inventory import Inventory
from sendense.lab.sessions import Session
from sendense.lab.site import Site
from sendense.lab.vmomi import soap, support, vmodl

_PC = vmodl.query.PropertyCollector

_LONGEST_WAIT = 1800.0
"""vCenter waits for ever when the client names no limit; its own proxy cuts a connection after half an hour."""

_SELF = _PC("propertyCollector")


@dataclass(slots=True)
class Filter:
    """A filter and what was last told of the objects that it selects: their properties as text, by object."""

    spec: Any
    told: dict[Any, dict[str, str]] = field(default_factory=dict)


class PropertyReader:
    """Reads properties of the site's objects, and of a session's views."""

    def __init__(self, site: Site, inventory: Inventory) -> None:
        self._site, self._inventory = site, inventory

    def read(self, session: Session | None, ref: Any, path: str) -> Any:
        """A property by its path; None when it is not set. ManagedObjectNotFound and InvalidProperty as vCenter."""
        with self._site.changed:
            first, *rest = path.split(".")
            value = self._top(session, ref, first)
            for name in rest:
                if value is None:
                    return None
                if not isinstance(value, support.DataObject):
                    raise _invalid_property(path)
                try:
                    value._GetPropertyInfo(name)
                except AttributeError:
                    raise _invalid_property(path) from None
                value = getattr(value, name)
            return value

    def _top(self, session: Session | None, ref: Any, name: str) -> Any:
        if session is not None and ref._moId in session.views:
            return list(session.views[ref._moId]) if name == "view" else None
        properties = self._inventory.find(ref)
        if properties is None:
            raise not_found(ref)
        if name in properties:
            return properties[name]()
        try:
            type(ref)._GetPropertyInfo(name)
        except AttributeError:
            raise _invalid_property(name) from None
        return None

    # Selecting

    def select(self, session: Session, spec: Any) -> dict[Any, list[str]]:
        """The objects that a filter selects, each with the paths that are wanted of it."""
        selected: dict[Any, list[str]] = {}
        for start in spec.objectSet:
            if start.obj is None:
                raise invalid_argument("objectSet")
            for ref in self._walk(session, start):
                paths = [path for wanted in spec.propSet for path in self._paths(session, ref, wanted)]
                if paths or any(issubclass(type(ref), wanted.type) for wanted in spec.propSet):
                    selected.setdefault(ref, []).extend(path for path in paths if path not in selected.get(ref, ()))
        return selected

    def _paths(self, session: Session, ref: Any, wanted: Any) -> list[str]:
        if not issubclass(type(ref), wanted.type):
            return []
        if not wanted.all:
            return list(wanted.pathSet)
        properties = self._inventory.find(ref)
        return ["view"] if ref._moId in session.views else sorted(properties or {})

    def _walk(self, session: Session, start: Any) -> Iterator[Any]:
        if start.obj._moId not in session.views and self._inventory.find(start.obj) is None:
            raise not_found(start.obj)
        if not start.skip:
            yield start.obj
        named = {}
        stack = list(start.selectSet)
        while stack:
            if isinstance(select := stack.pop(), _PC.TraversalSpec):
                if select.name:
                    named[select.name] = select
                stack.extend(select.selectSet)
        yield from self._follow(session, start.obj, start.selectSet, named, set())

    def _follow(
        self, session: Session, ref: Any, selects: list[Any], named: dict[str, Any], seen: set[tuple[str, int]]
    ) -> Iterator[Any]:
        for select in selects:
            step = select if isinstance(select, _PC.TraversalSpec) else named.get(select.name)
            if step is None:
                raise invalid_argument("selectSet")
            if (ref._moId, id(step)) in seen or not issubclass(type(ref), step.type):
                continue
            seen.add((ref._moId, id(step)))
            found = self.read(session, ref, step.path)
            for child in found if isinstance(found, list) else [found] if found is not None else []:
                if not step.skip:
                    yield child
                yield from self._follow(session, child, step.selectSet, named, seen)

    def content(self, session: Session, ref: Any, paths: list[str]) -> Any:
        """An ObjectContent with those properties that are set."""
        values = [(path, self.read(session, ref, path)) for path in paths]
        properties = [
            vmodl.DynamicProperty(name=path, val=_typed(value)) for path, value in values if value is not None
        ]
        return _PC.ObjectContent(obj=ref, propSet=properties)

    # Retrieving

    def retrieve(self, session: Session, specs: list[Any], at_most: int | None) -> Any:
        """The first page of what the filters select, as a RetrieveResult; None when they select nothing."""
        with self._site.changed:
            found = [self.content(session, *item) for spec in specs for item in self.select(session, spec).items()]
        if not found:
            return None
        return _page(session, found, at_most or len(found))

    def more(self, session: Session, token: str) -> Any:
        """The next page."""
        if token not in session.pages:
            raise invalid_argument("token")
        rest = session.pages.pop(token)
        size = int(token.partition(":")[0])
        return _page(session, rest, size)

    # Waiting for changes

    def wait(self, session: Session, version: str, seconds: float | None, at_most: int | None = None) -> Any:
        """What changed since `version`; the whole for none. None when nothing did, for so long."""
        if version and version != str(session.version):
            raise vmodl.query.InvalidCollectorVersion(msg="The collector version is not valid.")
        if not version:
            for known in session.filters.values():
                known.told = {}
        deadline = time.monotonic() + min(_LONGEST_WAIT if seconds is None else seconds, _LONGEST_WAIT)
        with self._site.changed:
            while True:
                if session.ended:
                    raise fault(
                        "NotAuthenticated", "The session ended meanwhile.", object=_SELF, privilegeId="System.View"
                    )
                updates = [update for key in list(session.filters) if (update := self._news(session, key))]
                left = deadline - time.monotonic()
                if updates or left <= 0:
                    break
                self._site.changed.wait(left)
            if not updates:
                return None
            session.version += 1
            return _PC.UpdateSet(version=str(session.version), filterSet=updates, truncated=False)

    def _news(self, session: Session, key: str) -> Any:
        known = session.filters[key]
        told: dict[Any, dict[str, str]] = {}
        updates = []
        try:
            selected = self.select(session, known.spec)
        except vmodl.fault.ManagedObjectNotFound:
            selected = {}
        for ref, paths in selected.items():
            values = {path: self.read(session, ref, path) for path in paths}
            told[ref] = {path: _text(value) for path, value in values.items() if value is not None}
            before = known.told.get(ref)
            changes = [
                _PC.Change(name=path, op="assign", val=_typed(values[path]) if path in told[ref] else None)
                for path in paths
                if told[ref].get(path) != (before or {}).get(path)
            ]
            if before is None or changes:
                kind = "enter" if before is None else "modify"
                updates.append(_PC.ObjectUpdate(kind=kind, obj=ref, changeSet=changes))
        gone = [ref for ref in known.told if ref not in told]
        updates.extend(_PC.ObjectUpdate(kind="leave", obj=ref) for ref in gone)
        known.told = told
        return _PC.FilterUpdate(filter=_PC.Filter(key), objectSet=updates) if updates else None


def _page(session: Session, found: list[Any], size: int) -> Any:
    now, rest = found[:size], found[size:]
    token = None
    if rest:
        token = f"{size}:{secrets.token_hex(8)}"
        session.pages[token] = rest
    return _PC.RetrieveResult(token=token, objects=now)


def _typed(value: Any) -> Any:
    """A list says what it is a list of, to be sent as anyType; the plain ones here are of managed objects."""
    if isinstance(value, list) and not isinstance(value, support.Array):
        return support.ManagedObject.Array(value)
    return value


def _text(value: Any) -> str:
    return str(soap.SerializeToStr(_typed(value)))


def _invalid_property(name: str) -> Exception:
    made: Exception = vmodl.query.InvalidProperty(name=name, msg=f"The property {name} is not known.")
    return made
