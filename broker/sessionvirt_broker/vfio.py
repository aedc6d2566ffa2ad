# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's VFIO: drivers that are bound and unbound, nodes, and groups that are held open.

*Closed means closed*: before anything is unbound, the access is withdrawn and the node is opened
here. VFIO lets one process open it, and none while a device of it is bound to an iommufd, so that
as long as somebody has it, in whatever process a descriptor went to, this fails with EBUSY and the
step with :class:`Busy`; nothing is unbound then, for a device that is pulled from under a running
guest may still write to memory. What is opened here is closed at the end of the pass.

A device's descriptor that is not bound yet is not seen so, and the kernel's unbind waits for it
(``vfio_unregister_group_dev()``), with the device's lock. Such a one has a lock of flock(2), which
goes with the last copy, so that :meth:`Vfio.keep_out` finds it. Who unlocks it makes that unbind
wait, in a child (``patience.py``); nothing else is done to the device meanwhile, and no driver has
it before the last copy is closed.

Nothing here asks whether a device may be given; ``hostdev.py`` does, before.

Source: Documentation/driver-api/vfio.rst, Documentation/ABI/testing/sysfs-bus-pci,
Documentation/userspace-api/iommufd.rst, include/uapi/linux/iommufd.h, drivers/vfio/device_cdev.c.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import struct
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from . import sysfs
from .errors import Busy, HostFailure, NotSupported
from .patience import Patience, StuckError
from .pci import PciBus

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DRIVER", "Vfio", "is_vfio"]

log = logging.getLogger(__name__)

DRIVER = "vfio-pci"
#: How long the kernel and udev have for a module, and for a device node.
_PATIENCE_SECONDS = 10.0
_LOOK_AGAIN_SECONDS = 0.005
#: A module that did not come is not waited for again so soon, each time for longer, and then only
#: shortly: anybody may ask, and all wait. One that comes late is found where it is looked for.
_REFUSAL_SECONDS, _LONGEST_REFUSAL_SECONDS = 60.0, 3600.0
_PATIENCE_AGAIN_SECONDS = 0.5

#: struct iommu_option: size, option_id, op, __reserved, object_id, val64.
_OPTION = struct.Struct("=IIHHIQ")
_IOMMU_OPTION, _RLIMIT_MODE, _SET, _BY_PROCESS = 0x3B87, 0, 0, 1
#: A driver's name, such as may be written to driver_override.
_DRIVER = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: A device's name in sysfs, and of its node in /dev/vfio/devices.
_CDEV = re.compile(r"vfio[0-9]{1,9}")


def is_vfio(driver: str) -> bool:
    """Whether a driver hands its devices to user space: vfio-pci, or a variant for some device."""
    return "vfio" in driver


