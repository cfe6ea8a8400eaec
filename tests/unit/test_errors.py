"""Errors that cross a process arrive as they were, and say what to do."""

import importlib
import inspect
import pickle
import pkgutil

import pytest

import sendense
from sendense import errors
from sendense.errors import EndpointError, InternalError, RequestError, SendenseError, StalledRequest

EXAMPLES: dict[object, object] = {
    str: "words with 'quotes', ümlauts and {braces}",
    int: 3 * 2**40 + 512,
    float: 31.5,
    Exception: ValueError("odd", 1),
}
"""A value for each type that constructors take."""

ABSTRACT = {SendenseError, EndpointError, RequestError, StalledRequest}


def _subclasses(base: type[SendenseError]) -> list[type[SendenseError]]:
    return [base, *(found for child in base.__subclasses__() for found in _subclasses(child))]


def _all_classes() -> list[type[SendenseError]]:
    for module in pkgutil.walk_packages(sendense.__path__, "sendense."):
        if not module.name.endswith(("__main__", "nbdkit_plugin")):  # which only nbdkit's own Python can import
            importlib.import_module(module.name)
    found = _subclasses(SendenseError)
    return [cls for cls in found if cls not in ABSTRACT and cls.__module__.startswith("sendense.")]


CLASSES = _all_classes()
ENDPOINT_CLASSES = [cls for cls in CLASSES if issubclass(cls, EndpointError)]


def example(cls: type[SendenseError], *, full: bool) -> SendenseError:
    """An instance made from values of the right types; without the optional ones unless `full`."""
    parameters = inspect.signature(cls).parameters.values()
    wanted = [parameter for parameter in parameters if full or parameter.default is parameter.empty]
    return cls(*(EXAMPLES[parameter.annotation] for parameter in wanted))


def _hint(error: SendenseError) -> str:
    return error.hint


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("cls", CLASSES)
def test_pickling(cls: type[SendenseError], full: bool) -> None:
    """A pickled error comes back as the same class, with the same words and the same hint."""
    error = example(cls, full=full)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert (str(again), _hint(again)) == (str(error), _hint(error))


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("cls", CLASSES)
def test_rebuilding_from_args(cls: type[SendenseError], full: bool) -> None:
    """Its args alone are enough to make the same error again, which is what Celery does."""
    error = example(cls, full=full)
    again = cls(*error.args)
    assert (str(again), _hint(again), again.args) == (str(error), _hint(error), error.args)


@pytest.mark.parametrize("cls", CLASSES)
def test_words(cls: type[SendenseError]) -> None:
    """Every error says something in one line, and is not just its arguments in brackets."""
    text = str(example(cls, full=True))
    assert text
    assert "\n" not in text
    assert not text.startswith("(")


@pytest.mark.parametrize("cls", ENDPOINT_CLASSES)
def test_endpoint_errors_have_a_verdict_and_a_hint(cls: type[EndpointError]) -> None:
    """Every way in which a server cannot be used has the doctor's word of its own, and a fix."""
    error = example(cls, full=True)
    assert isinstance(error, EndpointError)
    assert cls.verdict != EndpointError.verdict
    assert [other for other in ENDPOINT_CLASSES if getattr(other, "verdict", "") == cls.verdict] == [cls]
    assert error.hint.endswith((".", ")"))
    assert error.uri in str(error)
    assert error.detail in str(error)


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if issubclass(cls, RequestError)])
def test_request_errors_name_the_bytes(cls: type[RequestError]) -> None:
    """A request that failed names its server, its bytes and what to do."""
    error = example(cls, full=True)
    assert isinstance(error, RequestError)
    assert f"{error.uri} offset={error.offset} length={error.length}" in str(error)
    assert error.hint


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls.stalled])
def test_stalls_are_tried_again(cls: type[SendenseError]) -> None:
    """A server that stopped may go on: every stall is worth another attempt."""
    assert cls.retryable


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if issubclass(cls, StalledRequest)])
def test_stalls_take_a_diagnosis(cls: type[StalledRequest]) -> None:
    """The doctor's verdict is a part of what a stalled request says."""
    error = cls("nbd://host/disk", 4096, 512, 30.0, "no-greeting")
    assert "no reply in 30 s (no-greeting)" in str(error)
    assert "no-greeting" not in str(cls("nbd://host/disk", 4096, 512, 30.0))


def test_internal_error_names_its_cause() -> None:
    """A fault of our own says what it was, and how to report it."""
    error = InternalError(KeyError("batch"))
    assert str(error) == "internal error: KeyError: 'batch'"
    assert "--debug" in error.hint


def test_the_tree_is_complete() -> None:
    """The module's drawing of the tree has every class that is raised."""
    assert errors.__doc__
    assert [cls.__name__ for cls in CLASSES if cls.__name__ not in errors.__doc__] == []
