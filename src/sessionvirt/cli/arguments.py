# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the command line may say. Nothing here does anything."""

from __future__ import annotations

import argparse

from sessionvirt import __version__

__all__ = ["parser"]

_EPILOG = """\
exit status:
  0 done; the guest powered off    5 a prompt is needed and none can be shown
  1 failed                         6 held by somebody else, or a limit is reached
  2 wrong usage or definition      7 refused: the host would suffer
  3 not found                      8 the broker is not available
  4 denied or dismissed            9 the guest panicked, or QEMU died
  124 time is up                   130 ended by ^C, 143 by SIGTERM
"""


#: ``8080:80``, ``127.0.0.1:5000-5009:5000-5009/udp``.
_PORTS = "[ADDRESS:]HOST[-HOST]:GUEST[-GUEST][/udp]"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="sessionvirt",
        description="Run virtual machines as an ordinary user.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"sessionvirt {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)
    run = verbs.add_parser(
        "run",
        help="run a virtual machine in the foreground",
        description="Run a virtual machine until it powers off. Its console is on this terminal; "
        "^C asks it to power down, a second ^C (or 10 seconds) ends it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_guest(run)
    _add_run(run)
    plan = verbs.add_parser(
        "plan",
        help="show what running it would change on this host",
        description="Show what 'run' would change on this host, in order, what undoes it, and "
        "whether somebody would be asked. Changes nothing. Exit status 4: it would be denied.",
    )
    _add_guest(plan)
    plan.add_argument("-v", "--verbose", action="store_true", help="and QEMU's command line")
    _add_json(plan)
    text = "list the networks and bridges that machines can join, or show who is on one"
    _add_networks(verbs.add_parser("networks", help=text, description=_sentence(text)))
    text = "list the host's PCI devices, and whether a machine can have them"
    _add_devices(verbs.add_parser("devices", help=text, description=_sentence(text)))
    text = "end a machine, also another user's, and take back what it has of this host"
    _add_reclaim(verbs.add_parser("reclaim", help=text, description=_sentence(text)))
    text = "have ports of this host lead to a running machine"
    _add_publish(verbs.add_parser("publish", help=text, description=_sentence(text)))
    text = "have ports of this host lead to a running machine no longer"
    _add_unpublish(verbs.add_parser("unpublish", help=text, description=_sentence(text)))
    text = "show or change how much a running machine receives and sends in a second"
    _add_limit(verbs.add_parser("limit", help=text, description=_sentence(text)))
    text = "list what your running machines hold of this host"
    _add_json(verbs.add_parser("leases", help=text, description=_sentence(text)))
    text = "check what this host can do, and say what to do where it cannot"
    _add_doctor(verbs.add_parser("doctor", help=text, description=_sentence(text)))
    text = "show or change what a running machine may send and receive"
    _add_filter(verbs.add_parser("filter", help=text, description=_sentence(text)))
    return top


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _add_json(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--json", action="store_true", help="for programs: stable, versioned keys")


def _add_networks(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "sessionvirt networks [-h] [--json | --names TYPE] [--watch] [NAME]\n"
        "       sessionvirt networks import FILE\n"
        "       sessionvirt networks export NAME"
    )
    parser.add_argument(
        "which",
        nargs="?",
        metavar="NAME",
        help="show this one, and who is on it; before a second word: 'import' prints a file of "
        "libvirt's network XML as text for broker.toml, 'export' a network as such XML",
    )
    parser.add_argument(
        "what",
        nargs="?",
        metavar="FILE",
        help="what to import ('-': standard input), or the name of what to export",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="look again every second, until q or ^C; all without NAME",
    )
    form = parser.add_mutually_exclusive_group()
    _add_json(form)
    form.add_argument(
        "--names",
        choices=("network", "bridge", "direct"),
        metavar="TYPE",
        help="only the names of what is a 'network', a 'bridge' or 'direct', for completion by a "
        "shell",
    )


def _add_reclaim(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "lease",
        metavar="LEASE",
        help="as 'leases' lists it: the beginning of its name is enough, or the machine's name",
    )
    parser.add_argument(
        "--no-ask-password", action="store_true", help="never ask; fail where a prompt is needed"
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("machine", metavar="VM", help="its name, or its lease as 'leases' lists it")


def _add_publish(parser: argparse.ArgumentParser) -> None:
    _add_machine(parser)
    parser.add_argument("ports", nargs="+", metavar=_PORTS, help="as --publish of 'run'")
    parser.add_argument(
        "--interface",
        metavar="N|MAC",
        help="the machine's interface, by its number from 0 or its MAC address (default: the first "
        "on a managed network)",
    )
    parser.add_argument(
        "--no-ask-password", action="store_true", help="never ask; fail where a prompt is needed"
    )


def _add_unpublish(parser: argparse.ArgumentParser) -> None:
    _add_machine(parser)
    parser.add_argument(
        "ports", nargs="+", metavar="[ADDRESS:]PORT[/udp]", help="the first of those published"
    )


def _add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "vm", metavar="VM", help="the machine's name, or the beginning of its lease's"
    )
    parser.add_argument(
        "--interface",
        metavar="N|MAC",
        help="which one, counted from 0, or by its MAC address (default: the only one)",
    )
    for way, words in (("inbound", "receives"), ("outbound", "sends")):
        parser.add_argument(
            f"--{way}",
            metavar="RATE[,peak=RATE][,burst=SIZE]",
            help=f"what it {words}: bytes a second, like 10M, or bits, like 80Mbit, or 'none'; it "
            "stays as it is where this is left out",
        )
    parser.add_argument(
        "--no-ask-password", action="store_true", help="never ask; fail where a prompt is needed"
    )
    _add_json(parser)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "vm",
        nargs="?",
        metavar="VM",
        help="of machines that run only this one: which rule of another firewall stops its packets",
    )
    _add_json(parser)
    trace = parser.add_argument_group("with --trace", "An administrator is asked.")
    trace.add_argument(
        "--trace",
        action="store_true",
        help="follow what VM sends to an address through the rules of this host, and say where it "
        "ends; have VM send something meanwhile",
    )
    trace.add_argument("--to", metavar="ADDRESS", help="the IP address that VM sends to")
    trace.add_argument("--port", type=_port, default=0, metavar="N", help="only to this port there")
    trace.add_argument(
        "--seconds",
        type=_minute,
        default=10,
        metavar="S",
        help="for so long (default: 10; up to 60)",
    )
    trace.add_argument(
        "--no-ask-password", action="store_true", help="never ask; fail where a prompt is needed"
    )


def _add_devices(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    _add_json(form)
    form.add_argument(
        "--names",
        action="store_true",
        help="only the addresses of what can be given to a machine, for completion by a shell",
    )


def _add_guest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "guest", nargs="?", metavar="GUEST", help="a libvirt domain XML file, or a disk image"
    )
    parser.add_argument(
        "--strict", action="store_true", help="refuse a definition that is not understood fully"
    )
    parser.add_argument(
        "--with-group",
        action="store_true",
        help="with a PCI device, also one of an XML file, may go all of its isolation group",
    )
    _add_lists(parser.add_argument_group("filters", "Of each network and bridge interface."))
    parser.add_argument(
        "--publish",
        action="append",
        metavar=_PORTS,
        help="ports of this host that lead to the machine's first interface on a managed network, "
        "or in user mode; may be given several times",
    )
    quick = parser.add_argument_group("without XML", "These describe the machine of a disk image.")
    quick.add_argument("--name", help="the machine's name (default: the file's)")
    quick.add_argument("--memory", type=_positive, metavar="MIB", help="in MiB (default: 1024)")
    quick.add_argument("--vcpus", type=_positive, metavar="N", help="processors (default: 1)")
    network = quick.add_mutually_exclusive_group()
    network.add_argument(
        "--network",
        metavar="NAME[,queues=N][,isolated]",
        help="a managed network, 'user' (default), or 'none'",
    )
    network.add_argument(
        "--bridge",
        metavar="BRIDGE[,vlan=ID][,queues=N][,isolated]",
        help="a bridge that the administrator permits",
    )
    network.add_argument(
        "--direct",
        metavar="DEVICE[,mode=MODE][,queues=N]",
        help="an interface of this host that the administrator permits, without a bridge; the mode "
        "is 'bridge' (default), 'private' or 'vepa'",
    )
    for way, words in (("inbound", "receives"), ("outbound", "sends")):
        quick.add_argument(
            f"--limit-{way}",
            metavar="RATE[,peak=RATE][,burst=SIZE]",
            help=f"what it {words} in a second, at most: bytes, like 10M, or bits, like 80Mbit",
        )
    quick.add_argument(
        "--pci",
        action="append",
        metavar="ADDRESS",
        help="a PCI device of this host, such as 03:00.0; may be given several times",
    )
    quick.add_argument("--kernel", metavar="FILE", help="boot this kernel instead of the disk")
    quick.add_argument("--initrd", metavar="FILE", help="its initial RAM disk")
    quick.add_argument("--append", metavar="TEXT", help="its command line")


def _add_lists(parser: argparse._ActionsContainer) -> None:
    for name, text in (
        ("--deny-outbound", "what the guest may not begin, such as 10.0.0.0/8 or tcp:25"),
        ("--allow-outbound", "the only things that it may begin"),
        ("--deny-inbound", "what others may not begin with it"),
        ("--allow-inbound", "the only things that they may, such as tcp:22@192.0.2.0/24"),
    ):
        parser.add_argument(name, action="append", metavar="ENTRY", help=f"{text}; repeatable")


def _add_filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "vm", metavar="VM", help="a running machine, or its lease, as 'leases' lists them"
    )
    parser.add_argument(
        "--interface",
        metavar="NUMBER|MAC",
        help="which one, counted from 0, where the machine has several",
    )
    _add_lists(parser)
    parser.add_argument("--none", action="store_true", help="no lists any more")
    _add_json(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="the same as 'plan'")
    parser.add_argument(
        "--console",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the machine's console is on this terminal (default: yes)",
    )
    parser.add_argument(
        "--no-ask-password", action="store_true", help="never ask; fail where a prompt is needed"
    )
    parser.add_argument(
        "--timeout", type=_seconds, metavar="S", help="end the machine after this many seconds"
    )
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-q", "--quiet", action="store_true", help="errors only")
    volume.add_argument("-v", "--verbose", action="store_true", help="and QEMU's command line")
    parser.set_defaults(json=False)


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _port(text: str) -> int:
    number = _positive(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port")
    return number


def _minute(text: str) -> int:
    number = _positive(text)
    if number > 60:
        raise argparse.ArgumentTypeError(f"{text} is more than 60")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number
