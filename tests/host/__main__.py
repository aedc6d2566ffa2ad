# SPDX-License-Identifier: LGPL-2.1-or-later
"""``./dev host``: a Debian 13 with systemd and an IOMMU, and the packages of this checkout in it.

Without a host of that name running, one is booted, and is gone when the command has ended; a host
that runs already (``start``, or ``./dev host`` on another terminal) is used and left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from host import container, install, kernel, machine
from host.build import BuildError, built
from host.connection import HostError
from host.emulator import emulator
from host.terminal import attach
from lab.debs import DebError
from lab.guest import GuestError
from sessionvirt.host.kvm import probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHELL = ("/bin/bash", "--login")


def say(sentence: str) -> None:
    """Progress is no output of the command that is run."""
    print(f"dev: {sentence}", file=sys.stderr, flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="./dev host", description=__doc__)
    parser.add_argument("--name", default="host", help="which host, where several run")
    parser.add_argument(
        "--kernel", choices=kernel.KERNELS, default="debian", help="iommufd: with VFIO_DEVICE_CDEV"
    )
    parser.add_argument(
        "--bare", action="store_true", help="do not install the packages of this checkout"
    )
    parser.add_argument(
        "--container", action="store_true", help="the same disk at native speed, no devices; start"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    verbs.add_parser("shell", help="a shell in the host, as root; what happens without a verb")
    run = verbs.add_parser("run", help="run a command in the host; its exit status is ours")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    verbs.add_parser("start", help="boot a host that stays until it is stopped")
    verbs.add_parser("stop", help="end it, as if the power failed")
    verbs.add_parser("tests", help="copy the tests of the checkout into it again")
    verbs.add_parser("console", help="what the console of the running host said")
    shot = verbs.add_parser("screenshot", help="the host's screen as a picture (PNG)")
    shot.add_argument("file", type=Path)
    parsed = parser.parse_args(arguments)
    if parsed.verb == "run":
        if parsed.command[:1] == ["--"]:
            del parsed.command[0]
        if not parsed.command:
            parser.error("run needs a command: ./dev host run -- COMMAND")
    return parsed


@contextlib.contextmanager
def host_of(options: argparse.Namespace) -> Iterator[machine.Machine]:
    """The host that runs, or one for as long as this lasts."""
    if here := machine.running(options.name):
        yield here
        return
    with machine.boot(_parts(options), options.name, say, kvm=_kvm()) as one:
        _furnish(one, options)
        yield one


def _parts(options: argparse.Namespace) -> machine.Parts:
    return kernel.chosen(built(say), options.kernel, say), emulator(say)


def _kvm() -> bool:
    return probe().usable


def _furnish(one: machine.Machine, options: argparse.Namespace) -> None:
    if not options.bare:
        with one.connect() as host:
            install.furnish(host, say)


def shell(options: argparse.Namespace) -> int:
    with host_of(options) as one, one.connect() as host:
        return attach(host, SHELL)


def run(options: argparse.Namespace) -> int:
    with host_of(options) as one, one.connect() as host:
        return attach(host, options.command)


def start(options: argparse.Namespace) -> int:
    if options.container:
        one = container.start(built(say), options.name)
    else:
        one = machine.start(_parts(options), options.name, kvm=_kvm(), stays=True)
    try:
        say(f"up after {one.wait_until_up(say):.0f} s")
        _furnish(one, options)
    except BaseException:
        one.end()
        raise
    say(f"{options.name!r} stays until: ./dev host --name {options.name} stop")
    return 0


def _running(options: argparse.Namespace) -> machine.Machine:
    one = machine.running(options.name)
    if one is None:
        raise HostError(f"no test host {options.name!r} is running; ./dev host start boots one")
    return one


def stop(options: argparse.Namespace) -> int:
    _running(options).end()
    return 0


def tests(options: argparse.Namespace) -> int:
    with _running(options).connect() as host:
        install.put_tests(host)
    return 0


def console(options: argparse.Namespace) -> int:
    print("\n".join(_running(options).console()))
    return 0


def screenshot(options: argparse.Namespace) -> int:
    with host_of(options) as one:
        one.monitor("screendump", filename=os.path.abspath(options.file), format="png")
    return 0


VERBS: dict[str | None, Callable[[argparse.Namespace], int]] = {
    None: shell,
    "shell": shell,
    "run": run,
    "start": start,
    "stop": stop,
    "tests": tests,
    "console": console,
    "screenshot": screenshot,
}


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        return VERBS[options.verb](options)
    except (BuildError, DebError, GuestError, HostError) as error:
        print(f"dev: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
