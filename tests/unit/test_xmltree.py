# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hostile bytes get a DefinitionError with a place; what is read is written back."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionvirt.errors import DefinitionError
from sessionvirt.xmltree import MAX_BYTES, MAX_DEPTH, Node, read, write

pytestmark = pytest.mark.unit

LAUGHS = b"""<!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><a>&b;</a>"""
EXTERNAL = b"""<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>"""


@pytest.mark.parametrize(
    ("document", "cause", "place"),
    [
        pytest.param(LAUGHS, "document type", "f.xml:1:", id="entities"),
        pytest.param(EXTERNAL, "document type", "f.xml:1:", id="external-entity"),
        pytest.param(b"<a>\n<b></a>", "mismatched tag", "f.xml:2: /a/b", id="mismatched"),
        pytest.param(b"<a>\n\n<b", "unclosed token", "f.xml:3: /a", id="cut-off"),
        pytest.param(b"", "no element found", "f.xml:1: /", id="empty"),
        pytest.param(b"<a>&undefined;</a>", "undefined entity", "f.xml:1: /a", id="entity"),
        pytest.param(b"<a b='1' b='2'/>", "duplicate attribute", "f.xml:1:", id="duplicate"),
        pytest.param(b"<a>\x00</a>", "not well-formed", "f.xml:1: /a", id="nul"),
        pytest.param(b"<a>\xff</a>", "not well-formed", "f.xml:1: /a", id="not-utf-8"),
        pytest.param(
            b"<?xml version='1.0' encoding='no-such'?><a/>", "no-such", "f.xml:1:", id="encoding"
        ),
        pytest.param(
            b"<?xml version='1.0' encoding='utf-7'?><a/>", "decoded", "f.xml:1:", id="multibyte"
        ),
        pytest.param("<a>\ud800</a>", "not text", "f.xml:1:", id="surrogate"),
        pytest.param(b"<x:a/>", "prefix", "f.xml:1:", id="prefix"),
        pytest.param(b"<a>" * (MAX_DEPTH + 1), "inside each other", "f.xml:1: /a/a/a", id="deep"),
        pytest.param(b" " * (MAX_BYTES + 1), "bytes", "f.xml:1: /", id="large"),
    ],
)
def test_hostile_bytes(document: bytes | str, cause: str, place: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        read(document, "f.xml")
    assert cause in caught.value.cause
    assert caught.value.evidence.startswith(place)
    assert caught.value.advice


def test_namespace_declarations_are_bounded() -> None:
    """Each costs every element below it, so many on many elements would be quadratic."""
    many = " ".join(f"xmlns:n{index}='u'" for index in range(100))
    with pytest.raises(DefinitionError, match="namespace declarations"):
        read(f"<a {many}/>", "f.xml")


def test_the_depth_allowed_is_allowed() -> None:
    document = b"<a>" * MAX_DEPTH + b"</a>" * MAX_DEPTH
    assert read(document, "f.xml").tag == "a"


@given(st.binary(max_size=400) | st.text(max_size=400))
def test_nothing_but_definition_errors(document: bytes | str) -> None:
    with contextlib.suppress(DefinitionError):
        read(document, "f.xml")


@given(st.lists(st.sampled_from(["<a>", "</a>", "<b c='1'>", "</b>", "<!--x-->", "t", "<d/>"])))
def test_nothing_but_definition_errors_for_tags(parts: list[str]) -> None:
    try:
        root = read("".join(parts), "f.xml")
    except DefinitionError:
        return
    assert write(read(write(root), "f.xml")) == write(root)


def test_the_largest_document_is_read_in_time() -> None:
    """Many different names, many alike, many comments: each as many as fit."""
    for unit in ("<n{}/>", "<n/>", "<!--{}-->", "<n a{}='1'/>", "x{}<n/>"):
        body = "".join(unit.format(index) for index in range(MAX_BYTES // 16))
        start = time.process_time()
        write(read(f"<a>{body[: body.rindex('<')]}</a>"[:MAX_BYTES], "f.xml"))
        assert time.process_time() - start < 20, unit


def test_lines_and_namespaces() -> None:
    root = read(
        "<a xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'\n   xmlns:o='urn:o'>\n"
        "<q:arg/>\n<o:arg/><qemu xmlns='urn:o'/></a>",
        "f.xml",
    )
    assert [(node.tag, node.line) for node in root.elements()] == [
        ("qemu:arg", 3),
        ("{urn:o}arg", 4),
        ("{urn:o}qemu", 4),
    ]


def test_written_back() -> None:
    text = (
        "<a b='&apos;&lt;&amp;&#10;&#9;&#13;\"'>\n"
        "  <!-- note -->\n"
        "  <c>x &amp; y<d e='1'></d> z<!--in--></c>\n"
        "  <f/>\n"
        "</a>\n"
    )
    assert write(read(text, "f.xml")) == text


def test_the_namespace_of_a_new_element_is_declared() -> None:
    root = Node("a", "a", children=[Node("qemu:arg", "qemu:arg")])
    assert "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'" in write(root)


@pytest.mark.parametrize("text", ["\0", "\x1b", "\ud800", "\ufffe"])
def test_what_xml_cannot_carry(text: str) -> None:
    with pytest.raises(DefinitionError, match="cannot be written"):
        write(Node("a", "a", children=[text]))
    with pytest.raises(DefinitionError, match="cannot be written"):
        write(Node("a", "a", attributes={"b": text}))
