"""SOAP as vSphere speaks it: a call read from a request, and the answer or the fault written."""

from dataclasses import dataclass
from typing import Any
from xml.parsers import expat

from sendense.lab.vmomi import soap, support

_SOAP_NS = soap.XMLNS_SOAPENV + soap.NS_SEP

VERSIONS = ("8.0.3.0", "8.0.2.0", "8.0.1.0", "7.0.3.0", "7.0", "6.7", "6.5", "6.0", "5.5", "5.1", "5.0")
"""Of the API, the newest first."""

_OLDEST = "vim25/5.0"


class BadRequest(Exception):
    """A request that is no call of this API."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: on which object, of which method (`Fetch` reads a property), with which arguments by name."""

    target: Any
    method: str
    info: Any
    """The method's description; None for Fetch."""
    arguments: dict[str, Any]
    version: str


class _CallReader(soap.ExpatDeserializerNSHandlers):  # type: ignore[misc]  # pyVmomi bears no types
    """
    Reads `Envelope/Body/METHOD/(_this | PARAMETER)*`.

    pyVmomi's deserializer takes the parser over for each parameter, and gives it back behind the parameter's end.
    """

    def __init__(self, version: str) -> None:
        super().__init__()
        self._version = version
        self._in_body = False
        self._pending: tuple[str, Any] | None = None
        self.method = ""
        self.info: Any = None
        self.found: list[tuple[str, Any]] = []

    def read(self, body: bytes) -> None:
        parser = expat.ParserCreate(namespace_separator=soap.NS_SEP)
        parser.buffer_text = True
        self._parser = parser
        soap.SetHandlers(parser, soap.GetHandlers(self))
        parser.Parse(body, True)
        self._collect()

    def StartElementHandler(self, tag: str, attributes: dict[str, str]) -> None:
        self._collect()
        if self.method and self._in_body:
            self._begin_parameter(tag, attributes)
            return
        if tag == f"{_SOAP_NS}Body":
            self._in_body = True
        elif self._in_body:
            namespace, _, self.method = tag.rpartition(soap.NS_SEP)
            if self.method != "Fetch":
                self.info = support.GetWsdlMethod(namespace, self.method).info

    def EndElementHandler(self, tag: str) -> None:
        self._collect()
        if tag == f"{_SOAP_NS}Body":
            self._in_body = False

    def CharacterDataHandler(self, data: str) -> None:
        """Between the elements is nothing to read."""

    def _begin_parameter(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.rpartition(soap.NS_SEP)[2]
        reader = soap.SoapDeserializer(None, self._version)
        reader.Deserialize(self._parser, self._type(name), False, self.nsMap)
        self._pending = (name, reader)
        reader.StartElementHandler(tag, attributes)

    def _collect(self) -> None:
        if self._pending:
            name, reader = self._pending
            self.found.append((name, reader.GetResult()))
            self._pending = None

    def _type(self, name: str) -> Any:
        """Of a parameter; of one item where it takes several."""
        if name == "_this":
            return support.ManagedObject
        if self.info is None:
            return str
        for parameter in self.info.params:
            if parameter.name == name:
                return parameter.type.Item if issubclass(parameter.type, list) else parameter.type
        raise BadRequest(f"{self.method} has no parameter {name}")


def read_call(body: bytes, action: str) -> Call:
    """The call in a request; `action` is the SOAPAction header, which tells the version of the API."""
    version = support.versionMap.get(action.strip('"').removeprefix("urn:")) or support.versionMap[_OLDEST]
    reader = _CallReader(version)
    try:
        reader.read(body)
    except (expat.ExpatError, KeyError, TypeError, ValueError, AttributeError) as exc:
        raise BadRequest(f"cannot read the request: {exc!r}") from exc
    target = next((value for name, value in reader.found if name == "_this"), None)
    if target is None or not reader.method:
        raise BadRequest("the request calls no method of an object")
    arguments: dict[str, Any] = {}
    lists = {p.name for p in reader.info.params if issubclass(p.type, list)} if reader.info else set()
    arguments.update({name: [] for name in lists})
    for name, value in reader.found:
        if name in lists:
            arguments[name].append(value)
        elif name != "_this":
            arguments[name] = value
    return Call(target, reader.method, reader.info, arguments, version)


def write_answer(call: Call, value: Any, kind: Any) -> bytes:
    """The response with a value of this type; None is an empty response."""
    content = ""
    if value is not None and not (isinstance(value, list) and not value):
        value = kind(value) if isinstance(value, list) else value
        info = support.Object(name="returnval", type=kind, version=call.version, flags=support.F_OPTIONAL)
        content = soap.SerializeToStr(value, info, call.version, _namespaces(call.version))
    name = f"{call.method}Response"
    return _envelope(f'<{name} xmlns="{support.GetWsdlNamespace(call.version)}">{content}</{name}>')


def write_fault(exc: Any, version: str = "") -> bytes:
    """The response with a fault."""
    version = version or support.versionMap[_OLDEST]
    name = support.GetWsdlName(support.GetCompatibleType(type(exc), version))
    info = support.Object(name=f"{name}Fault", type=object, version=version, flags=0)
    message = soap.XmlEscape(exc.msg or name)
    exc.msg = None  # stands in faultstring
    detail = soap.SerializeFaultDetail(exc, info, version, _namespaces(version))
    # pyVmomi looks up the element's name, so it needs the namespace as well as the type does.
    detail = detail.replace(f"<{name}Fault", f'<{name}Fault xmlns="{support.GetWsdlNamespace(version)}"', 1)
    return _envelope(
        f"<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>{message}</faultstring>"
        f"<detail>{detail}</detail></soapenv:Fault>"
    )


def _namespaces(version: str) -> dict[str, str]:
    return {**soap.SOAP_NSMAP, support.GetWsdlNamespace(version): ""}


def _envelope(content: str) -> bytes:
    text = f"{soap.XML_HEADER}\n{soap.SOAP_START}{content}{soap.SOAP_END}"
    return text.encode()


def versions_document() -> bytes:
    """`vimServiceVersions.xml`: which versions of the API are spoken here."""
    older = "".join(f"<version>{version}</version>" for version in VERSIONS[1:])
    return (
        '<?xml version="1.0" encoding="UTF-8"?><namespaces version="1.0"><namespace><name>urn:vim25</name>'
        f"<version>{VERSIONS[0]}</version><priorVersions>{older}</priorVersions></namespace></namespaces>"
    ).encode()
