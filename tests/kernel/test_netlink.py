# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is said of virtual functions by rtnetlink is well formed, by each pyroute2.

The loopback interface has none, and its driver sets nothing: the kernel answers EOPNOTSUPP when it
has found a setting in the message, and EINVAL when it has not (do_setvfinfo() in rtnetlink.c).
"""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest

from lab.stage import ROOT

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
