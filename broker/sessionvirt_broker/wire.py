# SPDX-License-Identifier: LGPL-2.1-or-later
"""The door: values of a caller, typed or refused by name.

Everything a caller sends is read through :class:`Fields`, which knows the D-Bus signature of each
value. A field of another type, a field nobody asked for, a text that is too long: each is an
:class:`InvalidRequest` that names the field. Inside, there are only dataclasses.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, NewType

from .errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

#: One value and the D-Bus signature it came with.
TypedValue = tuple[str, object]

VmName = NewType("VmName", str)
Mac = NewType("Mac", str)
NetworkName = NewType("NetworkName", str)
BridgeName = NewType("BridgeName", str)
TapName = NewType("TapName", str)
DeviceName = NewType("DeviceName", str)

#: How the broker's TAPs and macvtap devices are called; ``ruleset.py`` knows it.
TAP_PREFIX = "svt"
#: How the address of the host's end of a TAP begins; with it in place of the guest's first octet.
PORT_PREFIX = "fe:"

# fullmatch with explicit ASCII classes: "$" lets a newline through, "\d" takes Arabic digits.
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_NETWORK = re.compile(r"[a-z][a-z0-9_]{0,10}")
_IFNAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
#: Categories that no name may have: controls, formats (bidi overrides), surrogates, private use,
#: unassigned, line and paragraph separators.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_VM_NAME_BYTES = 64


class Fields:
    """The closed dictionary of one request; every key must be taken before :meth:`finish`.

    :param where: what the dictionary is, for the error: ``options``, ``requests[0]``.
    """

    def __init__(self, where: str, values: Mapping[str, TypedValue]) -> None:
        self.where = where
        self._left = dict(values)

    def _take(self, name: str, signature: str) -> object | None:
        typed = self._left.pop(name, None)
        if typed is None:
            return None
        if typed[0] != signature:
            raise InvalidRequest(f"{self.where}.{name}: must have the D-Bus type {signature}")
        return typed[1]

    def has(self, name: str) -> bool:
        """Whether the key is there."""
        return name in self._left

    def peek(self, name: str) -> object | None:
        """A value as it came, of whatever type, or None; it is still to be taken."""
        typed = self._left.get(name)
        return None if typed is None else typed[1]

    def text(self, name: str) -> str | None:
        """A string, or None where the key is absent."""
        value = self._take(name, "s")
        if value is not None and not isinstance(value, str):
            raise InvalidRequest(f"{self.where}.{name}: must be a string")
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """A boolean."""
        value = self._take(name, "b")
        return default if value is None else value is True

    def texts(self, name: str, *, limit: int) -> tuple[str, ...]:
        """A list of at most ``limit`` strings; absent is empty."""
        value = self._take(name, "as")
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise InvalidRequest(f"{self.where}.{name}: must be a list of strings")
        if len(value) > limit:
            raise InvalidRequest(f"{self.where}.{name}: must have at most {limit} entries")
        return tuple(value)

    def count(self, name: str, *, default: int, limit: int) -> int:
        """An unsigned number from 1 to ``limit``."""
        value = self._take(name, "u")
        if value is None:
            return default
        if not isinstance(value, int) or not 1 <= value <= limit:
            raise InvalidRequest(f"{self.where}.{name}: must be from 1 to {limit}")
        return value

    def finish(self) -> None:
        """Refuse what nobody asked for."""
        if self._left:
            # The key is the caller's text: only a plain one is repeated.
            key = min(self._left)
            shown = key if re.fullmatch(r"[a-z_]{1,32}", key) else "a key"
            raise InvalidRequest(f"{self.where}: {shown} is not known here")


def vm_name(fields: Fields) -> VmName:
    """The required option ``vm``."""
    name = fields.text("vm")
    if name is None:
        raise InvalidRequest(f"{fields.where}.vm: is missing")
    if not 0 < len(name.encode(errors="replace")) <= _VM_NAME_BYTES:
        raise InvalidRequest(f"{fields.where}.vm: must have from 1 to {_VM_NAME_BYTES} bytes")
    if any(unicodedata.category(character) in _REFUSED_CATEGORIES for character in name):
        raise InvalidRequest(f"{fields.where}.vm: has control or formatting characters")
    return VmName(name)


def mac(fields: Fields) -> Mac | None:
    """The optional field ``mac``: unicast, not zero, lower case within."""
    text = fields.text("mac")
    if text is None:
        return None
    address = _lower_mac(text)
    if not _MAC.fullmatch(address):
        raise InvalidRequest(f"{fields.where}.mac: must look like 52:54:00:12:34:56")
    if int(address[:2], 16) & 1 or address == "00:00:00:00:00:00":
        raise InvalidRequest(f"{fields.where}.mac: must be a unicast address")
    if address.startswith(PORT_PREFIX):
        raise InvalidRequest(f"{fields.where}.mac: {PORT_PREFIX} is for the host's end of a TAP")
    return Mac(address)


def unicast_mac(text: str) -> Mac | None:
    """A MAC address that a guest may have; None: it is none."""
    address = _lower_mac(text)
    unicast = _MAC.fullmatch(address) and not int(address[:2], 16) & 1
    if not unicast or address == "00:00:00:00:00:00" or address.startswith(PORT_PREFIX):
        return None
    return Mac(address)


def _lower_mac(text: str) -> str:
    # Length first: lower() of some non-ASCII characters is ASCII, so the match is on the result.
    return text.lower() if len(text) == 17 and text.isascii() else ""


def network_name(fields: Fields) -> NetworkName | None:
    """The optional field ``network``."""
    text = fields.text("network")
    if text is None:
        return None
    if not _NETWORK.fullmatch(text):
        raise InvalidRequest(
            f"{fields.where}.network: must have 1 to 11 of a-z, 0-9 and _, a letter first"
        )
    return NetworkName(text)


def bridge_name(fields: Fields) -> BridgeName | None:
    """The optional field ``bridge``: an interface name that the kernel would take as it is."""
    text = fields.text("bridge")
    if text is None:
        return None
    if not is_interface_name(text):
        raise InvalidRequest(f"{fields.where}.bridge: is not the name of an interface")
    return BridgeName(text)


def device_name(fields: Fields) -> DeviceName:
    """The required field ``device``: as of a bridge."""
    text = fields.text("device")
    if text is None:
        raise InvalidRequest(f"{fields.where}.device: is missing")
    if not is_interface_name(text):
        raise InvalidRequest(f"{fields.where}.device: is not the name of an interface")
    return DeviceName(text)


def tap_name(fields: Fields) -> TapName | None:
    """The optional field ``name``: what people call a TAP; as strict as an interface's own."""
    text = fields.text("name")
    if text is None:
        return None
    if not is_interface_name(text):
        raise InvalidRequest(f"{fields.where}.name: is not the name of an interface")
    return TapName(text)


