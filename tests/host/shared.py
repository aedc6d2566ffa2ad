# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one test host of a pytest run: booted when it is first asked for, ended after its last test.

``SESSIONVIRT_TESTHOST`` names a running one to use instead, which is left as it is.
"""

from __future__ import annotations

import contextlib
import os

import pytest

from host import install, kernel
from host import machine as machines
from host.build import BuildError, built
from host.connection import HostError
from host.emulator import emulator
from sessionvirt.host.kvm import probe

__all__ = ["Shared", "prepare", "say"]

VARIABLE = "SESSIONVIRT_TESTHOST"


def say(sentence: str) -> None:
    """Progress, past pytest's capture: minutes of nothing look like a hang."""
    with contextlib.suppress(OSError), open("/dev/stderr", "w", encoding="utf-8") as stream:
        stream.write(f"\n{sentence}" if os.environ.get("CI") == "true" else f"\r\x1b[K{sentence}")


def prepare() -> None:
    """Build what a host is booted from; it needs the network, which tests have not.

    :raise pytest.UsageError: it cannot be built.
    """
    if os.environ.get(VARIABLE):
        return
    try:
        built(say)
        emulator(say)
    except BuildError as error:
        raise pytest.UsageError(str(error)) from error


class Shared:
    """The host, once somebody has asked for it. :meth:`close` ends what was booted."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._machine: machines.Machine | None = None

    def machine(self) -> machines.Machine:
        """It, with the packages and the tests of this checkout in it.

        :raise HostError: the named one does not run, or ours does not boot.
        :raise BuildError: what it is booted from cannot be built.
        """
        if self._machine is None:
            self._machine = self._named() if os.environ.get(VARIABLE) else self._booted()
        return self._machine

    @staticmethod
    def _named() -> machines.Machine:
        name = os.environ[VARIABLE]
        one = machines.running(name)
        if one is None:
            raise HostError(f"no test host {name!r} is running; ./dev host --name {name} start")
        with one.connect() as host:
            install.put_tests(host)
        return one

    def _booted(self) -> machines.Machine:
        parts = (kernel.chosen(built(say), "debian", say), emulator(say))
        name = f"pytest-{os.getpid()}"
        one = self._stack.enter_context(machines.boot(parts, name, say, kvm=probe().usable))
        with one.connect() as host:
            install.furnish(host, say)
        return one

    def close(self) -> None:
        """End the host that was booted."""
        self._machine = None
        self._stack.close()
