# SPDX-License-Identifier: LGPL-2.1-or-later
"""The mapping by itself, on a schema small enough to see at once."""

from __future__ import annotations

import dataclasses

import pytest

from sessionvirt.errors import DefinitionError
from sessionvirt.xmlmap import (
    Element,
    Unknown,
    attr,
    child,
    children,
    dump,
    flag,
    kept,
    mapped,
    parse,
    size,
)
from sessionvirt.xmlvalues import Integer, OnOff, Text

pytestmark = pytest.mark.unit


@mapped
class Wheel(Element):
    """A part that is there several times."""

    size: int = attr("@size", Integer(1, 30), required=True)
    spare: bool = flag("spare")


@mapped
class Engine(Element):
    """A part that is there once."""

    type: str | None = attr("@type", Text)
    fuel: str | None = attr("fuel/@kind", Text)


@mapped
class Car(Element):
    """The root."""

    name: str = attr("name", Text, required=True)
    tank: int | None = size("tank")
    radio: bool | None = attr("inside/radio/@on", OnOff)
    seats: int = attr("inside/seats", Integer(1, 9), default=4)
    colour: int | None = attr("paint/@colour", Integer(0, 7), lenient=True)
    note: None = kept("note")
    engine: Engine | None = child("engine", Engine, only={"type": {"steam", "petrol"}})
    wheels: tuple[Wheel, ...] = children("inside/wheel", Wheel)


FULL = """\
<car xmlns:x='urn:x' age='3'>
  <!-- first -->
  <name>Ada</name>
  <tank unit='MiB'>2</tank>
  <note>deep</note>
  <inside>
    <wheel size='15'/>
    <!-- between -->
    <wheel size='16' worn='yes'>
      <spare/>
      <bolt/>
    </wheel>
    <radio on='off' band='fm'/>
    <x:lamp/>
  </inside>
  <paint colour='mauve'/>
  <engine type='rocket'/>
  <engine type='steam'/>
  <engine type='petrol'/>
</car>
"""


def read(text: str = FULL, *, strict: bool = False) -> Car:
    return parse(text, Car, "car", file="car.xml", strict=strict).value


def test_values() -> None:
    assert read() == Car(
        name="Ada",
        tank=2 << 20,
        radio=False,
        seats=4,
        engine=Engine(type="steam"),
        wheels=(Wheel(size=15), Wheel(size=16, spare=True)),
    )


def test_unknown_things_are_listed_with_their_lines() -> None:
    assert parse(FULL, Car, "car").unknown == (
        Unknown("/car/@age", 1),
        Unknown("/car/inside/wheel[2]/@worn", 9),
        Unknown("/car/inside/wheel[2]/bolt", 11),
        Unknown("/car/inside/radio/@band", 13),
        Unknown("/car/inside/x:lamp", 14),
        Unknown("/car/paint/@colour", 16),
        Unknown("/car/engine[1]", 17),
        Unknown("/car/engine[3]", 19),
    )


def test_text_and_a_second_single_element_are_unknown() -> None:
    text = "<car><name>a</name>stray<tank>1</tank><tank>2</tank></car>"
    found = parse(text, Car, "car")
    assert found.value.tank == 1024
    assert [thing.path for thing in found.unknown] == ["/car/text()", "/car/tank[2]"]


def test_strict_lists_all_of_them() -> None:
    with pytest.raises(DefinitionError) as caught:
        read(strict=True)
    assert caught.value.evidence.splitlines()[1] == "car.xml:9: /car/inside/wheel[2]/@worn"
    assert len(caught.value.evidence.splitlines()) == 8
    assert caught.value.advice


def test_strict_lists_a_bounded_number() -> None:
    text = f"<car><name>a</name>{'<x/>' * 5000}</car>"
    with pytest.raises(DefinitionError, match="5000 thing") as caught:
        read(text, strict=True)
    assert caught.value.evidence.endswith("... and 4500 more")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("<car>\n<tank>1</tank></car>", "car.xml:1: /car/name"),
        ("<car><name>a</name>\n<tank unit='furlong'>1</tank></car>", "car.xml:2: /car/tank"),
        (
            "<car><name>a</name><inside>\n\n<seats>10</seats></inside></car>",
            "car.xml:3: /car/inside/seats",
        ),
        (
            "<car><name>a</name><inside><wheel size='1'/>\n<wheel/></inside></car>",
            "car.xml:2: /car/inside/wheel[2]/@size",
        ),
        ("<bus/>", "car.xml:1: /bus"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(text: str, place: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        read(text)
    assert caught.value.evidence == place
    assert caught.value.advice.startswith(("Write ", "The root "))


def test_an_untouched_document_comes_back() -> None:
    assert dump(read(), "car") == FULL


def test_a_change_keeps_all_else() -> None:
    car = read()
    changed = dataclasses.replace(
        car,
        tank=None,
        radio=True,
        colour=3,
        wheels=(car.wheels[1], Wheel(size=17), dataclasses.replace(car.wheels[0], spare=True)),
    )
    text = dump(changed, "car")
    assert parse(text, Car, "car").value == changed
    assert text == FULL.replace("  <tank unit='MiB'>2</tank>\n", "").replace(
        "on='off'", "on='on'"
    ).replace("'mauve'", "'3'").replace(
        FULL[FULL.index("    <wheel size='15'") : FULL.index("    <radio")],
        "    <wheel size='16' worn='yes'>\n      <spare/>\n      <bolt/>\n    </wheel>\n"
        "    <!-- between -->\n"
        "    <wheel size='17'/>\n"
        "    <wheel size='15'>\n      <spare/>\n    </wheel>\n",
    )


def test_what_is_removed_takes_empty_elements_with_it() -> None:
    car = read("<car><name>a</name><inside><radio on='on'/></inside></car>")
    assert dump(dataclasses.replace(car, radio=None), "car") == (
        "<car>\n  <name>a</name>\n</car>\n"
    )
    wheels = dataclasses.replace(read(), wheels=())
    assert "<wheel" not in dump(wheels, "car")
    assert "x:lamp" in dump(wheels, "car")
    spare = read("<car><name>a</name><inside><wheel size='1'><spare x='1'/></wheel></inside></car>")
    plain = dataclasses.replace(spare, wheels=(dataclasses.replace(spare.wheels[0], spare=False),))
    assert parse(dump(plain, "car"), Car, "car").value == plain


def test_an_element_replaces_the_one_that_was_meant() -> None:
    text = dump(dataclasses.replace(read(), engine=None), "car")
    assert "rocket" in text
    assert "steam" not in text


def test_instances_are_values() -> None:
    wheel = Wheel(size=15)
    assert wheel == Wheel(size=15)
    assert hash(wheel) == hash(Wheel(size=15))
    assert wheel != Wheel(size=16)
    assert wheel != Engine()
    assert repr(Wheel(size=15, spare=True)) == "Wheel(size=15, spare=True)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        wheel.size = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        del wheel.size
    with pytest.raises(TypeError, match="needs size="):
        Wheel()
    with pytest.raises(TypeError, match="has no rim"):
        Wheel(size=1, rim=2)  # type: ignore[call-arg]


def test_the_place_of_something_below() -> None:
    car = read()
    assert str(car.wheels[1].at("spare")) == "car.xml:10: /car/inside/wheel[2]/spare"
    assert str(car.at("inside/radio/@on")) == "car.xml:13: /car/inside/radio/@on"
    assert str(Wheel(size=1).at("spare")) == "<wheel>/spare"
