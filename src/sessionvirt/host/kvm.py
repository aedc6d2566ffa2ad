# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether KVM really runs guests here, and if not, why.

That ``/dev/kvm`` opens proves little: nested and para-virtual hosts offer a KVM that creates
machines and then runs them not at all, or emulates their kernel one instruction after the other,
hundreds of times slower than TCG (measured with kvm_pvm: 0.8 us for each instruction). So
:func:`probe` makes a machine with one CPU and one page of memory at the reset vector, lets it
count down and halt, and looks at the clock. With KVM in the processor this takes about a
millisecond, nearly all of it for making the machine and unmaking it.

A count, not a benchmark: 2048 steps are some 5 us in hardware and more than 1 ms emulated; the
limit lies at 0.3 ms, and a slow round is repeated, because a busy host may take the CPU away in
the middle.

What this never does: leave a machine or descriptor open, load a module, say "yes" from a file's
mode. It does not guard against a kernel in which KVM_RUN never returns; a signal interrupts it
then.

Source: Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sessionvirt.descriptors import Fd

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator

__all__ = ["DEVICE", "Kvm", "KvmVerdict", "probe"]

DEVICE: Final = "/dev/kvm"

# <linux/kvm.h>; _IO() and _IOW() of type 0xAE.
_GET_API_VERSION: Final = 0xAE00
_CREATE_VM: Final = 0xAE01
_GET_VCPU_MMAP_SIZE: Final = 0xAE04
_CREATE_VCPU: Final = 0xAE41
_SET_TSS_ADDR: Final = 0xAE47
_RUN: Final = 0xAE80
_SET_USER_MEMORY_REGION: Final = 0x4020AE46
_API_VERSION: Final = 12
_EXIT_REASON_OFFSET: Final = 8
_EXIT_HLT: Final = 5

_STEPS: Final = 2048
_ROUNDS: Final = 2
_ROUND_LIMIT: Final = 0.0003  # seconds

_PAGE: Final = 4096
_RESET_PAGE: Final = 0xFFFFF000  # the page that holds the reset vector, 0xFFFFFFF0
_RESET_OFFSET: Final = 0xFF0
# Three pages that old Intel processors need for real mode; anywhere outside the guest's memory.
_TSS_ADDRESS: Final = 0x7FFBD000

_CODE: Final = (
    b"\x66\xb9" + struct.pack("<I", _STEPS)  # mov ecx, STEPS
    + b"\x67\xe2\xfd"  # loop $
    + b"\xf4"  # hlt
    + b"\xeb\xf4"  # jmp to the start: the next KVM_RUN is another round
)  # fmt: skip


_LOG: Final = "the kernel's log may tell why: dmesg | grep -i kvm"


class KvmVerdict(enum.Enum):
    """What :func:`probe` found."""

    USABLE = "usable"
    ABSENT = "absent"
    DENIED = "denied"
    BUSY = "busy"
    BROKEN = "broken"
    EMULATED = "emulated"


@dataclass(frozen=True)
class Kvm:
    """The answer of :func:`probe`.

    :param reason: why it is not usable, one sentence; empty where it is.
    :param advice: what to do about it; may be empty.
    """

    verdict: KvmVerdict
    reason: str = ""
    advice: str = ""

    @property
    def usable(self) -> bool:
        """Whether guests should run under KVM."""
        return self.verdict is KvmVerdict.USABLE


def probe(device: str = DEVICE, *, modules: str = "/sys/module") -> Kvm:
    """Find out whether guests run under KVM on this host.

    :param device: the KVM device node.
    :param modules: sysfs directory of loaded modules.
    """
    try:
        with Fd(os.open(device, os.O_RDWR | os.O_CLOEXEC)) as kvm:
            if os.uname().machine == "x86_64":
                return _run_machine(kvm, modules)
            return _make_machine(kvm)
    except OSError as error:
        return _explain(error, device)


