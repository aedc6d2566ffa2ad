# SPDX-License-Identifier: LGPL-2.1-or-later
"""A broker that misbehaves: ``broker.py ADDRESS MODE``. Prints "ready" when it owns the name.

Its descriptors are those of pipes and of /dev/null; a client cannot tell.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time

from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

BUS_NAME = "org.sessionvirt.Broker1"
YES = Variant("b", value=True)
LEASE = "/org/sessionvirt/Broker1/lease/0123456789abcdef"


def grant(number: int, queues: list[int]) -> dict[str, Variant]:
    return {
        "id": Variant("s", f"tap{number}"),
        "kind": Variant("s", "tap"),
        "fds": Variant("ah", queues),
        "ifname": Variant("s", "svt0123"),
        "ifindex": Variant("u", 42),
        "mac": Variant("s", "52:54:00:01:02:03"),
        "mtu": Variant("u", 1500),
        "network": Variant("s", "default"),
        "ipv4": Variant("as", ["10.213.80.9"]),
        "ipv6": Variant("as", []),
        "vhost": Variant("b", value=False),
        "altname": Variant("s", "svt-1000-vm-0"),
        "dns": Variant("s", "vm.default.internal"),
    }


def pci_grant(number: int, address: str) -> dict[str, Variant]:
    texts = {
        "id": f"pci{number}",
        "kind": "pci",
        "address": address,
        "name": "82574L Gigabit Network Connection",
        "node": "/dev/vfio/6",
        "driver": "vfio-pci",
        "former": "e1000e",
        "mac": "52:54:00:00:42:01",
    }
    return {
        **{key: Variant("s", value) for key, value in texts.items()},
        "fds": Variant("ah", []),
        "group": Variant("u", 6),
        "vlan": Variant("u", 42),
        "members": Variant("as", [address, "0000:03:00.1"]),
    }


def device(
    address: str, group: str, verdict: str, *, uses: tuple[str, ...] = (), holder: str = ""
) -> dict[str, Variant]:
    bridge = verdict == "bridge"
    texts = {
        "address": address,
        "name": f"name of {address}",
        "ids": "8086:10d3",
        "subsystem": "",
        "class": "060400" if bridge else "020000",
        "driver": "pcieport" if bridge else "e1000e",
        "variant": "",
        "group": group,
        "holder": holder,
        "verdict": verdict,
    }
    lists = {"resets": [] if bridge else ["flr", "bus"], "uses": list(uses)}
    return {
        **{key: Variant("s", value) for key, value in texts.items()},
        **{key: Variant("as", value) for key, value in lists.items()},
        **{
            key: Variant("b", value) for key, value in {"endpoint": not bridge, "rom": True}.items()
        },
    }


def devices(mode: str) -> list[dict[str, Variant]]:
    if mode == "no-iommu":
        return [device("0000:00:03.0", "", "no-iommu")]
    return [
        device("0000:00:1c.0", "1", "bridge"),
        device("0000:01:00.0", "1", "free"),
        device("0000:02:00.0", "2", "group"),
        device("0000:02:00.1", "2", "group"),
        device("0000:03:00.0", "3", "refused", uses=("file system / on /dev/vda1",)),
        device("0000:04:00.0", "4", "held", holder="win\x1b[2J11"),
    ]


def plan() -> dict[str, Variant]:
    row = {key: Variant("s", key) for key in ("kind", "verdict", "action", "reason")}
    return {
        "verdict": Variant("s", "ask"),
        "action": Variant("s", "org.sessionvirt.broker1.tap-network"),
        "prompt": Variant("s", "Authentication is required"),
        "requests": Variant("aa{sv}", [row]),
        "steps": Variant("a(ss)", [["make a TAP", "close it"]]),
    }


def lease() -> dict[str, Variant]:
    row = grant(0, [])
    return {
        "lease": Variant("o", LEASE),
        "vm": Variant("s", "guest"),
        "uid": Variant("u", 1000),
        "state": Variant("s", "held"),
        "since": Variant("t", 1_700_000_000),
        "allowed": Variant("s", "asked"),
        "grants": Variant("aa{sv}", [row]),
        "drops": Variant("a{st}", {"mac": 3, "arp": 0}),
        "process": Variant("u", 0),
    }


def network(name: str = "default", kind: str = "network") -> dict[str, Variant]:
    texts = {"name": name, "type": kind, "mode": "nat", "bridge": "svt-default"}
    return {
        **{key: Variant("s", value) for key, value in texts.items()},
        "up": Variant("b", True),  # noqa: FBT003 - the library's own signature
        "mtu": Variant("u", 1500),
        "ipv4": Variant("as", ["10.213.80.1/20", "10.9.0.1/24"]),
        "ipv6": Variant("as", []),
        "leases": Variant("u", 1),
    }


def facts() -> dict[str, Variant]:
    texts = {"version": "1", "boot_id": "b", "polkit": "absent", "nft_tables": "foreign",
             "dnsmasq": "", "configuration": "broker.toml:3: no such key"}  # fmt: skip
    flags = {"ip_forward": True, "bridge_nf_call": True, "systemd": False, "tun": False}
    lists = {"capabilities": ["kill"], "missing_capabilities": ["net_admin"],
             "foreign_forward_drops": ["ip filter FORWARD"],
             "legacy_tables": ["ip filter"]}  # fmt: skip
    return {
        **{key: Variant("s", value) for key, value in texts.items()},
        **{key: Variant("b", value) for key, value in flags.items()},
        **{key: Variant("as", value) for key, value in lists.items()},
    }


def lease_of_devices() -> dict[str, Variant]:
    rows = [pci_grant(0, "0000:03:00.0"), grant(1, [])]
    return lease() | {"grants": Variant("aa{sv}", rows)}


def acquire(mode: str, message: Message) -> tuple[str, list[object], list[int]]:
    """The answer to Acquire: signature, body, descriptors."""
    requests = message.body[0]
    fds = [os.pipe()[1]]
    rows = []
    for number, (kind, parameters) in enumerate(requests):
        if kind == "pci":
            rows.append(pci_grant(number, parameters["address"].value))
        else:
            fds.append(os.open(os.devnull, os.O_RDWR))
            rows.append(grant(number, [len(fds) - 1]))
    match mode:
        case "missing-key":
            del rows[-1]["mac"]
        case "wrong-type":
            rows[-1]["ifindex"] = Variant("s", "42")
        case "wrong-kind":
            rows[-1]["kind"] = Variant("s", "gold")
        case "other-kind":
            rows[-1] = pci_grant(0, "0000:03:00.0")
            os.close(fds.pop())
        case "pci-fds":
            rows[-1]["fds"] = Variant("ah", [len(fds)])
            fds.append(os.open(os.devnull, os.O_RDWR))
        case "no-fds":
            fds = []
        case "too-many-fds":
            fds += [os.open(os.devnull, os.O_RDWR) for _ in range(5)]
        case "fd-twice":
            rows[-1]["fds"] = Variant("ah", [0])
            fds = fds[:1] + fds[2:]
        case "fewer-grants":
            rows, fds = rows[:-1], fds[:-1]
        case "two-queues":
            rows[-1]["fds"] = Variant("ah", [len(fds) - 1, len(fds)])
            fds.append(os.open(os.devnull, os.O_RDWR))
        case "vhost-unasked":
            rows[-1]["vhost"] = YES
            rows[-1]["fds"] = Variant("ah", [len(fds) - 1, len(fds)])
            fds.append(os.open(os.devnull, os.O_RDWR))
        case "vhost-odd":
            rows[-1]["vhost"] = YES
        case "wrong-signature":
            return "oh", [LEASE, 0], fds
    return "ohaa{sv}", [LEASE, 0, rows], fds


def lock_memory(mode: str, message: Message) -> Message:
    """Says who is to lock how much, after a while in which it would have become something else."""
    time.sleep(0.5)
    pidfd, amount, _ = message.body
    with open(f"/proc/self/fdinfo/{message.unix_fds[pidfd]}", encoding="ascii") as file:
        pid = next(line.split()[1] for line in file if line.startswith("Pid:"))
    with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
        name = file.read().strip()
    for fd in message.unix_fds:
        os.close(fd)
    if mode != "locks":
        text = f"{name} {amount}"
        return Message.new_error(message, "org.sessionvirt.Broker1.Error.LimitsExceeded", text)
    return Message.new_method_return(message, "", [])


#: How many calls there were.
CALLS = itertools.count(1)


def answer(mode: str, message: Message) -> Message | None:
    """The reply to a call; None: there is none."""
    if mode.startswith("restarts=") and next(CALLS) <= int(mode.removeprefix("restarts=")):
        return Message.new_error(message, "org.sessionvirt.Broker1.Error.Restarting", "anew")
    if mode.startswith("looks=") and next(CALLS) > 2 * int(mode.removeprefix("looks=")):
        os._exit(1)
    if mode.startswith("mute=") and next(CALLS) > int(mode.removeprefix("mute=")):
        return None
    if mode == "vanishes":
        os._exit(1)
    if mode == "silent":
        return None
    if mode.startswith("error="):
        return Message.new_error(message, mode.removeprefix("error="), "the field and the cause")
    match message.member:
        case "Acquire":
            signature, body, fds = acquire(mode, message)
            if mode == "flags":
                text = f"{message.flags.value} {message.body[1]['interactive'].value}"
                return Message.new_error(message, "org.sessionvirt.Broker1.Error.Failed", text)
            return Message.new_method_return(message, signature, body, fds)
        case "Plan":
            return Message.new_method_return(message, "a{sv}", [plan()])
        case "ListNetworks":
            rows = [network()]
            if mode == "names":
                rows += [network(name) for name in ("two\nlines", "\x1b[2J", "two words")]
                rows += [network("br0", "bridge")]
            if mode == "import":
                rows.append(network("import"))
            return Message.new_method_return(message, "aa{sv}", [rows])
        case "ListDevices":
            return Message.new_method_return(message, "aa{sv}", [devices(mode)])
        case "LockMemory":
            return lock_memory(mode, message)
        case "ListLeases":
            if mode == "devices":
                return Message.new_method_return(message, "aa{sv}", [[lease_of_devices()]])
            return Message.new_method_return(message, "aa{sv}", [[lease()]])
        case "ListObstacles":
            return Message.new_method_return(message, "aa{sv}", [[]])
        case "Diagnose":
            return Message.new_method_return(message, "a{sv}", [facts()])
        case "Reclaim":
            text = f"{message.path} {message.body[0]['interactive'].value}"
            if mode == "reclaims":
                return Message.new_method_return(message, "", [])
            return Message.new_error(message, "org.sessionvirt.Broker1.Error.NotAuthorized", text)
        case "Add":
            fds = [os.open(os.devnull, os.O_RDWR) for _ in message.body[0]]
            rows = [grant(7 + number, [number]) for number in range(len(fds))]
            if mode == "fewer-grants":
                rows, fds = rows[:-1], fds[:-1]
            if mode == "flags":
                text = f"{message.flags.value} {message.body[1]['interactive'].value}"
                return Message.new_error(message, "org.sessionvirt.Broker1.Error.Failed", text)
            return Message.new_method_return(message, "aa{sv}", [rows], fds)
        case "Drop" if message.body[0] != ["tap7"]:
            text = "grants: the lease has no such grant"
            return Message.new_error(message, "org.sessionvirt.Broker1.Error.NotFound", text)
        case "Drop" | "Release":
            return Message.new_method_return(message, "", [])
    return Message.new_error(message, "org.freedesktop.DBus.Error.UnknownMethod", "no")


async def main() -> None:
    address, mode = sys.argv[1:]
    bus = await MessageBus(address, BusType.SYSTEM, negotiate_unix_fd=True).connect()

    def handle(message: Message) -> Message | bool:
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        return answer(mode, message) or True

    bus.add_message_handler(handle)
    await bus.request_name(BUS_NAME)
    print("ready", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
