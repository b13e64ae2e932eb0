"""A user can name every type: what a public signature mentions is exported by jido_nats."""

import inspect
import typing
from collections.abc import Iterator
from typing import Any, Final

import pytest

import jido_nats

CLASSES: Final = {name: thing for name in jido_nats.__all__ if inspect.isclass(thing := getattr(jido_nats, name))}
# Made by jido_nats only, so their constructors are not for users.
_NOT_CONSTRUCTED: Final = {
    "Client",
    "EventStream",
    "ManagerWatch",
    "Messages",
    "OutputStream",
    "Session",
    "SessionManager",
    "SessionWatch",
}
_FOR_OUR_TESTS: Final = {"failpoints"}
_SPECIAL: Final = {"__aenter__", "__anext__", "__aiter__", "__await__", "__call__"}


@pytest.mark.parametrize("name", CLASSES)
def test_every_type_in_a_public_signature_is_exported(name: str) -> None:
    exported = set(CLASSES.values())

    mentioned = {kind for hint in hints(name, CLASSES[name]) for kind in classes_in(hint)}

    assert {kind for kind in mentioned if kind.__module__.startswith("jido_nats.")} <= exported


def test_the_list_of_exports_is_sorted() -> None:
    assert jido_nats.__all__ == sorted(set(jido_nats.__all__))


def hints(name: str, kind: type) -> Iterator[Any]:
    """The types of its public attributes, properties and methods, and of its constructor if users call it."""
    yield from (hint for field, hint in typing.get_type_hints(kind).items() if is_public(name, field))
    for member, found in inspect.getmembers_static(kind):
        if not is_public(name, member):
            continue
        for function in functions_of(found):
            if function.__module__.startswith("jido_nats."):
                yield from typing.get_type_hints(function, localns=CLASSES).values()  # `Worker` names `Session`


def functions_of(member: Any) -> list[Any]:
    """The function behind a property, a class method or a method, and its overloads."""
    function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    return [function, *typing.get_overloads(function)] if inspect.isfunction(function) else []


def is_public(name: str, member: str) -> bool:
    if member.startswith("_"):
        return member in _SPECIAL or (member == "__init__" and name not in _NOT_CONSTRUCTED)
    return member not in _FOR_OUR_TESTS


def classes_in(hint: Any) -> Iterator[type]:
    """The classes that a type mentions."""
    if isinstance(hint, typing.TypeVar):
        yield from classes_in(hint.__bound__)
        return
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    for part in parts:
        yield from [kind for one in (part if isinstance(part, list) else [part]) for kind in classes_in(one)]
    if inspect.isclass(found := origin or hint):
        yield found
