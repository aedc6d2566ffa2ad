# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest of one sector that lets go of each device that it is asked for, as a real one would.

A guest is asked by ACPI: QEMU raises an interrupt, and the method of the firmware's tables that the
guest's kernel runs reads which slots of which bus are to be emptied, and ends with a write that
empties them (``_EJ0``). This does those reads and that write, at each tick of the clock. What it
leaves out is a kernel with drivers, which would have to be stopped before.
"""

from __future__ import annotations

__all__ = ["RUNNING", "boot_sector"]

#: What it says on its console, in a line.
RUNNING = "x"


def boot_sector() -> bytes:
    """The first sector: real mode, loaded at 0x7c00.

    The registers are where QEMU has them for q35 (docs/specs/acpi_pci_hotplug.rst and
    include/hw/acpi/pcihp.h: at 0xcc0): 0x4 which slots are to be emptied, 0x8 what empties them,
    0x10 which bus is meant.
    """
    code = bytes.fromhex(
        "b078 baf803 ee b00a ee"  # mov al, 'x'; mov dx, 0x3f8; out dx, al; mov al, '\n'; out dx, al
        "fb f4"  # tick: sti; hlt
        "6631db"  # xor ebx, ebx
        "6689d8 bad00c 66ef"  # bus: mov eax, ebx; mov dx, 0xcd0; out dx, eax
        "bac40c 66ed"  # mov dx, 0xcc4; in eax, dx
        "6685c0 7405"  # test eax, eax; jz next
        "bac80c 66ef"  # mov dx, 0xcc8; out dx, eax
        "43 83fb20 72e3"  # next: inc bx; cmp bx, 32; jb bus
        "ebdc"  # jmp tick
    )
    assert len(code) == 0x2D
    return code.ljust(510, b"\0") + b"\x55\xaa"
