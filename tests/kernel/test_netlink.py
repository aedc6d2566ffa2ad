# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is said of virtual functions by rtnetlink is well formed, by each pyroute2; routes are read.

The loopback interface has none, and its driver sets nothing: the kernel answers EOPNOTSUPP when it
has found a setting in the message, and EINVAL when it has not (do_setvfinfo() in rtnetlink.c).
"""

from __future__ import annotations

import errno
import json
import socket
import subprocess
import sys

import pytest

from lab.stage import ROOT
from sessionvirt_broker.routes import read_routes

pytestmark = pytest.mark.kernel

ASK = """\
import json
import sys

sys.path[:] = [sys.argv[1], *(one for one in sys.path if sys.argv[2] not in one)]
import errno

import pyroute2
from sessionvirt_broker.netlink import Links

links, said = Links(), {}
for name, ask in {
    "mac": lambda: links.set_function(1, 3, "mac", "52:54:00:00:42:01"),
    "spoofchk": lambda: links.set_function(1, 3, "spoofchk", 1),
    "trust": lambda: links.set_function(1, 3, "trust", 0),
    "vlan": lambda: links.set_function_vlan(1, 3, 42, 5),
    "nothing": lambda: links._set_function(1, {"vf": 3}),
}.items():
    try:
        ask()
    except OSError as error:
        said[name] = error.errno
card = links.card(1)
said["card"] = [card.mac, len(card.functions)]
said["absent"] = links.card(999999) is None
said["version"] = str(pyroute2.__version__)
links.close()
print(json.dumps(said))
"""


@pytest.mark.parametrize("debian", [False, True], ids=["pypi", "debian"])
def test_the_kernel_understands_what_is_set(debian: bool) -> None:  # noqa: FBT001
    python = "/usr/bin/python3" if debian else sys.executable
    # The lab has PyPI's below /usr/local, where Debian's Python would find it first.
    argv = [python, "-I", "-c", ASK, str(ROOT / "broker"), "/usr/local" if debian else "none"]
    said = json.loads(subprocess.run(argv, capture_output=True, check=True, text=True).stdout)
    version = said.pop("version")
    assert version.startswith("0.9") is not debian, version
    assert said == {
        **dict.fromkeys(("mac", "spoofchk", "trust", "vlan"), errno.EOPNOTSUPP),
        "nothing": errno.EINVAL,
        "card": ["00:00:00:00:00:00", 0],
        "absent": True,
    }


def test_every_route_is_read_as_the_kernel_has_it() -> None:
    """Of every table; no default, no way to nowhere, none with several next hops."""
    commands = [
        *("link add rt0 type bridge", "link set rt0 up", "address add 192.0.2.33/27 dev rt0"),
        *("address add 2001:db8:7::1/64 dev rt0 nodad", "route add blackhole 10.9.0.0/16"),
        *("route add 10.8.0.0/16 dev rt0 table 77", "route add default dev rt0 table 77"),
        "route add unreachable 2001:db8:9::/48",
        *(f"route add 10.7.{number}.0/24 dev rt0" for number in range(200)),
        *(f"route add 2001:db8:8:{number:x}::/64 dev rt0" for number in range(200)),
        "route add 10.6.0.0/16 nexthop via 192.0.2.34 nexthop via 192.0.2.35",
    ]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), check=True, text=True)
    try:
        ifindex = socket.if_nametoindex("rt0")
        found = {
            version: {str(prefix) for prefix, index in read_routes(version) if index == ifindex}
            for version in (4, 6)
        }
    finally:
        subprocess.run(["ip", "link", "delete", "rt0"], check=True)
        for version, prefix in (("-4", "10.9.0.0/16"), ("-6", "2001:db8:9::/48")):
            subprocess.run(["ip", version, "route", "delete", prefix], check=True)
    local4 = {"192.0.2.33/32", "192.0.2.63/32", "192.0.2.32/27"}
    assert found[4] == local4 | {"10.8.0.0/16"} | {f"10.7.{number}.0/24" for number in range(200)}
    wanted = {f"2001:db8:8:{number:x}::/64" for number in range(1, 200)}
    assert found[6] >= wanted | {"2001:db8:8::/64", "2001:db8:7::/64", "2001:db8:7::1/128"}
    assert all(one.startswith(("2001:db8:8:", "2001:db8:7:", "f")) for one in found[6])
