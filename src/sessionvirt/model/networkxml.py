# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's network XML to what broker.toml says of it.

Everything in a document is either understood or named: what means something else here, and what has
no counterpart, is a remark with its line and what to do instead. What is malformed, or leaves
nothing to make a network of, is a :class:`DefinitionError`.

Pure. Sources: libvirt's docs/formatnetwork.rst and src/conf/network_conf.c for defaults,
src/util/virsocketaddr.c for the classes of addresses.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sessionvirt.xmltree import Location, Node, read

from . import network as model
from .addresses import parse_mac
from .network import Host, Mode, Network, Range
from .networkadvice import DIFFERENT, INSTEAD, NOTHING, UNDERSTOOD

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Imported", "Remark", "parse_network"]

_OPTION: Final = "dhcp-option="
#: The leading bits of a class, and the prefix length that it has (virSocketAddrGetIPPrefix).
_CLASSES: Final = ((128, 8), (192, 16), (224, 24))


@dataclass(frozen=True)
class Remark:
    """Something that is not what it was in libvirt.

    :param path: like ``/network/ip/dhcp/range``.
    :param text: what it means here, or what to do instead.
    :param left_out: nothing of it is there; else it means something else.
    """

    line: int
    path: str
    text: str
    left_out: bool


@dataclass(frozen=True)
class Imported:
    """What a document comes to.

    :param name: as libvirt has it.
    :param network: None: it is none that the broker makes.
    :param bridge: of the local network, which has to be permitted; may be empty.
    :param remarks: in the order of their lines.
    """

    name: str
    network: Network | None
    bridge: str
    remarks: tuple[Remark, ...]


def parse_network(document: bytes | str, *, file: str = "<xml>") -> Imported:
    """Read a network description.

    :param file: what messages call it.
    :raise DefinitionError: naming file, line and path.
    """
    root = read(document, file)
    where = Location(file, root.line, f"/{root.name}")
    if root.tag != "network":
        where.refuse("this is not a <network>", "The root element must be <network>.")
    return _Reader(root, where).imported()