class Vfio:
    """The kernel's VFIO as the steps see it, and the groups that are held open. Worker thread."""

    def __init__(self, sys: Path = Path("/sys"), dev: Path = Path("/dev")) -> None:
        self.sys = sys
        self._dev = dev
        self._patience = Patience()
        self._kept: dict[str, int] = {}
        #: Groups that somebody had, in this pass.
        self._busy: dict[str, str] = {}
        #: Which module was waited for in vain, when it was last, and how often.
        self._in_vain: dict[str, tuple[float, int]] = {}

    # Section: drivers

    def device(self, address: str) -> Path:
        return self.sys / "bus/pci/devices" / address

    def is_still(self, address: str, identity: str) -> bool:
        """Whether the device at an address is the one that was there.

        :raise HostFailure: something is there, and it cannot be looked at: that is not the same as
            gone.
        """
        function = PciBus(self.sys).function(address)
        if function is None and os.path.lexists(self.device(address)):
            raise HostFailure(f"{address} cannot be looked at")
        return function is not None and function.identity == identity

    def driver(self, address: str) -> str:
        """The driver that has it; empty: none."""
        try:
            return (self.device(address) / "driver").readlink().name
        except OSError:
            return ""

    def override(self, address: str) -> str:
        """Which driver alone may bind it; empty: whatever fits.

        :raise StuckError: a driver has the device's lock, and does not let go.
        """
        text = self._patience.read(address, self.device(address) / "driver_override")
        return "" if text == "(null)" else text

    def set_override(self, address: str, driver: str) -> None:
        """The other way.

        :raise StuckError: likewise.
        """
        # PRIVILEGE: CAP_DAC_OVERRIDE.
        self._patience.write(address, self.device(address) / "driver_override", f"{driver}\n")

    def unbind(self, address: str) -> None:
        """Take it from its driver, which may wait for ever; none is in order.

        :raise StuckError: it does not let go.
        """
        if self.driver(address):
            # PRIVILEGE: CAP_DAC_OVERRIDE; the host can use the device no more.
            self._patience.write(address, self.device(address) / "driver/unbind", address)

    def probe(self, address: str) -> None:
        """Have the kernel look for a driver, as ``driver_override`` says.

        :raise StuckError: the driver does not get ready.
        """
        # PRIVILEGE: CAP_DAC_OVERRIDE.
        try:
            self._patience.write(address, self.sys / "bus/pci/drivers_probe", address)
        except StuckError:
            raise
        except OSError:
            # The file says EIO for a driver that failed, too; what counts is who has it now.
            log.warning("no driver was found for %s", address)

    def is_loaded(self) -> bool:
        return (self.sys / "bus/pci/drivers" / DRIVER).is_dir()

    def load(self) -> None:
        """Have the module loaded, by udev, which may; the rule is 70-sessionvirt.rules.

        :raise NotSupported: it does not come.
        """
        # Any PCI device's event will do; a function in slot 0 of bus 0 is always there.
        device = min((self.sys / "bus/pci/devices").iterdir(), default=None)
        if device is None:
            raise NotSupported("this host has no PCI devices")
        if not self._have_loaded(DRIVER, device.name, "vfio", self.is_loaded):
            raise NotSupported(
                f"the driver {DRIVER} is not loaded, and udev did not load it;"
                f" an administrator can: modprobe {DRIVER}"
            )

    def variant(self, module: str) -> str:
        """The driver that a module has for VFIO; empty: the module is not loaded, or has none."""
        prefix = "pci:"
        names = sysfs.listed(f"{self.sys}/module/{module}/drivers")
        found = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        drivers = [name for name in found if is_vfio(name) and _DRIVER.fullmatch(name)]
        return drivers[0] if len(drivers) == 1 else ""

    def load_variant(self, address: str, module: str) -> bool:
        """Have the module loaded that modules.alias has for a device, by udev, from that device.

        The broker cannot say which: the rule goes by the device's own modalias.

        :return: whether it is there.
        """
        came = self._have_loaded(module, address, "variant", lambda: bool(self.variant(module)))
        if not came:
            log.warning("the module %s, made for %s, did not come: %s", module, address, DRIVER)
        return came

    def is_missing(self, module: str) -> bool:
        """Whether a module was waited for in vain, and has not come since."""
        return module in self._in_vain and not self.variant(module)

    def may_load(self, module: str) -> bool:
        """Whether it is worth while to wait for a module; not again so soon."""
        since, times = self._in_vain.get(module, (0.0, 0))
        if not times:
            return True
        pause = min(_REFUSAL_SECONDS * (1 << min(times - 1, 16)), _LONGEST_REFUSAL_SECONDS)
        return time.monotonic() >= since + pause

    def _have_loaded(
        self, module: str, address: str, word: str, is_there: Callable[[], bool]
    ) -> bool:
        if not self.may_load(module):
            return is_there()
        # PRIVILEGE: CAP_DAC_OVERRIDE; an event like those of udevadm trigger(8). It waits for no
        # lock (uevent_store() in drivers/base/core.c).
        path = self.device(address) / "uevent"
        path.write_text(f"change {uuid.uuid4()} SESSIONVIRT={word}", encoding="ascii")
        _, times = self._in_vain.get(module, (0.0, 0))
        if self._wait_for(is_there, _PATIENCE_AGAIN_SECONDS if times else _PATIENCE_SECONDS):
            self._in_vain.pop(module, None)
            return True
        self._in_vain[module] = (time.monotonic(), times + 1)
        return False

    # Section: nodes

    def node(self, group: str) -> Path:
        return self._dev / "vfio" / group

    def wait_for_node(self, group: str) -> None:
        """:raise NotSupported: the kernel makes none."""
        if not self._wait_for(self.node(group).exists, _PATIENCE_SECONDS):
            raise NotSupported("the kernel makes no /dev/vfio/GROUP: it has no VFIO_GROUP")

    def keep_out(self, group: str) -> None:
        """Open the group, so that nobody has it, and nobody gets it until :meth:`let_go`.

        The answer is the same until then: where it is closed between two steps, the later ones
        must not be undone before the earlier ones.

        :raise Busy: a process has it open, or a device of it.
        """
        if group in self._kept:
            return
        if group in self._busy:
            raise Busy(self._busy[group])
        try:
            self._keep_out(group)
        except Busy as error:
            self._busy[group] = str(error)
            raise

    def _keep_out(self, group: str) -> None:
        for member in self._members(group):
            self._not_passed(member)
        try:
            # PRIVILEGE: CAP_DAC_OVERRIDE; opened only, nothing is done with it.
            self._kept[group] = os.open(self.node(group), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            # No endpoint has a VFIO driver then; or somebody has removed the node.
            if any(is_vfio(self.driver(member)) for member in self._members(group)):
                raise HostFailure(
                    f"/dev/vfio/{group} is not there, and VFIO has devices"
                ) from error
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise Busy(f"a process still has IOMMU group {group} open") from error

    def let_go(self) -> None:
        """Close every group that was kept: at the end of each pass of undoing."""
        self._busy.clear()
        while self._kept:
            os.close(self._kept.popitem()[1])

    @property
    def iommufd(self) -> Path:
        return self._dev / "iommu"

    def open_iommufd(self) -> int:
        """An address space of nobody's yet; what is mapped there counts for who maps it.

        :return: the caller's.
        """
        # PRIVILEGE: CAP_DAC_OVERRIDE; the node is root's alone.
        descriptor = os.open(self.iommufd, os.O_RDWR | os.O_CLOEXEC)
        try:
            option = _OPTION.pack(_OPTION.size, _RLIMIT_MODE, _SET, 0, 0, _BY_PROCESS)
            # PRIVILEGE: CAP_SYS_RESOURCE; by default it counts per user, without our process's
            # limit, which LockMemory raises. Only while it is empty, so that nobody sets it back.
            fcntl.ioctl(descriptor, _IOMMU_OPTION, option)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def open_device(self, address: str) -> int:
        """The device itself, locked, so that it is known when the last copy of this is closed.

        :return: the caller's.
        :raise Busy: somebody has it open.
        :raise HostFailure: VFIO does not have it, or it is not the one that its name says.
        """
        name = self._cdev(address)
        node = self._dev / "vfio/devices" / name
        if not name or not self._wait_for(node.exists, _PATIENCE_SECONDS):
            raise HostFailure(f"VFIO has made no node in /dev/vfio/devices for {address}")
        # PRIVILEGE: CAP_DAC_OVERRIDE; the node is root's alone.
        descriptor = os.open(self._dev / "vfio/devices" / name, os.O_RDWR | os.O_CLOEXEC)
        try:
            # Open, it keeps its name: what sysfs says now is about this one.
            number = (self.device(address) / "vfio-dev" / name / "dev").read_text(encoding="ascii")
            opened = os.fstat(descriptor).st_rdev
            if number.strip() != f"{os.major(opened)}:{os.minor(opened)}":
                raise HostFailure(f"/dev/vfio/devices/{name} is not {address}")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise Busy(f"a process still has {address} open") from error
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _not_passed(self, address: str) -> None:
        """:raise Busy: a process has a descriptor of a device that was made here."""
        name = self._cdev(address)
        try:
            if name and (self._dev / "vfio/devices" / name).exists():
                os.close(self.open_device(address))
        except PermissionError:
            # The unit's DeviceAllow: VFIO came after this broker, which passed none of it on, nor
            # did another before it.
            log.debug("%s cannot be opened", name)

    def _cdev(self, address: str) -> str:
        """The name of a device's own node; empty: VFIO does not have it."""
        try:
            names = os.listdir(self.device(address) / "vfio-dev")
        except FileNotFoundError:
            return ""
        return names[0] if len(names) == 1 and _CDEV.fullmatch(names[0]) else ""

    def _members(self, group: str) -> list[str]:
        try:
            return os.listdir(self.sys / "kernel/iommu_groups" / group / "devices")
        except FileNotFoundError:
            return []

    def _wait_for(self, condition: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_AGAIN_SECONDS)  # sysfs tells nobody that a directory has come
        return True
