# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which VFIO driver each device of a group goes to: the one made for its model, or vfio-pci.

A request may name the driver of its device, and only one of these two: what a caller says is
compared, and never written anywhere. Who names vfio-pci gets it for what goes along as well.

Of a module that is not loaded the module's name stands for the driver, as it is for most; then
:meth:`Drivers.to_load` has it, and nothing is done before it was waited for. One that did not come
is nobody's choice until it is there: between a prompt and the deed nothing changes by itself.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .errors import DeviceUnsafe, NotSupported
from .vfio import DRIVER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .pci import Function
    from .variants import Variants
    from .vfio import Vfio

__all__ = ["Drivers", "is_driver_name", "same"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,54}")


def is_driver_name(text: str) -> bool:
    """Whether a caller may name a driver so."""
    return _NAME.fullmatch(text) is not None


def same(one: str, other: str) -> bool:
    """Whether two names mean one driver: a module's has no dashes."""
    return one.replace("-", "_") == other.replace("-", "_")


class Drivers:
    """The choice. Looks at what is loaded; loads nothing."""

    def __init__(self, variants: Variants) -> None:
        self._variants = variants

    def variant(self, one: Function) -> str:
        """The module with a driver that is made for a function; empty: none."""
        return self._variants.module(one)

    def bound(self, one: Function, asked: str) -> str:
        """The driver that a device has already, and keeps.

        :param asked: what the request for it says; empty: nothing, or it only goes along.
        :raise DeviceUnsafe: another one.
        """
        if asked and not same(asked, one.driver):
            raise DeviceUnsafe(f"{one.address} has the driver {one.driver}, and not {asked}")
        return one.driver

    def choose(self, one: Function, asked: str, vfio: Vfio, *, general: bool) -> str:
        """The driver that a device is to have.

        :param asked: likewise.
        :param general: vfio-pci, whatever there is.
        :raise NotSupported: it is not for this device, or does not come.
        """
        module = self.variant(one)
        variant = vfio.variant(module) if module else ""
        if asked and not any(same(asked, known) for known in (DRIVER, module, variant)):
            known = f"{DRIVER} or {variant or module}" if module else DRIVER
            raise NotSupported(f"driver: {one.address} can have {known}, and not {asked}")
        if general or not module:
            return DRIVER
        if variant or not vfio.is_missing(module):
            return variant or module
        if asked:
            raise NotSupported(
                f"driver: the module {module} is not loaded, and udev did not load it;"
                f" an administrator can: modprobe {module}"
            )
        return DRIVER

    def to_load(self, endpoints: Iterable[Function], vfio: Vfio) -> list[tuple[str, str]]:
        """Modules that these want, and that are not there, each with the address of one of them."""
        wanted = {self.variant(one): one.address for one in endpoints}
        return [
            (address, module)
            for module, address in wanted.items()
            if module and not vfio.variant(module) and vfio.may_load(module)
        ]