def grant_of(fields: Fields, kind: str) -> str:
    """The required field that names a grant of the same lease, and is called by its kind: ``tap``.

    :return: the grant's id: ``tap0``.
    """
    text = fields.text(kind)
    if text is None:
        raise InvalidRequest(f"{fields.where}.{kind}: is missing")
    if not re.fullmatch(kind + r"[0-9]{1,5}", text):
        raise InvalidRequest(f"{fields.where}.{kind}: must be the id of a grant, like {kind}0")
    return text


def is_network_name(text: str) -> bool:
    """Whether broker.toml may call a network this: its bridge is ``svn_`` and the name."""
    return _NETWORK.fullmatch(text) is not None


def is_interface_name(text: str) -> bool:
    """Whether the kernel would take it, and a rule file, a path and a log may hold it.

    Narrower than dev_valid_name() in net/core/dev.c: no ``%`` (a template there), no ``:``, no
    leading dash or dot, ASCII only, at most 15 bytes, so that nothing is ever cut short.
    """
    return _IFNAME.fullmatch(text) is not None


def shown(name: str) -> str:
    """A name for a prompt: letters, digits and a few marks stay, the rest become "?".

    An agent may read markup, and polkit reads ``$(``; neither survives.
    """
    return _only(name, " -_.,:+@#")


def worded(name: str) -> str:
    """The same for what people call a device, which often has something in brackets."""
    return _only(name, " -_.,:+@#()[]/'")


def _only(name: str, marks: str) -> str:
    return "".join(c if c.isalnum() or c in marks else "?" for c in name)


def legible(text: str, limit: int) -> str:
    """A text of the host's (a model, a mount point, a label) as one line for people.

    Users choose some of them. Controls, formats and odd spaces become "?" (str.isprintable() is the
    same list as above, and spaces other than " "), and so does the "$" of polkit's ``$(``.
    """
    line = "".join(c if c.isprintable() else "?" for c in text[: limit + 1]).replace("$(", "?(")
    return line if len(text) <= limit else line[: limit - 3] + "..."
