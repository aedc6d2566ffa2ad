# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bytes to a tree of XML nodes with line numbers, and back.

The bytes are hostile: every way in which they can be wrong is a :class:`DefinitionError` that names
file and line, and the work is bounded by :data:`MAX_BYTES` and :data:`MAX_DEPTH`. There are no
document types here, so no entities but XML's own five and nothing that is fetched or expanded.

Kept: elements, attributes, text, comments and their order. Not kept: white space between elements
(output is indented by two), processing instructions, and whatever stands outside the root.

Expat is used directly: it reports lines, and costs a third of the import of ``xml.etree``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn
from xml.parsers import expat

from .errors import DefinitionError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_BYTES", "MAX_DEPTH", "NAMESPACES", "Comment", "Location", "Node", "read", "write"]

#: Larger documents are refused before they are parsed. libvirt's largest test file has 40 KiB.
MAX_BYTES: Final = 1 << 20
#: Deeper nesting is refused. The domain schema needs 9.
MAX_DEPTH: Final = 64
#: More namespace declarations in force at one place are refused: each costs every element below.
MAX_NAMESPACES: Final = 64
#: The prefixes that paths in this project use, whatever prefix a document binds.
NAMESPACES: Final = {
    "qemu": "http://libvirt.org/schemas/domain/qemu/1.0",
    "dnsmasq": "http://libvirt.org/schemas/network/dnsmasq/1.0",
}

_XML_NAMESPACE: Final = "http://www.w3.org/XML/1998/namespace"
_PREFIX_OF: Final = {uri: prefix for prefix, uri in NAMESPACES.items()}
_UNWRITABLE: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Location:
    """Where something stands in a document.

    :param file: what the reader calls the document; empty: it was not read from one.
    :param line: from 1; 0: not read from a document.
    :param path: like ``/domain/devices/disk[2]/source/@file``.
    """

    file: str
    line: int
    path: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.path}" if self.line else self.path

    def below(self, path: str, line: int | None = None) -> Location:
        """The place ``path`` below this one."""
        return Location(self.file, self.line if line is None else line, f"{self.path}/{path}")

    def refuse(self, problem: str, advice: str) -> NoReturn:
        """Say that what stands here is wrong, and what to write instead.

        :raise DefinitionError: always.
        """
        raise DefinitionError(f"{self.path}: {problem}", evidence=str(self), advice=advice)


@dataclass(frozen=True)
class Comment:
    """A comment between elements; :func:`write` gives it back in its place."""

    text: str


