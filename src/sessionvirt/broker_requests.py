# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the broker is asked for, as frozen dataclasses: each kind of request of the contract.

What this never does: know whether there is such a thing. The broker says.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Final, TypeAlias

from .errors import UsageError

__all__ = [
    "FDS_PER_ANSWER", "FDS_PER_DEVICE", "BandwidthRequest", "DirectRequest", "FilterRequest",
    "Parameters", "PciRequest", "PublishRequest", "Rate", "Request", "TapRequest",
]  # fmt: skip

#: What a request sends: name to D-Bus type and value.
Parameters: TypeAlias = "dict[str, tuple[str, object]]"

#: How many other devices a request for a PCI device can name.
_MAX_ALSO: Final = 32

#: Descriptors that one answer carries, and how many of them are a device's that comes as such.
FDS_PER_ANSWER: Final = 16
FDS_PER_DEVICE: Final = 2


@dataclass(frozen=True, kw_only=True)
class _CardRequest:
    """What a guest's card may have, whatever it is made of.

    :param mac: the guest's address; by default the broker derives one, the same at every start.
    :param queues: queue pairs.
    :param vhost: with a descriptor of /dev/vhost-net for each, where the host has it.
    :param name: how its alternative name on the host ends; by default as the VM's and its position.
    """

    mac: str | None = None
    queues: int = 1
    vhost: bool = False
    name: str | None = None

    @property
    def descriptors(self) -> int:
        """How many the answer carries for it."""
        return self.queues * (2 if self.vhost else 1)

    def _sent(self, **texts: str | None) -> Parameters:
        """What is sent of it, beside other texts."""
        texts = {**texts, "mac": self.mac, "name": self.name}
        sent: Parameters = {name: ("s", text) for name, text in texts.items() if text is not None}
        if self.queues != 1:
            sent["queues"] = ("u", self.queues)
        if self.vhost:
            sent["vhost"] = ("b", True)
        return sent


@dataclass(frozen=True)
class TapRequest(_CardRequest):
    """A TAP device on a managed network or on a bridge that the administrator permits.

    :param network: a managed network's name; or
    :param bridge: a bridge's name. Exactly one of the two.
    :param vlan: of the bridge, the only one for the guest; None: the bridge's default one.
    :param isolated: apart from other TAPs there that are so.
    :raise UsageError: both or none of network and bridge, or a VLAN of a network.
    """

    kind: ClassVar[str] = "tap"

    network: str | None = None
    bridge: str | None = None
    vlan: int | None = None
    isolated: bool = False

    def __post_init__(self) -> None:
        if (self.network is None) == (self.bridge is None):
            raise UsageError("a TAP is asked for on a network or on a bridge")
        if self.vlan is not None and self.bridge is None:
            raise UsageError("a VLAN is asked for on a bridge")

    def parameters(self) -> Parameters:
        """Return what is sent."""
        sent = self._sent(network=self.network, bridge=self.bridge)
        if self.vlan is not None:
            sent["vlan"] = ("u", self.vlan)
        if self.isolated:
            sent["isolated"] = ("b", True)
        return sent


@dataclass(frozen=True)
class DirectRequest(_CardRequest):
    """A macvtap device on an interface of the host's that the administrator permits.

    :param device: the interface's name.
    :param mode: "bridge", "private" or "vepa".
    """

    kind: ClassVar[str] = "direct"

    device: str
    mode: str = "bridge"

    def parameters(self) -> Parameters:
        """Return what is sent."""
        return self._sent(device=self.device, mode=self.mode)


