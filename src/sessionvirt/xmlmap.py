# SPDX-License-Identifier: LGPL-2.1-or-later
"""XML to frozen dataclasses and back, by one declaration a field.

::

    @mapped
    class Disk(Element):
        bus: Bus | None = attr("target/@bus", Choice(Bus))
        serial: str | None = attr("serial", Text)
        readonly: bool = flag("readonly")
        pci: PciPlace | None = child("address", PciPlace, only={"type": {"pci"}})

A path is element names from the class's own element down; ``@`` begins an attribute. What no
declaration names is *unknown*: listed with path and line, refused when asked for, and given back by
:func:`dump` where it stood. What is declared and wrong is always refused. ``dump`` writes a value
only where it differs from what the document says, so that ``<memory unit='GiB'>1</memory>`` stays.

An instance never changes and never validates more than its own fields; what fields mean together is
the model's business.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from .errors import DefinitionError
from .xmlfields import (
    Element,
    Origin,
    Spec,
    attr,
    child,
    children,
    declared,
    flag,
    kept,
    mapped,
    size,
)
from .xmltree import Comment, Location, Node, read, write

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "Element",
    "Parsed",
    "Unknown",
    "attr",
    "child",
    "children",
    "declared",
    "dump",
    "flag",
    "kept",
    "mapped",
    "parse",
    "size",
    "walk",
]

T = TypeVar("T")
E = TypeVar("E", bound=Element)

#: A message of a strict parse lists no more than this; real documents have a few dozen.
_MAX_LISTED: Final = 500


@dataclass(frozen=True)
class Unknown:
    """Something in a document that no declaration names.

    :param path: ``/domain/devices/disk[2]/iotune``, ``.../@attribute`` or ``.../text()``.
    :param line: of the element, from 1.
    """

    path: str
    line: int


@dataclass(frozen=True)
class Parsed(Generic[T]):
    """What :func:`parse` returns.

    :param unknown: in document order.
    """

    value: T
    unknown: tuple[Unknown, ...]


@dataclass
class _Shape:
    """What the declarations of one class say may stand in one element."""

    attributes: set[str] = dataclasses.field(default_factory=set)
    text: bool = False
    inside: dict[str, _Shape] = dataclasses.field(default_factory=dict)
    owner: Spec | None = None


def _shape(cls: type[Element]) -> _Shape:
    if cls in _shapes:
        return _shapes[cls]
    root = _shapes[cls] = _Shape()
    for _field, spec in declared(cls):
        here = root
        for step in spec.steps:
            here = here.inside.setdefault(step, _Shape())
        if spec.attribute is not None:
            here.attributes.add(spec.attribute)
        elif spec.kind in ("child", "children", "kept"):
            here.owner = spec
        elif spec.kind == "size":
            here.attributes.add("unit")
            here.text = True
        elif spec.kind == "scalar":
            here.text = True
    return root


#: Worked out at the first use of a class, not at import.
_shapes: Final[dict[type[Element], _Shape]] = {}


def parse(
    document: bytes | str, cls: type[E], root: str, *, file: str = "<xml>", strict: bool = False
) -> Parsed[E]:
    """Read a document.

    :param root: the tag its root element must have.
    :param file: what messages call the document.
    :param strict: refuse what is unknown.
    :raise DefinitionError: naming file, line and path.
    """
    node = read(document, file)
    where = Location(file, node.line, f"/{node.name}")
    if node.tag != root:
        where.refuse(f"this is not a <{root}>", f"The root element must be <{root}>.")
    unknown: list[Unknown] = []
    value = _load(cls, node, where, unknown)
    unknown.sort(key=lambda thing: thing.line)
    if unknown and strict:
        lines = [f"{file}:{thing.line}: {thing.path}" for thing in unknown[:_MAX_LISTED]]
        more = len(unknown) - len(lines)
        raise DefinitionError(
            f"{file}: {len(unknown)} thing(s) that sessionvirt does not understand",
            evidence="\n".join([*lines, f"... and {more} more"] if more else lines),
            advice="Remove them, or read without strict to have them ignored.",
        )
    return Parsed(value, tuple(unknown))


def _load(cls: type[E], node: Node, where: Location, unknown: list[Unknown]) -> E:
    _report(node, _shape(cls), where, unknown)
    values: dict[str, Any] = {}
    for field, spec in declared(cls):
        try:
            found = _value(spec, node, where, unknown)
        except ValueError as error:
            last = walk(node, spec.steps)
            place = where.below(spec.path, (last or node).line)
            if not spec.lenient:
                place.refuse(f"wrong value: {error}", f"Write {_hint(spec)}.")
            unknown.append(Unknown(place.path, place.line))
            continue
        if found is not None:
            values[field.name] = found
        elif spec.required:
            where.below(spec.path).refuse("is missing", f"Write {_hint(spec)}.")
    return cls(origin=Origin(node, where), **values)


def _hint(spec: Spec) -> str:
    assert spec.converter is not None
    return spec.converter.expected


def _value(spec: Spec, node: Node, where: Location, unknown: list[Unknown]) -> Any:
    """What the document says; None: nothing."""
    if spec.element is not None:
        found = [
            _load(spec.element, part, place, unknown) for part, place in _parts(spec, node, where)
        ]
        return tuple(found) if spec.kind == "children" else next(iter(found), None)
    target = walk(node, spec.steps)
    if target is None or spec.kind == "kept":
        return None
    return _scalar(spec, target)


def _scalar(spec: Spec, node: Node) -> Any:
    if spec.kind == "flag":
        return True
    assert spec.converter is not None
    if spec.kind == "size":
        return spec.converter.read(f"{node.text} {node.attributes.get('unit', 'KiB')}")
    text = node.attributes.get(spec.attribute) if spec.attribute is not None else node.text
    if text is None:
        return None
    try:
        return spec.converter.read(text)
    except ValueError:
        if spec.attribute is None and not text:  # there for its attributes: <type arch='...'/>
            return None
        raise


def walk(node: Node, steps: Sequence[str]) -> Node | None:
    """The first node down that path."""
    here: Node | None = node
    for step in steps:
        here = here.find(step) if here is not None else None
    return here


def _parts(spec: Spec, node: Node, where: Location) -> Iterator[tuple[Node, Location]]:
    """The elements that a child declaration means, with their places."""
    *above, _last = spec.steps
    parent = walk(node, above)
    if parent is None:
        return
    below = where.below("/".join(above), parent.line) if above else where
    for element, place in _places(parent, below, spec.steps[-1]):
        if spec.selects(element):
            yield element, place
            if spec.kind == "child":
                return


def _places(node: Node, where: Location, tag: str | None = None) -> Iterator[tuple[Node, Location]]:
    """The elements inside, with an index in the path where a name is there more than once.

    :param tag: only these.
    """
    inside = [element for element in node.elements() if tag is None or element.tag == tag]
    total = Counter(element.name for element in inside)
    seen: Counter[str] = Counter()
    for element in inside:
        seen[element.name] += 1
        suffix = f"[{seen[element.name]}]" if total[element.name] > 1 else ""
        yield element, where.below(element.name + suffix, element.line)


def _report(node: Node, shape: _Shape, where: Location, unknown: list[Unknown]) -> None:
    """List what no declaration of the class names, down to where another class takes over."""
    for name in node.attributes:
        if name not in shape.attributes and name != "xmlns" and not name.startswith("xmlns:"):
            unknown.append(Unknown(f"{where.path}/@{name}", node.line))
    if not shape.text and node.text.strip():
        unknown.append(Unknown(f"{where.path}/text()", node.line))
    taken: set[str] = set()
    for element, place in _places(node, where):
        inner = shape.inside.get(element.tag)
        if inner is None or (inner.owner is not None and not inner.owner.selects(element)):
            unknown.append(Unknown(place.path, element.line))
        elif inner.owner is not None and inner.owner.kind in ("children", "kept"):
            continue
        elif element.tag in taken:
            unknown.append(Unknown(place.path, element.line))
        else:
            taken.add(element.tag)
            if inner.owner is None:
                _report(element, inner, place, unknown)


# -- writing ---------------------------------------------------------------------------------------


def dump(value: Element, root: str) -> str:
    """The instance as a document, with everything unknown that it was read with.

    :raise DefinitionError: a value has a character that XML cannot carry.
    """
    return write(_store(value, root))


def _store(value: Element, tag: str) -> Node:
    origin = value.origin.node if value.origin is not None else None
    node = origin.copy() if origin is not None else Node(tag, tag)
    for field, spec in declared(type(value)):
        now = getattr(value, field.name)
        if spec.element is not None:
            _store_elements(spec, node, origin, now if spec.kind == "children" else (now,))
        elif spec.kind != "kept" and (now != field.default or node.line or spec.always):
            _store_scalar(spec, node, now, field.default)
    return node


def _store_elements(
    spec: Spec, node: Node, origin: Node | None, values: Sequence[Element | None]
) -> None:
    """Put the elements into the places of those that were there, in order; the rest behind them."""
    *above, tag = spec.steps
    written = [_store(value, tag) for value in values if value is not None]
    parent = walk(node, above)
    if parent is None and not written:
        return
    parent = parent or _ensure(node, above)
    old = [element for element in parent.elements() if element.tag == tag and spec.selects(element)]
    replaced = {id(element) for element in (old[:1] if spec.kind == "child" else old)}
    waiting = iter(written)
    result: list[Node | Comment | str] = []
    end: int | None = None
    for part in parent.children:
        if id(part) in replaced:
            result += itertools.islice(waiting, 1)
            end = len(result)
        else:
            result.append(part)
    end = len(result) if end is None else end
    result[end:end] = waiting
    parent.children = result


def _store_scalar(spec: Spec, node: Node, now: Any, default: Any) -> None:
    target = walk(node, spec.steps)
    try:
        said = _scalar(spec, target) if target is not None else None
    except ValueError:  # lenient: what was not understood stays unless something is set
        said = default
    if now == said or (said is None and now == default and node.line):
        return
    if now is None or (now is False and spec.kind == "flag"):
        if target is not None:
            _remove(spec, node, target)
        return
    target = target or _ensure(node, spec.steps)
    if spec.kind == "flag":
        return
    assert spec.converter is not None
    text = spec.converter.write(now)
    if spec.kind == "size":
        text, target.attributes["unit"] = text.split()
    if spec.attribute is not None:
        target.attributes[spec.attribute] = text
    else:
        target.set_text(text)


def _ensure(node: Node, steps: Sequence[str]) -> Node:
    for step in steps:
        found = node.find(step)
        if found is None:
            found = Node(step, step)
            node.children.append(found)
        node = found
    return node


def _remove(spec: Spec, node: Node, target: Node) -> None:
    """Take the value out, and each element above it that is left with nothing."""
    chain = [node]
    for step in spec.steps:
        found = chain[-1].find(step)
        assert found is not None
        chain.append(found)
    if spec.attribute is not None:
        target.attributes.pop(spec.attribute, None)
    for parent, element in zip(chain[-2::-1], chain[:0:-1], strict=True):
        if element.bare or (element is target and spec.attribute is None):
            parent.children.remove(element)