@dataclass(eq=False)
class Node:
    """One element.

    :param tag: what code compares: ``disk``, ``qemu:arg`` for :data:`NAMESPACES`, else
        ``{uri}local``.
    :param name: what the document says, prefix included.
    :param attributes: as written, namespace declarations included.
    :param children: elements, text and comments in document order.
    """

    tag: str
    name: str
    line: int = 0
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Node | Comment | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text directly inside, comments left out."""
        return "".join(child for child in self.children if isinstance(child, str))

    def elements(self) -> Iterator[Node]:
        """The elements directly inside."""
        return (child for child in self.children if isinstance(child, Node))

    def find(self, tag: str) -> Node | None:
        """The first element ``tag`` directly inside."""
        return next((node for node in self.elements() if node.tag == tag), None)

    def set_text(self, text: str) -> None:
        """Replace the text and leave elements and comments."""
        self.children = [child for child in self.children if not isinstance(child, str)]
        if text:
            self.children.append(text)

    @property
    def bare(self) -> bool:
        """Whether nothing is inside and no attribute is on it."""
        return not self.attributes and not self.children

    def copy(self) -> Node:
        """A tree that shares nothing that can change with this one."""
        children = [child.copy() if isinstance(child, Node) else child for child in self.children]
        return Node(self.tag, self.name, self.line, dict(self.attributes), children)


def read(document: bytes | str, file: str) -> Node:
    """Parse a document.

    :param document: the bytes as they came, in any encoding expat knows, or text.
    :param file: what messages call it.
    :raise DefinitionError: too large, too deep, not well formed, or with a document type.
    """
    try:
        data = document.encode() if isinstance(document, str) else document
    except UnicodeEncodeError as error:
        Location(file, 1, "/").refuse(f"not text: {error.reason}", "Write the file as UTF-8.")
    if len(data) > MAX_BYTES:
        Location(file, 1, "/").refuse(
            f"the document has {len(data)} bytes, more than the {MAX_BYTES} allowed",
            "A definition is a few kilobytes; check that this is the right file.",
        )
    parser = expat.ParserCreate("utf-8" if isinstance(document, str) else None)
    builder = _Builder(parser, file)
    try:
        parser.Parse(data, True)  # noqa: FBT003 (the C function takes no keywords)
    except expat.ExpatError as error:
        Location(file, error.lineno, builder.path).refuse(
            f"not well-formed XML: {expat.ErrorString(error.code)} (column {error.offset + 1})",
            "Check the element that begins or ends there.",
        )
    except (LookupError, ValueError) as error:  # the encoding that the document declares
        Location(file, 1, "/").refuse(f"cannot be decoded: {error}", "Write the file as UTF-8.")
    if builder.root is None:  # expat refuses a document without an element
        Location(file, 1, "/").refuse("no element at all", "Check that this is the right file.")
    return builder.root


class _Builder:
    """Expat's handlers; owns the tree while it grows."""

    def __init__(self, parser: expat.XMLParserType, file: str) -> None:
        self.root: Node | None = None
        self._file = file
        self._parser = parser
        self._open: list[Node] = []
        self._scopes: list[dict[str, str]] = [{"xml": _XML_NAMESPACE, "": ""}]
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.CommentHandler = self._comment
        parser.StartDoctypeDeclHandler = self._doctype

    @property
    def path(self) -> str:
        """The elements that are open."""
        return "/" + "/".join(node.name for node in self._open)

    @property
    def _here(self) -> Location:
        return Location(self._file, self._parser.CurrentLineNumber, self.path)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._open) >= MAX_DEPTH:
            self._here.refuse(
                f"more than {MAX_DEPTH} elements inside each other",
                "A definition is not that deep; check that this is the right file.",
            )
        scope = self._scopes[-1]
        declared = {
            key.partition(":")[2]: uri
            for key, uri in attributes.items()
            if key == "xmlns" or key.startswith("xmlns:")
        }
        if len(scope) + len(declared) > MAX_NAMESPACES:
            self._here.refuse(
                f"more than {MAX_NAMESPACES} namespace declarations",
                "A definition needs one or two; check that this is the right file.",
            )
        self._scopes.append(scope | declared if declared else scope)
        node = Node(self._resolve(name), name, self._parser.CurrentLineNumber, attributes)
        if self._open:
            self._open[-1].children.append(node)
        else:
            self.root = node
        self._open.append(node)

    def _resolve(self, name: str) -> str:
        prefix, _, local = name.rpartition(":")
        uri = self._scopes[-1].get(prefix)
        if uri is None:
            self._here.refuse(
                f"the prefix of <{name}> is not declared",
                f"Declare it on the root element: xmlns:{prefix}='...'.",
            )
        if not uri:
            return local
        return f"{_PREFIX_OF[uri]}:{local}" if uri in _PREFIX_OF else f"{{{uri}}}{local}"

    def _end(self, _name: str) -> None:
        self._scopes.pop()
        node = self._open.pop()
        if any(isinstance(child, Node) for child in node.children) and not node.text.strip():
            node.children = [child for child in node.children if not isinstance(child, str)]

    def _text(self, text: str) -> None:
        if self._open:
            self._open[-1].children.append(text)

    def _comment(self, text: str) -> None:
        if self._open:
            self._open[-1].children.append(Comment(text))

    def _doctype(self, *_what: object) -> None:
        self._here.refuse(
            "a document type declaration is not accepted",
            "Remove <!DOCTYPE ...>; a definition needs no entities.",
        )


def write(root: Node) -> str:
    """The document as text, indented by two, with a newline at the end.

    :param root: is given the namespace declarations that it lacks.
    :raise DefinitionError: a value has a character that XML cannot carry.
    """
    for prefix in sorted(NAMESPACES.keys() & set(_prefixes(root))):
        root.attributes[f"xmlns:{prefix}"] = NAMESPACES[prefix]
    return "".join(_serialise(root, 0)) + "\n"


def _prefixes(node: Node) -> Iterator[str]:
    """Prefixes of elements that were made here; those read from a document bring their own."""
    if not node.line:
        yield node.tag.rpartition(":")[0]
    for child in node.elements():
        yield from _prefixes(child)


def _serialise(node: Node, depth: int) -> Iterator[str]:
    pad = "  " * depth
    yield f"{pad}<{node.name}"
    for key, value in node.attributes.items():
        yield f" {key}='{_escape(value, attribute=True)}'"
    if not node.children:
        yield "/>"
        return
    yield ">"
    if any(isinstance(child, str) for child in node.children):
        for child in node.children:
            yield _inline(child)
    else:
        for child in node.children:
            yield "\n"
            if isinstance(child, Node):
                yield from _serialise(child, depth + 1)
            else:
                yield f"{pad}  {_inline(child)}"
        yield f"\n{pad}"
    yield f"</{node.name}>"


def _inline(child: Node | Comment | str) -> str:
    """A child where white space counts, because text stands beside it."""
    if isinstance(child, Comment):
        return f"<!--{child.text}-->"
    if isinstance(child, str):
        return _escape(child, attribute=False)
    attributes = "".join(
        f" {key}='{_escape(value, attribute=True)}'" for key, value in child.attributes.items()
    )
    inside = "".join(_inline(grandchild) for grandchild in child.children)
    return f"<{child.name}{attributes}>{inside}</{child.name}>"


def _escape(text: str, *, attribute: bool) -> str:
    if found := _UNWRITABLE.search(text):
        raise DefinitionError(
            f"the character {found.group()!r} cannot be written in XML",
            evidence=ascii(text),
            advice="Rename what carries it.",
        )
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = text.replace("\r", "&#13;")
    if attribute:
        text = text.replace("'", "&apos;").replace("\n", "&#10;").replace("\t", "&#9;")
    return text
