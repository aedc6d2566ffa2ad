# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a caller may have, as values: lists and flags at the door, limits, and the table [pci]."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest

from sessionvirt_broker.config import ConfigFile, PciPolicy
from sessionvirt_broker.errors import ConfigurationError, InvalidRequest, LimitsExceeded
from sessionvirt_broker.limits import Limits, Share, check, lockable_bytes
from sessionvirt_broker.wire import Fields, legible

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

NIC, PEER = "0000:03:00.0", "0000:03:00.1"


def given(**values: Any) -> Fields:
    return Fields("requests[1]", values)


# The door


def test_a_list_of_texts() -> None:
    assert given(also=("as", ["a", "b", "a"])).texts("also", limit=3) == ("a", "b", "a")
    assert given(also=("as", [])).texts("also", limit=3) == ()
    assert given().texts("also", limit=3) == ()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (("s", "a"), "must have the D-Bus type as"),
        (("ao", ["/"]), "must have the D-Bus type as"),
        (("as", "ab"), "must be a list of strings"),
        (("as", [1]), "must be a list of strings"),
        (("as", ["a"] * 4), "must have at most 3 entries"),
    ],
)
def test_a_list_that_is_refused_by_name(value: tuple[str, object], words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        given(also=value).texts("also", limit=3)
    assert str(caught.value) == f"requests[1].also: {words}"


def test_a_list_that_was_taken_is_not_left_over() -> None:
    values = given(also=("as", ["a"]))
    values.texts("also", limit=3)
    values.finish()


@pytest.mark.parametrize("default", [True, False])
def test_a_flag_that_is_absent_is_its_default_and_a_given_one_is_itself(*, default: bool) -> None:
    assert given().flag("managed", default=default) is default
    for value in (True, False):
        assert given(managed=("b", value)).flag("managed", default=default) is value
    assert given().flag("managed") is False
    with pytest.raises(InvalidRequest, match=r"requests\[1\]\.managed: must have the D-Bus type b"):
        given(managed=("u", 1)).flag("managed", default=default)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Intel 82574L", "Intel 82574L"),
        ("é 日本", "é 日本"),
        ("a\nb\x00\x1b[m", "a?b??[m"),
        ("a\u202eb\u00a0c", "a?b?c"),
        ("$(vm) $5", "?(vm) $5"),
        ("123456789012", "1234567..."),
    ],
)
def test_a_text_of_the_hosts_is_one_line(text: str, expected: str) -> None:
    assert legible(text, 10 if len(text) == 12 and text.isdigit() else 64) == expected


# Limits


def test_shares_add_up_and_take_away_field_by_field() -> None:
    one, two = Share(1, 2, 3, 4, 5), Share(10, 20, 30, 40, 50)
    assert one.plus(two) == Share(11, 22, 33, 44, 55)
    assert two.minus(one) == Share(9, 18, 27, 36, 45)
    assert one.plus(two).minus(two) == one
    assert Share().plus(one) == one
    # Whatever field is new counts, too.
    assert list(one) == [getattr(one, each.name) for each in fields(Share)]


def test_devices_of_a_user_are_limited_and_the_limit_is_named() -> None:
    limits = Limits(devices_per_user=3)
    check(Share(devices=1), Share(devices=2), 0, limits)
    check(Share(devices=3), Share(taps=1), 0, limits)
    with pytest.raises(LimitsExceeded, match=r"^devices_per_user: 3$"):
        check(Share(devices=2), Share(devices=2), 0, limits)
    with pytest.raises(LimitsExceeded, match=r"^devices_per_user: 3$"):
        check(Share(), Share(devices=4), 0, limits)


def test_an_answer_carries_so_many_descriptors_whatever_they_are() -> None:
    limits = Limits()
    check(Share(fds=16, queues=16), Share(leases=1, queues=3, fds=12), 0, limits)
    with pytest.raises(LimitsExceeded, match=r"^fds_per_call: 16$"):
        check(Share(), Share(leases=1, queues=4, fds=12), 0, limits)


def test_the_memory_that_may_be_locked() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert total // 2 < lockable_bytes(Limits()) < total
    assert lockable_bytes(Limits(lock_memory_gib=5)) == 5 << 30
    assert lockable_bytes(Limits(lock_memory_gib=Limits.CEILING)) < 1 << 63


# [pci]


@pytest.fixture
def file(tmp_path: Path) -> ConfigFile:
    if os.geteuid() != 0:
        pytest.skip("needs root: the file must be root's")
    return ConfigFile(tmp_path / "broker.toml")


def test_devices_of_the_file(file: ConfigFile) -> None:
    file.path.write_text(
        f'[pci]\nallow = ["{NIC}"]\ndeny = [\n  "{PEER}",\n  "{PEER}",\n]\nweak_isolation = true\n'
        "[limits]\ndevices_per_user = 1\nlock_memory_gib = 16\n"
    )
    found = file.current()
    assert found.pci == PciPolicy(frozenset({NIC}), frozenset({PEER}), weak_isolation=True)
    assert (found.limits.devices_per_user, found.limits.lock_memory_gib) == (1, 16)


@pytest.mark.parametrize("text", ["", "[pci]\n", "[pci]\nallow = []\nweak_isolation = false\n"])
def test_no_devices_in_the_file_is_no_exception(text: str, file: ConfigFile) -> None:
    file.path.write_text(text)
    assert file.current().pci == PciPolicy()


@pytest.mark.parametrize(
    ("lines", "number", "key", "word"),
    [
        ("pci = 3\n", 1, "pci", "table"),
        ("[[pci]]\n", 1, "pci", "table"),
        ("[pci]\n\nallowed = []\n", 3, "pci.allowed", "not known"),
        ("[pci]\nallow = '0000:03:00.0'\n", 2, "pci.allow", "list"),
        ("[pci]\nallow = [1]\n", 2, "pci.allow", "0000:03:00.0"),
        ("[pci]\nallow = ['03:00.0']\n", 2, "pci.allow", "0000:03:00.0"),
        ("[pci]\ndeny = ['0000:0A:00.0']\n", 2, "pci.deny", "0000:03:00.0"),
        ("[pci]\n# all\ndeny = ['*']\n", 3, "pci.deny", "0000:03:00.0"),
        ("[pci]\ndeny = [['0000:03:00.0']]\n", 2, "pci.deny", "0000:03:00.0"),
        ("[pci]\nweak_isolation = 1\n", 2, "pci.weak_isolation", "true or false"),
        ("[pci]\nweak_isolation = 'yes'\n", 2, "pci.weak_isolation", "true or false"),
        ("[limits]\nlock_memory_gib = 0\n", 2, "limits.lock_memory_gib", "from 1 to"),
        ("[limits]\nlock_memory_gib = 1.5\n", 2, "limits.lock_memory_gib", "from 1 to"),
        ("[limits]\ndevices_per_user = 65537\n", 2, "limits.devices_per_user", "from 1 to"),
    ],
)
def test_what_is_wrong_is_named_by_file_line_and_key(
    lines: str, number: int, key: str, word: str, file: ConfigFile
) -> None:
    file.path.write_text(lines)
    with pytest.raises(ConfigurationError) as caught:
        file.current()
    assert str(caught.value).startswith(f"{file.path}:{number}: '{key}': ")
    assert word in str(caught.value)
    # A wrong file opens nothing.
    with pytest.raises(ConfigurationError):
        file.current()
