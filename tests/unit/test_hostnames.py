# SPDX-License-Identifier: LGPL-2.1-or-later
"""What systemd-resolved is told of a network: its own names, by root's file, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sessionvirt_broker.config import BUILTIN, ConfigFile
from sessionvirt_broker.errors import ConfigurationError
from sessionvirt_broker.hostnames import commands

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

TEXT = """
[network.lab]
ipv4 = ["10.1.0.1/24", "10.2.0.1/24"]
ipv6 = "fd61::1/64"
domain = "lab.example"
[network.six]
mode = "route"
ipv6 = "fd62::1/64"
[network.silent]
ipv4 = "10.3.0.1/24"
names_on_host = false
[network.nameless]
ipv4 = "10.4.0.1/24"
domain = ""
"""


def told(path: Path, bridge: str, text: str = TEXT) -> list[str]:
    (path / "broker.toml").write_text(text)
    networks = ConfigFile(path / "broker.toml").current().networks
    return [" ".join(argv[1:]) for argv in commands(bridge, networks)]


def test_a_network_is_asked_for_its_own_domain_only(tmp_path: Path) -> None:
    assert told(tmp_path, "svn_lab") == ["domain svn_lab ~lab.example", "dns svn_lab 10.1.0.1"]
    assert told(tmp_path, "svn_six") == ["domain svn_six ~six.internal", "dns svn_six fd62::1"]


def test_the_built_in_network_is_asked(tmp_path: Path) -> None:
    assert [argv[1:] for argv in commands("svn_default", BUILTIN.networks)] == [
        ["domain", "svn_default", "~default.internal"],
        ["dns", "svn_default", "10.213.80.1"],
    ]


@pytest.mark.parametrize(
    "bridge",
    [
        "svn_silent",
        "svn_nameless",
        "svn_u1000",  # a private one: all have the same domain
        "svn_absent",
        "eth0",
        "--help",
        "svn_lab\n",
        "svn_lab/..",
        "",
    ],
)
def test_of_others_nothing_is_said(tmp_path: Path, bridge: str) -> None:
    assert told(tmp_path, bridge) == []


def test_a_wrong_file_says_nothing(tmp_path: Path) -> None:
    wrong = TEXT + "names_on_host = 1\n"
    with pytest.raises(ConfigurationError, match=r"names_on_host.*must be true or false"):
        told(tmp_path, "svn_lab", wrong)
