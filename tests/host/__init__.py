# SPDX-License-Identifier: LGPL-2.1-or-later
"""The test host: a Debian 13 with systemd and an IOMMU, in QEMU, and the tests that run inside.

=================  ==========================================================================
``recipe.py``      what the host is made of, as data, and its hash
``build.py``       the root file system, its image, made once and kept
``emulator.py``    a QEMU that has the devices
``kernel.py``      Debian's kernel, or one with IOMMUFD
``board.py``       the machine as QEMU's argv: which devices in which IOMMU groups
``channel.py``     frames on a virtio-serial port: commands in, output and exit status out
``agent.py``       the guest's end of it
``connection.py``  the outside's end: commands, files
``machine.py``     one running host: its QEMU, its boot, its end
``container.py``   the same disk in a container: for writing tests quickly
``install.py``     the packages, the tests and the tiny guest, put into it
``terminal.py``    a shell in it on the developer's terminal
``__main__.py``    ``./dev host``
``forward.py``     pytest here, tests there: one boot for all of them
``inside/``        what runs in the host: the tests, their fixtures and the guard
=================  ==========================================================================
"""
