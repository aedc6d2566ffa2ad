# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest of one sector: says so on its console when it runs, and powers off when it is told to.

For tests that need a machine that runs, and nothing that runs in it: a Debian kernel takes most of
a minute to boot in an emulated machine, this takes what SeaBIOS takes. Told to is a key on its
console, or the power button, which is what ``sessionvirt run`` presses when it is asked to end.
"""

from __future__ import annotations

__all__ = ["POWER_OFF", "RUNNING", "boot_sector"]

#: What it says on its console.
RUNNING = "the small machine runs"
#: What makes it power off, typed on its console.
POWER_OFF = "q"


def boot_sector() -> bytes:
    """The first sector: real mode, loaded at 0x7c00.

    It writes :data:`RUNNING` to COM1, then looks at each tick of the clock for the power button and
    for a key: the UART has it, or the BIOS, which takes it from there where it has its own console
    on the line (SeaBIOS' sercon). ACPI's registers are where SeaBIOS puts them for QEMU's q35 and
    pc: status 0x600, enable 0x602, control 0x604. Bit 8 is the button (ACPI 6, 4.8.3.1); S5 is type
    0, and 0x2000 is SLP_EN.
    """
    code = bytes.fromhex(
        "fa 31c0 8ed8"  # cli; xor ax, ax; mov ds, ax
        "be4b7c"  # mov si, text
        "ba0206 b80001 ef"  # mov dx, 0x602; mov ax, 0x100; out dx, ax
        "ac 84c0 7406"  # say: lodsb; test al, al; jz tick
        "baf803 ee ebf5"  # mov dx, 0x3f8; out dx, al; jmp say
        "fb f4"  # tick: sti; hlt
        "ba0006 ed f6c401 751d"  # mov dx, 0x600; in ax, dx; test ah, 1; jnz off
        "b401 cd16 7408"  # mov ah, 1; int 0x16; jz uart
        "b400 cd16 3c71 740f"  # mov ah, 0; int 0x16; cmp al, 'q'; je off
        "bafd03 ec a801 74df"  # uart: mov dx, 0x3fd; in al, dx; test al, 1; jz tick
        "b2f8 ec 3c71 75d8"  # mov dl, 0xf8; in al, dx; cmp al, 'q'; jne tick
        "ba0406 b80020 ef"  # off: mov dx, 0x604; mov ax, 0x2000; out dx, ax
        "ebfe"  # jmp here
    )
    assert len(code) == 0x4B
    sector = code + RUNNING.encode() + b"\r\n\0"
    return sector.ljust(510, b"\0") + b"\x55\xaa"