class _Reader:
    """One document."""

    def __init__(self, root: Node, where: Location) -> None:
        self._root = root
        self._where = where
        self._remarks: list[Remark] = []
        self._ranges: list[Range] = []
        self._hosts: dict[str, Host] = {}
        #: Where a host was named last.
        self._named: dict[str, Node] = {}
        self._taken: set[str] = set()

    def imported(self) -> Imported:
        root, where = self._root, self._where
        named = root.find("name")
        name = named.text.strip() if named is not None else ""
        if named is None or not name:
            where.below("name").refuse("is missing", "Write <name>...</name>.")
        self._survey(root, where.path)
        forward = root.find("forward")
        mode = "isolated" if forward is None else forward.attributes.get("mode", "nat")
        network, bridge = None, ""
        if forward is None or mode in [one.value for one in Mode]:
            network = self._network(named, name, Mode(mode))
        else:
            bridge = self._outside(forward, mode)
        remarks = sorted(self._remarks, key=lambda remark: remark.line)
        return Imported(name, network, bridge, tuple(remarks))

    # Section: what is there

    def _survey(self, node: Node, path: str) -> None:
        """Name what is not read by the rest, and what is read and means something else."""
        key = path.removeprefix("/")
        for name in node.attributes:
            if (
                name not in UNDERSTOOD[key].attributes
                and name != "xmlns"
                and not name.startswith("xmlns:")
            ):
                self._leave_out(node, f"{path}/@{name}", INSTEAD.get(f"{key}/@{name}"))
        if text := DIFFERENT.get(key):
            self._remark(node, path, text)
        seen = set()
        for child in node.elements():
            below = f"{key}/{child.tag}"
            if below not in UNDERSTOOD:
                self._leave_out(child, f"{path}/{child.name}", INSTEAD.get(below))
            elif child.tag in seen and not UNDERSTOOD[below].many:
                self._leave_out(child, f"{path}/{child.name}", "there is one before it")
            else:
                seen.add(child.tag)
                self._survey(child, f"{path}/{child.tag}")

    def _leave_out(self, node: Node, path: str, text: str | None) -> None:
        self._remarks.append(Remark(node.line, path, text or NOTHING, left_out=True))

    def _remark(self, node: Node, path: str, text: str) -> None:
        self._remarks.append(Remark(node.line, path, text, left_out=False))

    def _at(self, node: Node, path: str) -> Location:
        return replace(self._where.below(path), line=node.line)

    # Section: bridges and devices of the host

    def _outside(self, forward: Node, mode: str) -> str:
        """A network that is a part of the host's; the bridge that has to be permitted."""
        at = self._at(forward, "forward/@mode")
        if mode not in ("bridge", "private", "vepa", "passthrough", "hostdev"):
            at.refuse(f"{model.printable(mode)!r} is no mode", "Write nat, route, open or bridge.")
        for node in self._root.elements():
            if node.tag in ("ip", "dns", "domain", "mtu", "dnsmasq:options"):
                self._leave_out(node, f"/network/{node.name}", INSTEAD["mode/other"])
        if mode == "hostdev":
            self._leave_out(forward, at.path, INSTEAD["mode/hostdev"])
            return ""
        bridge = self._root.find("bridge")
        if mode != "bridge" or bridge is None or "name" not in bridge.attributes:
            text = INSTEAD["mode/direct"].replace("MODE", mode)
            self._leave_out(forward, at.path, text)
            return ""
        name = bridge.attributes["name"]
        if problem := model.bridge_problem(name):
            self._at(bridge, "bridge/@name").refuse(
                f"{model.printable(name)!r} is no bridge's name: {problem}",
                "Name a bridge of the local network.",
            )
        self._remark(forward, at.path, DIFFERENT["mode/bridge"].replace("BRIDGE", name))
        return name

    # Section: networks that the broker makes

    def _network(self, named: Node, name: str, mode: Mode) -> Network:
        ours = model.mapped_name(name)
        if ours != name:
            shown = model.printable(name)
            self._remark(named, "/network/name", f"{shown} is called {ours} here")
        for node in self._all("ip"):
            self._range(node, mode)
        if not self._ranges:
            self._where.refuse(
                "no address that the broker could give a network",
                "Write an <ip> with the gateway's own address; "
                "the broker gives addresses to every guest.",
            )
        # After all ranges: a host may stand in another <ip> than that of its range.
        for node in self._all("ip/dhcp/host"):
            self._host(node)
        self._forget_hosts_without_mac()
        bridge = self._root.find("bridge")
        if bridge is not None and "name" in bridge.attributes:
            self._remark(bridge, "/network/bridge/@name", f"the bridge is called svn_{ours}")
        ipv4 = tuple(str(one) for one in self._ranges if one.version == 4)
        ipv6 = tuple(str(one) for one in self._ranges if one.version == 6)
        return Network(
            name=ours,
            mode=mode,
            ipv4=ipv4,
            ipv6=ipv6,
            nat6=self._nat6(mode, has_ipv6=bool(ipv6)),
            domain=self._domain(),
            names_on_host=self._names_on_host(),
            mtu=self._mtu(),
            options=tuple(self._options()),
            hosts=tuple(self._hosts.values()),
            records=self._records(),
        )

    def _all(self, path: str) -> Iterator[Node]:
        """Every element of a path, but for those that were left out as one too many."""
        found = [self._root]
        for depth, tag in enumerate(steps := path.split("/")):
            many = UNDERSTOOD["/".join(("network", *steps[: depth + 1]))].many
            inside = [[one for one in node.elements() if one.tag == tag] for node in found]
            found = [one for each in inside for one in (each if many else each[:1])]
        yield from found

    def _range(self, node: Node, mode: Mode) -> None:
        said = node.attributes
        at = self._at(node, "ip")
        try:
            range_ = _range(said)
        except ValueError as error:
            at.refuse(f"wrong address: {_short(error)}", "Write address='10.1.0.1' prefix='24'.")
        family = [one for one in self._ranges if one.version == range_.version]
        problem = model.range_problem(range_, mode)
        for one in family:
            if one.network.overlaps(range_.network):
                problem = problem or f"it overlaps {one}"
        if len(family) == model.MOST_RANGES:
            problem = problem or f"a network has {model.MOST_RANGES} ranges at most"
        if problem:
            self._leave_out(node, "/network/ip", f"{range_}: {problem}")
            return
        if not said.keys() & {"netmask", "prefix"}:
            self._remark(node, "/network/ip", f"the prefix length is that of its class: {range_}")
        if node.find("dhcp") is None:
            self._remark(node, "/network/ip", f"guests get addresses of {range_.network} by DHCP")
        self._ranges.append(range_)
        self._taken.add(str(range_.ip))

    def _host(self, node: Node) -> None:
        """A static host; one that has IPv4 and IPv6 stands in two elements, with one name."""
        said = {key: text.strip() for key, text in node.attributes.items()}
        at = self._at(node, "ip/dhcp/host")
        try:
            mac = parse_mac(said["mac"]) if "mac" in said else ""
            ip = ipaddress.ip_address(said.get("ip", "").partition("%")[0])
        except ValueError as error:
            at.refuse(
                f"wrong value: {_short(error)}", "Write mac='52:54:00:...' name='...' ip='...'."
            )
        label = model.label_of(said.get("name", "")) or f"host-{mac.replace(':', '')}".rstrip("-")
        problem = self._host_problem(mac, ip)
        known = self._hosts.get(label, Host(label, mac))
        family = f"ipv{ip.version}"
        if getattr(known, family) or (mac and known.mac and known.mac != mac):
            problem = problem or f"there is another {label}"
        if len(self._hosts) == model.MOST_ENTRIES:
            problem = problem or f"a network has {model.MOST_ENTRIES} of them at most"
        if problem:
            self._leave_out(node, "/network/ip/dhcp/host", f"{ip}: {problem}")
            return
        if said.get("name", label) != label:
            shown = model.printable(said["name"])
            self._remark(node, "/network/ip/dhcp/host", f"{shown} is called {label} here")
        self._hosts[label] = replace(known, mac=known.mac or mac, **{family: str(ip)})
        self._named[label] = node
        self._taken.add(str(ip))

    def _host_problem(self, mac: str, ip: model.Address) -> str:
        inside = [one.network for one in self._ranges if ip in one.network]
        if not inside:
            return "it is in no range of this network"
        ends = (inside[0].network_address, inside[0].broadcast_address)
        if ip in ends[: 2 if ip.version == 4 else 1]:
            return "it is the first or the last of its range"
        if mac.startswith("fe:"):
            return f"{mac}: the host's own interfaces have addresses that begin with fe:"
        return "it is the gateway's or another host's" if str(ip) in self._taken else ""

    def _forget_hosts_without_mac(self) -> None:
        """Those of IPv6, which libvirt knows by other marks and the broker by the MAC alone."""
        macs: set[str] = set()
        for label, host in list(self._hosts.items()):
            problem = f"another host has {host.mac}" if host.mac in macs else ""
            if not host.mac:
                problem = "without mac= a host is not known here"
            macs.add(host.mac)
            if problem:
                del self._hosts[label]
                self._leave_out(self._named[label], "/network/ip/dhcp/host", f"{label}: {problem}")

    def _nat6(self, mode: Mode, *, has_ipv6: bool) -> bool:
        nat = next(iter(self._all("forward/nat")), None)
        wanted = nat is not None and nat.attributes.get("ipv6") == "yes"
        if nat is not None and wanted and not (has_ipv6 and mode is Mode.NAT):
            self._leave_out(nat, "/network/forward/nat/@ipv6", "there is no IPv6 behind NAT")
            return False
        if has_ipv6 and mode is Mode.NAT and not wanted:
            forward = self._root.find("forward")
            assert forward is not None
            self._remark(forward, "/network/forward", DIFFERENT["nat/ipv6"])
        return wanted

    def _domain(self) -> str:
        node = self._root.find("domain")
        name = node.attributes.get("name", "") if node is not None else ""
        if node is None or not name:
            return ""
        ours = name.lower() if name.isascii() else name
        if not model.is_domain(ours):
            problem = "letters, digits and - between dots, 200 at most"
            self._leave_out(node, "/network/domain", f"{model.printable(name)}: {problem}")
            return ""
        return ours

    def _names_on_host(self) -> bool:
        """libvirt tells systemd-resolved where it is told to, the broker where it may."""
        node = self._root.find("domain")
        return node is None or node.attributes.get("register") == "yes"

    def _mtu(self) -> int:
        node = self._root.find("mtu")
        if node is None:
            return 0
        text = node.attributes.get("size", "").strip()
        if not (text.isascii() and text.isdecimal() and len(text) <= 9):
            self._at(node, "mtu/@size").refuse("is no number of bytes", "Write size='1500'.")
        if not 1280 <= int(text) <= 65521:
            self._leave_out(node, "/network/mtu", "it has to be from 1280 to 65521")
            return 0
        return int(text)

    def _options(self) -> Iterator[tuple[int, str]]:
        """Of what is given to dnsmasq as it is, the options of DHCP that have a number."""
        seen = set()
        for node in self._all("dnsmasq:options/dnsmasq:option"):
            line = node.attributes.get("value", "").strip()
            word, _, text = line.removeprefix(_OPTION).partition(",")
            is_number = word.isascii() and word.isdecimal() and len(word) <= 3
            if not line.startswith(_OPTION) or not is_number:
                problem = INSTEAD["network/dnsmasq:options"]
            elif int(word) in seen:
                problem = f"there is an option {word} before it"
            else:
                problem = model.option_problem(int(word), text)
            if problem:
                shown = f"{model.printable(line)}: {problem}"
                self._leave_out(node, "/network/dnsmasq:options", shown)
            else:
                seen.add(int(word))
                yield int(word), text

    def _records(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        found: dict[str, list[str]] = {}
        for node in self._all("dns/host"):
            try:
                ip = str(ipaddress.ip_address(node.attributes.get("ip", "").partition("%")[0]))
            except ValueError as error:
                self._at(node, "dns/host/@ip").refuse(_short(error), "Write ip='10.1.0.5'.")
            for named in node.elements():
                if named.tag == "hostname":
                    self._record(named, ip, found)
        return tuple((name, tuple(addresses)) for name, addresses in found.items())

    def _record(self, node: Node, ip: str, found: dict[str, list[str]]) -> None:
        text = node.text.strip()
        name = text.lower() if text.isascii() else text
        if not model.is_record_name(name):
            problem = "letters, digits, - and _ between dots, 200 at most"
        elif name in self._hosts:
            problem = "a host of the network has this name already"
        elif name not in found and len(found) == model.MOST_ENTRIES:
            problem = f"a network has {model.MOST_ENTRIES} of them at most"
        else:
            if ip not in found.setdefault(name, []):
                found[name].append(ip)
            return
        self._leave_out(node, "/network/dns/host/hostname", f"{model.printable(text)}: {problem}")


def _short(error: ValueError) -> str:
    """The message of somebody else's, which repeats what it was about."""
    return model.printable(str(error), 120)


def _range(said: dict[str, str]) -> Range:
    """An ``<ip>``'s address with its prefix length.

    :raise ValueError: it has none that is one.
    """
    text = said.get("address", "").strip()
    ip = ipaddress.ip_address(text)
    family = said.get("family", "ipv4")
    if family != f"ipv{ip.version}" or "%" in text:
        raise ValueError(f"{ip} is not of the family {model.printable(family)}")
    if "prefix" in said:
        prefix = said["prefix"].strip()
        if not (prefix.isascii() and prefix.isdecimal() and len(prefix) <= 3):
            raise ValueError(f"{model.printable(prefix)!r} is no prefix length")
        return ipaddress.ip_interface(f"{ip}/{prefix}")
    if isinstance(ip, ipaddress.IPv6Address):
        if "netmask" in said:
            raise ValueError("IPv6 has no netmask")
        return ipaddress.IPv6Interface(f"{ip}/64")
    if "netmask" in said:
        mask = int(ipaddress.IPv4Address(said["netmask"].strip()))
        length = mask.bit_count()
        if mask != (2**32 - 1) << (32 - length) & (2**32 - 1):
            raise ValueError(f"{model.printable(said['netmask'])} is no netmask")
        return ipaddress.IPv4Interface(f"{ip}/{length}")
    first = int(ip) >> 24
    for limit, length in _CLASSES:
        if first < limit:
            return ipaddress.IPv4Interface(f"{ip}/{length}")
    raise ValueError(f"{ip} has no prefix length")
