# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a mapped class is and how its fields are declared; see :mod:`.xmlmap` for the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Literal,
    NoReturn,
    TypeVar,
    dataclass_transform,
    overload,
)

from .xmltree import Location
from .xmlvalues import Bytes

if TYPE_CHECKING:
    from .xmltree import Node
    from .xmlvalues import Converter

T = TypeVar("T")
E = TypeVar("E", bound="Element")

#: Attribute name -> the values with which an element is ours; others of that name are unknown.
Only = Mapping[str, "frozenset[str] | set[str]"]

_KEY: Final = "sessionvirt.xmlmap"


@dataclass(frozen=True)
class Origin:
    """The node that an instance was read from. The node is never changed."""

    node: Node
    location: Location


@dataclass_transform(eq_default=True, frozen_default=True, kw_only_default=True)
def mapped(cls: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass with keyword arguments, its fields declared as below.

    The methods are :class:`Element`'s: generated ones would double the time to import the model.
    """
    return dataclass(init=False, repr=False, eq=False, match_args=False)(cls)


@mapped
class Element:
    """Base of every mapped class. Compared, hashed and printed by its declared fields.

    :param origin: where it was read; takes no part in comparisons.
    """

    origin: Origin | None = None

    def __init__(self, **values: Any) -> None:
        for field in dataclasses.fields(self):
            value = values.pop(field.name, field.default)
            if value is dataclasses.MISSING:
                raise TypeError(f"{type(self).__name__} needs {field.name}=")
            object.__setattr__(self, field.name, value)
        if values:
            raise TypeError(f"{type(self).__name__} has no {', '.join(values)}")

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field, _spec in declared(type(self)))

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self) or not isinstance(other, Element):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        said = [
            f"{field.name}={value!r}"
            for (field, _spec), value in zip(declared(type(self)), self._values(), strict=True)
            if value != field.default
        ]
        return f"{type(self).__name__}({', '.join(said)})"

    def __setattr__(self, name: str, _value: object) -> NoReturn:
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")

    @property
    def where(self) -> Location:
        """The place to name in a message."""
        if self.origin is None:
            return Location("", 0, f"<{type(self).__name__.lower()}>")
        return self.origin.location

    def at(self, path: str) -> Location:
        """The place of something below, on the line where it stands."""
        line = self.where.line
        node = self.origin.node if self.origin is not None else None
        for step in path.split("/"):
            node = node.find(step) if node is not None else None
            line = node.line if node is not None else line
        return self.where.below(path, line)


@dataclass(frozen=True)
class Spec:
    """One declaration; built by the functions below, read by this module and by tests.

    :param kind: how the value is laid out in the document.
    :param steps: element names down to the node.
    :param attribute: its attribute; None: its text, or the node itself.
    :param lenient: a value that cannot be read is unknown instead of wrong.
    :param always: written even where it is the default.
    """

    kind: Literal["scalar", "size", "flag", "child", "children", "kept"]
    path: str
    steps: tuple[str, ...]
    attribute: str | None = None
    converter: Converter[Any] | None = None
    element: type[Element] | None = None
    only: Only | None = None
    required: bool = False
    lenient: bool = False
    always: bool = False

    def selects(self, node: Node) -> bool:
        """Whether the node is one of those that the declaration means."""
        return all(node.attributes.get(key) in values for key, values in (self.only or {}).items())


def _declare(kind: Any, path: str, default: object, **rest: Any) -> Any:
    *steps, last = path.split("/")
    attribute = last[1:] if last.startswith("@") else None
    if attribute is None:
        steps.append(last)
    spec = Spec(kind, path, tuple(steps), attribute, **rest)
    if spec.required:
        return dataclasses.field(metadata={_KEY: spec})
    return dataclasses.field(default=default, metadata={_KEY: spec})


@overload
def attr(path: str, converter: Converter[T], *, lenient: bool = False) -> T | None: ...
@overload
def attr(path: str, converter: Converter[T], *, default: T, always: bool = False) -> T: ...
@overload
def attr(path: str, converter: Converter[T], *, required: Literal[True]) -> T: ...
def attr(
    path: str,
    converter: Converter[T],
    *,
    default: T | None = None,
    required: bool = False,
    lenient: bool = False,
    always: bool = False,
) -> T | None:
    """An attribute (``target/@dev``) or the text of an element (``title``).

    :param default: the value where the document is silent.
    :param required: a document that is silent is refused.
    :param lenient: a value outside the converter's range is unknown, not an error; for what changes
        nothing that a guest depends on.
    :param always: write it even where it is the default, because libvirt wants to see it.
    """
    words = {"required": required, "lenient": lenient, "always": always}
    result: T | None = _declare("scalar", path, default, converter=converter, **words)
    return result


def size(path: str) -> int | None:
    """An amount of memory in bytes: ``<memory unit='KiB'>1048576</memory>``."""
    result: int | None = _declare("size", path, None, converter=Bytes)
    return result


def flag(path: str) -> bool:
    """Whether an element is there at all."""
    result: bool = _declare("flag", path, default=False)
    return result


def child(path: str, element: type[E], *, only: Only | None = None) -> E | None:
    """One element as an instance of another mapped class."""
    result: E | None = _declare("child", path, None, element=element, only=only)
    return result


def children(path: str, element: type[E], *, only: Only | None = None) -> tuple[E, ...]:
    """Every element of that name, in document order."""
    result: tuple[E, ...] = _declare("children", path, (), element=element, only=only)
    return result


def kept(path: str) -> Any:
    """Something that describes and does nothing: given back, neither read nor reported."""
    return _declare("kept", path, None)


def declared(cls: type[Element]) -> tuple[tuple[dataclasses.Field[Any], Spec], ...]:
    """The declarations of a class, in order."""
    if cls not in _declared:
        fields = dataclasses.fields(cls)
        _declared[cls] = tuple((f, f.metadata[_KEY]) for f in fields if _KEY in f.metadata)
    return _declared[cls]


#: Worked out at the first use of a class, not at import.
_declared: Final[dict[type[Element], tuple[tuple[dataclasses.Field[Any], Spec], ...]]] = {}