@dataclass(frozen=True)
class PciRequest:
    """A PCI device of the host, with its whole isolation group.

    :param address: "0000:03:00.0".
    :param with_group: the other devices of its group may go along, whichever they are.
    :param also: those that may, by address; at most 32.
    :param managed: it is taken from its driver, and given back to it.
    :param fds: as descriptors, where the host's kernel can.
    :param driver: the VFIO driver by name: "vfio-pci", or the kernel's for this model; None: the
        latter if there is one.
    :param mac: of a virtual function: the address that its card holds it to.
    :param vlan: likewise: the VLAN that it is in, 1 to 4094.
    :raise UsageError: more than 32 others.
    """

    kind: ClassVar[str] = "pci"

    address: str
    with_group: bool = False
    also: tuple[str, ...] = ()
    managed: bool = True
    fds: bool = False
    driver: str | None = None
    mac: str | None = None
    vlan: int | None = None

    def __post_init__(self) -> None:
        if len(self.also) > _MAX_ALSO:
            raise UsageError(f"a device cannot be asked for with more than {_MAX_ALSO} others")

    def parameters(self) -> Parameters:
        """Return what is sent: the contract's defaults are not."""
        sent: Parameters = {"address": ("s", self.address)}
        if self.with_group:
            sent["with_group"] = ("b", True)
        if self.also:
            sent["also"] = ("as", list(self.also))
        if not self.managed:
            sent["managed"] = ("b", False)
        if self.fds:
            sent["fds"] = ("b", True)
        if self.driver is not None:
            sent["driver"] = ("s", self.driver)
        if self.mac is not None:
            sent["mac"] = ("s", self.mac)
        if self.vlan is not None:
            sent["vlan"] = ("u", self.vlan)
        return sent


@dataclass(frozen=True)
class Rate:
    """How much goes one way in a second, in libvirt's units.

    :param average: in 1000 bytes a second.
    :param peak: how fast a burst is, likewise; 0: as fast as the average.
    :param burst: how much of it goes at the peak, in KiB; 0: the broker's choice.
    """

    average: int
    peak: int = 0
    burst: int = 0

    def parameters(self, way: str) -> Parameters:
        """What is sent of it; zeros are not."""
        numbers = {"average": self.average, "peak": self.peak, "burst": self.burst}
        return {f"{way}_{name}": ("u", number) for name, number in numbers.items() if number}


@dataclass(frozen=True)
class BandwidthRequest:
    """How much a TAP of the lease may receive and send.

    :param tap: its id in the lease.
    :param inbound: what the guest receives; None: no limit. Likewise ``outbound``.
    """

    kind: ClassVar[str] = "bandwidth"

    tap: str
    inbound: Rate | None = None
    outbound: Rate | None = None

    def parameters(self) -> Parameters:
        """Return what is sent."""
        sent: Parameters = {"tap": ("s", self.tap)}
        for way, rate in (("inbound", self.inbound), ("outbound", self.outbound)):
            sent |= rate.parameters(way) if rate is not None else {}
        return sent


@dataclass(frozen=True)
class FilterRequest:
    """What a guest may not, of what its TAP permits. The contract says what each list is.

    :param tap: the id of the TAP's grant.
    """

    kind: ClassVar[str] = "filter"

    tap: str
    deny_outbound: tuple[str, ...] = ()
    allow_outbound: tuple[str, ...] = ()
    deny_inbound: tuple[str, ...] = ()
    allow_inbound: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    only_mac: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    no_broadcast: bool = False
    no_multicast4: bool = False
    no_multicast6: bool = False

    def parameters(self) -> Parameters:
        """Return what is sent."""
        said = {item.name: getattr(self, item.name) for item in fields(self)}
        lists = {name: ("as", list(v)) for name, v in said.items() if isinstance(v, tuple) and v}
        flags = {name: ("b", True) for name, value in said.items() if value is True}
        return {"tap": ("s", self.tap), **lists, **flags}


@dataclass(frozen=True)
class PublishRequest:
    """Ports of the host that lead to a guest on a managed network.

    :param tap: the id of the TAP's grant.
    :param protocol: "tcp" or "udp".
    :param ports: how many, from both on.
    :param address: of the host; None: every one.
    """

    kind: ClassVar[str] = "publish"

    tap: str
    protocol: str
    host_port: int
    guest_port: int
    ports: int = 1
    address: str | None = None

    def parameters(self) -> Parameters:
        """Return what is sent."""
        sent: Parameters = {
            "tap": ("s", self.tap),
            "protocol": ("s", self.protocol),
            "host_port": ("u", self.host_port),
            "guest_port": ("u", self.guest_port),
        }
        if self.ports != 1:
            sent["ports"] = ("u", self.ports)
        if self.address is not None:
            sent["address"] = ("s", self.address)
        return sent


Request: TypeAlias = (
    TapRequest | DirectRequest | PciRequest | BandwidthRequest | FilterRequest | PublishRequest
)
