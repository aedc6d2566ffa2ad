# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where devices come and go while a machine runs: its free places, and the guest's answer.

To go takes the guest: QEMU can only ask, and the guest may answer later or never. So it is the
event DEVICE_DELETED that has a device given back, whoever waits for it then:
:meth:`Slots.take_out`, or nobody, where its patience had ended or the guest has thrown the device
out by itself.

What this never does: know what a device is, or wait for a guest without a limit.
"""

from __future__ import annotations

import abc
import asyncio
import enum
from typing import TYPE_CHECKING, ClassVar, Final

from sessionvirt.errors import (
    BusyError,
    DeadlineError,
    NotFoundError,
    QemuError,
    SessionvirtError,
    StateError,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from sessionvirt.model.devices import Device
    from sessionvirt.qemu.pci import Place
    from sessionvirt.qemu.qmp import Event, Monitor

__all__ = ["Plugged", "Slots"]

#: What QEMU says to a second device_del (qdev-monitor.c); the first is still good.
_UNDER_WAY: Final = "already in the process of unplug"
#: And to one for a device that stands on a bus of the start.
_FIXED: Final = "does not support hotplugging"


class _Answer(enum.Enum):
    """What became of a device that was asked to go."""

    GONE = enum.auto()
    REFUSED = enum.auto()
    ENDED = enum.auto()


class Plugged(abc.ABC):
    """One device, from before QEMU has it until QEMU has it no more.

    :param name: QEMU's id.
    :param other: what else people know it by: an address.
    :param place: None: one of the start, whose place is not given out again.
    """

    #: What to do where QEMU does not take one.
    REFUSED: ClassVar[str]

    def __init__(self, name: str, other: str, place: Place | None) -> None:
        self.id = name
        self.other = other
        self.place = place
        self.there = place is None
        self.answer: asyncio.Future[_Answer] | None = None
        self.returning: asyncio.Task[None] | None = None

    @abc.abstractmethod
    def gone(self) -> asyncio.Task[None]:
        """QEMU has it no more: begin to give back what belongs to it."""

    def say(self, answer: _Answer) -> None:
        """Tell whoever waits."""
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(answer)


class Slots:
    """The devices of one run that may go, and the places for more.

    :param free: where a device can be plugged in.
    """

    def __init__(self, monitor: Monitor, free: Sequence[Place]) -> None:
        self._monitor = monitor
        self._free = list(free)
        self._plugged: dict[str, Plugged] = {}

    def __iter__(self) -> Iterator[Plugged]:
        """Those that QEMU has, or is about to have."""
        return iter(self._plugged.values())

    def found_at_start(self, plugged: Plugged) -> None:
        """Note one that came with the start."""
        self._plugged[plugged.id] = plugged

    def choose(self, device: Device) -> Place:
        """A place for it: the one that its element names, or the first.

        :raise DefinitionError: the one that it names is not free.
        :raise BusyError: none is.
        """
        wanted = device.address
        if wanted is not None:
            key = (wanted.domain, wanted.bus, wanted.slot, wanted.function)
            for place in self._free:
                if key == (0, place.number, place.slot, 0):
                    return place
            wanted.where.refuse(
                f"bus {wanted.bus} slot {wanted.slot:#x} function {wanted.function} of the "
                "running machine is no free place for a device",
                "Write the bus of a free root port and slot 0x00, or leave <address> out.",
            )
        if not self._free:
            raise BusyError(
                "no PCI port of the running machine is free",
                evidence="each device needs one, and ports cannot be added while it runs",
                advice="detach a device that was attached, or define the machine with more ports: "
                "<controller type='pci' index='N' model='pcie-root-port'/>",
            )
        return self._free[0]

    async def plug(self, plugged: Plugged, making: Coroutine[object, object, object]) -> bool:
        """Have QEMU make the device, which it does to the end, also for somebody who is gone.

        :param making: undoes itself where it fails.
        :return: the caller was cancelled, and the device is there.
        :raise QemuError: QEMU does not take it.
        """
        assert plugged.place is not None
        self._free.remove(plugged.place)
        self._plugged[plugged.id] = plugged
        task = asyncio.ensure_future(making)
        cancelled = False
        while not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError:
                cancelled = True
        error = task.exception()
        if error is None:
            plugged.there = True
            return cancelled
        if self._plugged.pop(plugged.id, None) is not None:
            self._release_place(plugged)
        if cancelled:
            raise asyncio.CancelledError
        if not isinstance(error, SessionvirtError):
            raise error
        raise QemuError(
            f"QEMU does not take {plugged.other}",
            evidence=str(error),
            advice=plugged.REFUSED,
        ) from error

    async def take_out(self, which: str, patience: float) -> None:
        """Ask the guest to let go of a device, and see it given back.

        :param which: its id, or what else it is known by.
        :param patience: seconds for the guest.
        :raise NotFoundError: the machine has no such device.
        :raise DeadlineError: the guest has not let go of it. It goes back when it does.
        :raise QemuError: the guest or QEMU refuses.
        :raise SessionvirtError: it could not be given back.
        """
        plugged = self._find(which)
        if plugged.answer is None or plugged.answer.done():
            plugged.answer = asyncio.get_running_loop().create_future()
        answer = plugged.answer
        try:
            await self._monitor.execute("device_del", {"id": plugged.id})
        except QemuError as error:
            if not answer.done() and _UNDER_WAY not in error.cause:
                raise _worded(plugged, error) from error
        await asyncio.wait((answer,), timeout=patience)
        if not answer.done():
            raise DeadlineError(
                f"the guest has not let go of {plugged.id}",
                evidence=f"it was asked to, and did not within {patience:g} s; {plugged.other} is "
                "still its own",
                advice="a guest that is paused, is booting or has no driver for hot-plug does not "
                "answer; when it does, the device goes back. The end of the machine frees it, too",
            )
        match answer.result():
            case _Answer.REFUSED:
                raise QemuError(
                    f"the guest refuses to let go of {plugged.id}",
                    evidence="QEMU reported DEVICE_UNPLUG_GUEST_ERROR",
                    advice="see in the guest what uses the device; its kernel's log may tell",
                )
            case _Answer.ENDED:
                raise StateError(f"QEMU ended before the guest had let go of {plugged.id}")
            case _Answer.GONE:
                assert plugged.returning is not None
                await asyncio.shield(plugged.returning)

    def _find(self, which: str) -> Plugged:
        there = [one for one in self._plugged.values() if one.there]
        for one in there:
            if which in (one.id, one.other):
                return one
        had = ", ".join(f"{one.id} ({one.other})" for one in there)
        raise NotFoundError(
            f"the machine has no host device or interface {which}",
            evidence=f"it has {had or 'none'}",
            advice="name one by its id, by its address on the host such as 0000:03:00.0, or by "
            "its MAC address",
        )

    def see(self, event: Event) -> None:
        """Note an event of QEMU."""
        name = event.text("device")
        match event.name:
            case "DEVICE_DELETED":
                if (plugged := self._plugged.pop(name, None)) is not None:
                    self._release_place(plugged)
                    plugged.returning = plugged.gone()
                    plugged.say(_Answer.GONE)
            case "DEVICE_UNPLUG_GUEST_ERROR":
                if name in self._plugged:
                    self._plugged[name].say(_Answer.REFUSED)

    def close(self) -> None:
        """Note that QEMU has ended: nobody waits any more."""
        plugged, self._plugged = self._plugged, {}
        for one in plugged.values():
            one.say(_Answer.ENDED)

    def _release_place(self, plugged: Plugged) -> None:
        if plugged.place is not None:
            self._free.append(plugged.place)
            self._free.sort(key=lambda place: (place.number, place.slot))


def _worded(plugged: Plugged, error: QemuError) -> QemuError:
    if _FIXED not in error.cause:
        return error
    return QemuError(
        f"{plugged.id} cannot go while the machine runs",
        evidence=error.cause,
        advice="on q35 only what stands at a root port can: <model type='e1000e'/> or 'virtio' "
        "for an interface, and no <address> on bus 0",
    )
