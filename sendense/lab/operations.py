"""What the methods of vCenter's objects do here."""

import hmac
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sendense.lab import search
from sendense.lab.faults import fault, invalid_argument, not_found, wrong_power_state
from sendense.lab.inventory import Inventory, service_content
from sendense.lab.properties import Filter, PropertyReader
from sendense.lab.records import Snapshot, Vm
from sendense.lab.sessions import Session, Sessions
from sendense.lab.site import Site
from sendense.lab.soap import Call
from sendense.lab.vim_tasks import VimTasks
from sendense.lab.vmomi import vim, vmodl

USER = "operator@lab.local"

DROP = "drop"
"""In place of a fault's name: the connection ends without an answer."""


class ConnectionDropped(Exception):
    """The call is not answered at all."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose call it is: the cookie, the session that it stands for, and the failure that was ordered for this call."""

    cookie: str
    session: Session
    failure: Exception | None


Method = Callable[[Caller, Any, dict[str, Any]], Any]


class Operations:
    """Answers calls. A method raises a fault, or returns what the API says that it returns."""

    def __init__(self, site: Site, sessions: Sessions, password: str) -> None:
        self._site, self._sessions, self._password = site, sessions, password
        self._tasks = VimTasks(site)
        self._inventory = Inventory(site, self._tasks)
        self._reader = PropertyReader(site, self._inventory)
        self._methods = self._table()
        self.calls: Counter[str] = Counter()
        """How often each method was called since the start."""

    def answer(self, call: Call, cookie: str) -> tuple[Any, Any]:
        """The result of a call, and the type that it is sent as."""
        session = self._sessions.find(cookie, self._site.state.knobs.session_seconds)
        with self._site.changed:
            self.calls[call.method] += 1
        failure = self._next_failure(call.method)
        if call.method == "Fetch":
            return self._fetch(call, session, failure)
        is_public = call.method in ("RetrieveServiceContent", "Login")
        if session is None and not is_public:
            raise _not_authenticated(call.target, call.info.privId)
        if failure and not call.info.isTask:
            raise failure
        if session is None or is_public:
            content = self._login(cookie, call.arguments) if call.method == "Login" else service_content()
            return content, call.info.result
        method = self._methods.get(call.method)
        if method is None:
            raise fault("NotSupported", f"{call.method} is not part of this simulation.")
        return method(Caller(cookie, session, failure), call.target, call.arguments), call.info.result

    def _table(self) -> dict[str, Method]:
        return {
            "Logout": lambda caller, this, a: self._sessions.logout(caller.cookie),
            "SessionIsActive": self._session_is_active,
            "CurrentTime": lambda caller, this, a: datetime.now(UTC),
            "CreateContainerView": self._container_view,
            "CreateListView": lambda caller, this, a: self._add_view(caller, vim.view.ListView, a["obj"]),
            "DestroyView": self._destroy_view,
            "FindByInventoryPath": lambda caller, this, a: search.by_path(self._walkable(caller), a["inventoryPath"]),
            "FindByUuid": lambda caller, this, a: next(iter(self._by_uuid(a)), None),
            "FindAllByUuid": lambda caller, this, a: self._by_uuid(a),
            "FindChild": lambda caller, this, a: search.child(self._walkable(caller), a["entity"], a["name"]),
            "RetrieveProperties": self._retrieve_old,
            "RetrievePropertiesEx": self._retrieve,
            "ContinueRetrievePropertiesEx": lambda caller, this, a: self._reader.more(caller.session, a["token"]),
            "CancelRetrievePropertiesEx": lambda caller, this, a: caller.session.pages.pop(a["token"], None) and None,
            "CreateFilter": self._create_filter,
            "DestroyPropertyFilter": self._destroy_filter,
            "WaitForUpdatesEx": self._wait,
            "WaitForUpdates": lambda caller, this, a: self._reader.wait(caller.session, a.get("version") or "", None),
            "CheckForUpdates": lambda caller, this, a: self._reader.wait(caller.session, a.get("version") or "", 0.0),
            "CancelWaitForUpdates": lambda caller, this, a: None,
            "CancelTask": self._cancel_task,
            "ReconfigVM_Task": self._reconfigure,
            "CreateSnapshot_Task": self._create_snapshot,
            "CreateSnapshotEx_Task": self._create_snapshot,
            "RemoveSnapshot_Task": self._remove_snapshot,
            "RemoveAllSnapshots_Task": self._remove_all_snapshots,
            "ConsolidateVMDisks_Task": self._consolidate,
            "RevertToSnapshot_Task": self._revert,
            "PowerOnVM_Task": lambda caller, this, a: self._power(caller, this, "PowerOnVM_Task", True),
            "PowerOffVM_Task": lambda caller, this, a: self._power(caller, this, "PowerOffVM_Task", False),
            "ShutdownGuest": self._shut_down,
            "QueryChangedDiskAreas": self._changed_areas,
        }

    def _next_failure(self, method: str) -> Exception | None:
        """The failure that was ordered for the next call of this method, used up."""
        name = method.removesuffix("_Task").removesuffix("Ex")
        with self._site.changed:
            waiting = self._site.state.fail_next.get(name)
            if not waiting:
                return None
            kind = waiting.pop(0)
            self._site.save()
        if kind == DROP:
            raise ConnectionDropped
        return fault(kind, f"{kind}: ordered for this call.")

    # Sessions

    def check_login(self, user: str, password: str) -> bool:
        """Whether user and password are right."""
        right = hmac.compare_digest(password.encode(), self._password.encode())
        return right and hmac.compare_digest(user.lower().encode(), USER.encode())

    def _login(self, cookie: str, arguments: dict[str, Any]) -> Any:
        if not self.check_login(arguments["userName"], arguments["password"]):
            raise fault("InvalidLogin", "Cannot complete login due to an incorrect user name or password.")
        self._sessions.login(cookie, USER)
        return self._user_session(self._sessions.find(cookie, self._site.state.knobs.session_seconds))

    def _user_session(self, session: Session | None) -> Any:
        if session is None:
            return None
        return vim.UserSession(
            key=session.key,
            userName=session.user,
            fullName=session.user,
            loginTime=session.login_time,
            lastActiveTime=session.last_active,
            locale="en",
            messageLocale="en",
        )

    def _session_is_active(self, caller: Caller, this: Any, arguments: dict[str, Any]) -> bool:
        keys = [session.key for session in self._sessions.all() if session.user == arguments["userName"]]
        return arguments["sessionID"] in keys

    # Properties

    def _fetch(self, call: Call, session: Session | None, failure: Exception | None) -> tuple[Any, Any]:
        this, name = call.target, call.arguments["prop"]
        try:
            kind = type(this)._GetPropertyInfo(name).type
        except AttributeError:
            raise vmodl.query.InvalidProperty(name=name, msg=f"The property {name} is not known.") from None
        if this._wsdlName == "SessionManager" and name == "currentSession":
            return self._user_session(session), kind
        if this._wsdlName == "ServiceInstance" and name == "content":
            return service_content(), kind
        if session is None:
            raise _not_authenticated(this, "System.View")
        if failure:
            raise failure
        if this._wsdlName == "SessionManager" and name == "sessionList":
            return [self._user_session(other) for other in self._sessions.all()], kind
        if this._wsdlName == "ServiceInstance" and name == "serverClock":
            return datetime.now(UTC), kind
        return self._reader.read(session, this, name), kind

    def _retrieve(self, caller: Caller, this: Any, arguments: dict[str, Any]) -> Any:
        return self._reader.retrieve(caller.session, arguments["specSet"], arguments["options"].maxObjects)

    def _retrieve_old(self, caller: Caller, this: Any, arguments: dict[str, Any]) -> Any:
        found = self._reader.retrieve(caller.session, arguments["specSet"], None)
        return found.objects if found else []

    def _create_filter(self, caller: Caller, this: Any, arguments: dict[str, Any]) -> Any:
        self._reader.select(caller.session, arguments["spec"])
        key = self._site.new_id("session-filter")
        caller.session.filters[key] = Filter(arguments["spec"])
        return vmodl.query.PropertyCollector.Filter(key)

    def _destroy_filter(self, caller: Caller, this: Any, arguments: dict[str, Any]) -> None:
        if caller.session.filters.pop(this._moId, None) is None:
            raise not_found(this)

    def _wait(self, caller: Caller, this: Any, arguments: dict[str, Any]) -> Any:
        options = arguments.get("options")
        seconds = options.maxWaitSeconds if options else None
        return self._reader.wait(caller.session, arguments.get("version") or "", seconds)

    # Views and search

    def _container_view(self, caller: Caller, this: Any, arguments: dict[str, Any]) -> Any:
        container = arguments["container"]
        if self._inventory.find(container) is None:
            raise not_found(container)
        wanted = tuple(arguments["type"]) or (vim.ManagedEntity,)
        inside = search.below(self._walkable(caller), container, recursive=arguments["recursive"])
        return self._add_view(caller, vim.view.ContainerView, (ref for ref in inside if isinstance(ref, wanted)))

    def _add_view(self, caller: Caller, kind: Any, objects: Iterable[Any]) -> Any:
        key = f"session[{caller.session.key}]{self._site.new_id('view')}"
        caller.session.views[key] = list(objects)
        return kind(key)

    def _destroy_view(self, caller: Caller, this: Any, arguments: dict[str, Any]) -> None:
        if caller.session.views.pop(this._moId, None) is None:
            raise not_found(this)

    def _walkable(self, caller: Caller) -> search.Read:
        return lambda ref, name: self._reader.read(caller.session, ref, name)

    def _by_uuid(self, arguments: dict[str, Any]) -> list[Any]:
        if not arguments["vmSearch"]:
            return []
        field = "instance_uuid" if arguments.get("instanceUuid") else "uuid"
        wanted = arguments["uuid"].lower()
        return [vim.VirtualMachine(vm.id) for vm in self._site.state.vms if getattr(vm, field) == wanted]

    # Virtual machines

    def _vm_task(self, caller: Caller, vm: Vm, method: str, work: Callable[[], Any]) -> Any:
        knobs = self._site.knobs(vm)
        seconds = knobs.snapshot_seconds if method.startswith("CreateSnapshot") else knobs.task_seconds
        return self._tasks.start(vm, method, seconds, work, caller.failure)

    def _cancel_task(self, caller: Caller, this: Any, arguments: dict[str, Any]) -> None:
        task = self._tasks.find(this._moId)
        if task is None:
            raise not_found(this)
        if not task.is_open:
            raise fault("InvalidState", "The task has ended.")
        task.cancelled.set()

    def _reconfigure(self, caller: Caller, this: Any, arguments: dict[str, Any]) -> Any:
        vm, wanted = self._site.vm(this._moId), arguments["spec"].changeTrackingEnabled

        def work() -> None:
            if wanted is not None:
                self._site.enable_tracking(vm, wanted)

        return self._vm_task(caller, vm, "ReconfigVM_Task", work)

    def _create_snapshot(self, caller: Caller, this: Any, arguments: dict[str, Any]) -> Any:
        vm = self._site.vm(this._moId)
        extended = "quiesceSpec" in arguments
        quiesce = bool(arguments["quiesceSpec"] if extended else arguments.get("quiesce"))
        method = "CreateSnapshotEx_Task" if extended else "CreateSnapshot_Task"
        if not arguments["name"] or len(arguments["name"]) > 255:
            raise fault("InvalidName", "The name of the snapshot is not valid.", name=arguments["name"])

        def work() -> Any:
            made = self._site.create_snapshot(vm, arguments["name"], arguments.get("description") or "", quiesce)
            return vim.vm.Snapshot(made.id)

        return self._vm_task(caller, vm, method, work)

    def _remove_snapshot(self, caller: Caller, this: Any, arguments: dict[str, Any]) -> Any:
        vm, snapshot = self._site.snapshot(this._moId)
        children = bool(arguments["removeChildren"])
        work: Callable[[], None] = lambda: self._site.remove_snapshot(vm, snapshot, children=children)  # noqa: E731
        return self._vm_task(caller, vm, "RemoveSnapshot_Task", work)

    def _remove_all_snapshots(self, caller: Caller, this: Any, arguments: dict[str, Any]) -> Any:
        vm = self._site.vm(this._moId)

        def work() -> None:
            for snapshot in list(vm.snapshots):
                self._site.remove_snapshot(vm, snapshot, children=False)

        return self._vm_task(caller, vm, "RemoveAllSnapshots_Task", work)

    def _consolidate(self, caller: Caller, this: Any, arguments: dict[str, Any]) -> Any:
        return self._vm_task(caller, self._site.vm(this._moId), "ConsolidateVMDisks_Task", lambda: None)

    def _revert(self, caller: Caller, this: Any, arguments: dict[str, Any]) -> Any:
        vm, snapshot = self._site.snapshot(this._moId)
        return self._vm_task(caller, vm, "RevertToSnapshot_Task", lambda: self._site.revert(vm, snapshot))

    def _power(self, caller: Caller, this: Any, method: str, on: bool) -> Any:
        vm = self._site.vm(this._moId)
        if vm.powered_on == on:
            raise wrong_power_state(vm.powered_on)
        return self._vm_task(caller, vm, method, lambda: self._site.set_power(vm, on))

    def _shut_down(self, caller: Caller, this: Any, arguments: dict[str, Any]) -> None:
        vm = self._site.vm(this._moId)
        if not vm.powered_on:
            raise wrong_power_state(vm.powered_on)
        if not vm.tools_running:
            raise fault("ToolsUnavailable", "Cannot complete operation because VMware Tools is not running.")

        def work() -> None:
            time.sleep(self._site.knobs(vm).shutdown_seconds)
            if vm.powered_on:
                self._site.set_power(vm, False)

        threading.Thread(target=work, daemon=True).start()

    def _changed_areas(self, caller: Caller, this: Any, arguments: dict[str, Any]) -> Any:
        vm, snapshot = self._site.vm(this._moId), self._asked_snapshot(this, arguments.get("snapshot"))
        start = arguments["startOffset"]
        length, areas = self._site.changed_areas(vm, snapshot, arguments["deviceKey"], start, arguments["changeId"])
        kind = vim.VirtualMachine.DiskChangeInfo
        extents = [kind.DiskChangeExtent(start=offset, length=size) for offset, size in areas]
        return kind(startOffset=start, length=length, changedArea=extents)

    def _asked_snapshot(self, this: Any, ref: Any) -> Snapshot | None:
        if ref is None:
            return None
        owner, snapshot = self._site.snapshot(ref._moId)
        if owner.id != this._moId:
            raise invalid_argument("snapshot")
        return snapshot


def _not_authenticated(this: Any, privilege: str | None) -> Exception:
    return fault(
        "NotAuthenticated", "The session is not authenticated.", object=this, privilegeId=privilege or "System.View"
    )
