# SPDX-License-Identifier: LGPL-2.1-or-later
"""README.rst as a list of things to do: its literal blocks, in order, under their headings.

Commands are taken as they stand, with continued lines joined; nothing is left out here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Block", "blocks", "bootable"]

#: Loads a kernel from an ext2 file system: the one that Debian has as a small package.
EXTLINUX = "extlinux"


@dataclass(frozen=True)
class Block:
    """A literal block.

    :param language: of a code block; empty: the block follows a paragraph that ends with "::".
    """

    section: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Its lines, continued ones joined."""
        joined = re.sub(r"\\\n\s*", "", self.text)
        return [line for line in joined.splitlines() if line.strip()]


def blocks(page: Path) -> list[Block]:
    """Every literal block of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    section, number = "", 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if number < len(lines) and re.fullmatch(r"([-=~])\1+", lines[number]) and line.strip():
            section = line
        code = re.fullmatch(r"\.\. code-block:: (\w+)", line)
        if code or line.endswith("::"):
            held = []
            while number < len(lines) and (lines[number][:1] == " " or not lines[number]):
                held.append(lines[number])
                number += 1
            text = textwrap.dedent("\n".join(held)).strip("\n")
            found.append(Block(section, code[1] if code else "", text))
    return found


def bootable(scratch: Path, kernel: Path, initrd: Path, line: str) -> Path:
    """A raw disk that the BIOS boots: a Linux kernel with its command line.

    :param scratch: where it is made.
    """
    tree, image, mounted = scratch / "tree", scratch / "bootable", scratch / "mounted"
    for directory in (tree, mounted):
        directory.mkdir(exist_ok=True)
    shutil.copy(kernel, tree / "vmlinuz")
    shutil.copy(initrd, tree / "initrd")
    entry = ("kernel /vmlinuz", "initrd /initrd", f"append {line}")
    configuration = ["default guest", "prompt 0", "label guest", *entry]
    (tree / "extlinux.conf").write_text("\n".join(configuration) + "\n")
    size = kernel.stat().st_size + initrd.stat().st_size + (4 << 20)
    run("mke2fs", "-q", "-t", "ext2", "-d", tree, image, f"{size >> 10}k")
    run("mount", "-o", "loop", image, mounted)
    try:
        run(EXTLINUX, "--install", mounted)
    finally:
        run("umount", mounted)
    return image


def run(*argv: str | Path) -> None:
    """Run a command of root's."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv[0]}: {done.stderr}"