def _explain(error: OSError, device: str) -> Kvm:
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return Kvm(
            KvmVerdict.ABSENT,
            f"{device} does not exist: no KVM in this kernel or processor",
            "turn on virtualization (VT-x, AMD-V) in the firmware, or nesting on the host above",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return Kvm(
            KvmVerdict.DENIED,
            f"no permission to open {device}",
            "add yourself to the group kvm (sudo adduser $USER kvm) and log in again",
        )
    if error.errno == errno.EBUSY:
        return Kvm(
            KvmVerdict.BUSY,
            "another hypervisor uses the processor's virtualization",
            "stop VirtualBox, VMware or the like",
        )
    return Kvm(KvmVerdict.BROKEN, f"KVM is there and does not run a guest: {error.strerror}", _LOG)


def _make_machine(kvm: Fd) -> Kvm:
    """Elsewhere than on x86: that a machine and a CPU can be made is all that is asked."""
    import fcntl

    with Fd(fcntl.ioctl(kvm.fileno(), _CREATE_VM, 0)):
        return Kvm(KvmVerdict.USABLE)


def _run_machine(kvm: Fd, modules: str) -> Kvm:
    import fcntl
    import time

    version = fcntl.ioctl(kvm.fileno(), _GET_API_VERSION, 0)
    if version != _API_VERSION:
        return Kvm(KvmVerdict.BROKEN, f"KVM speaks API version {version}, not {_API_VERSION}", _LOG)
    with _machine(kvm) as (vcpu, state):
        fastest = float("inf")
        for _ in range(_ROUNDS):
            before = time.perf_counter()
            fcntl.ioctl(vcpu.fileno(), _RUN, 0)
            fastest = min(fastest, time.perf_counter() - before)
            (reason,) = struct.unpack_from("=I", state, _EXIT_REASON_OFFSET)
            if reason != _EXIT_HLT:
                return Kvm(
                    KvmVerdict.BROKEN, f"KVM does not run a guest: exit reason {reason}", _LOG
                )
            if fastest < _ROUND_LIMIT:
                break
    # Intel before Westmere has KVM emulate real mode, where the rounds are; the guest proper is
    # fast.
    if fastest < _ROUND_LIMIT or _lacks_real_mode(modules):
        return Kvm(KvmVerdict.USABLE)
    per_step = fastest / _STEPS * 1e9
    return Kvm(
        KvmVerdict.EMULATED,
        f"this KVM emulates its guests, {per_step:.0f} ns for each instruction: slower than TCG",
        "ask whoever runs the host above for nested virtualization (VT-x, AMD-V)",
    )


def _lacks_real_mode(modules: str) -> bool:
    try:
        with open(f"{modules}/kvm_intel/parameters/unrestricted_guest") as parameter:
            return parameter.read().strip() == "N"
    except OSError:
        return False


@contextlib.contextmanager
def _machine(kvm: Fd) -> Iterator[tuple[Fd, mmap.mmap]]:
    """Make a machine about to execute ``_CODE``; yields its CPU and its ``struct kvm_run``."""
    import ctypes
    import fcntl
    import mmap

    with contextlib.ExitStack() as stack:
        memory = mmap.mmap(-1, _PAGE)
        memory[_RESET_OFFSET : _RESET_OFFSET + len(_CODE)] = _CODE
        # The view pins the mapping: it lives until this frame ends, after the machine.
        view = ctypes.c_char.from_buffer(memory)
        vm = stack.enter_context(Fd(fcntl.ioctl(kvm.fileno(), _CREATE_VM, 0)))
        with contextlib.suppress(OSError):
            fcntl.ioctl(vm.fileno(), _SET_TSS_ADDR, _TSS_ADDRESS)
        region = struct.pack("=IIQQQ", 0, 0, _RESET_PAGE, _PAGE, ctypes.addressof(view))
        fcntl.ioctl(vm.fileno(), _SET_USER_MEMORY_REGION, region)
        vcpu = stack.enter_context(Fd(fcntl.ioctl(vm.fileno(), _CREATE_VCPU, 0)))
        size = fcntl.ioctl(kvm.fileno(), _GET_VCPU_MMAP_SIZE, 0)
        yield vcpu, stack.enter_context(contextlib.closing(mmap.mmap(vcpu.fileno(), size)))
