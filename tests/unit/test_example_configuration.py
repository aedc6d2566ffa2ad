# SPDX-License-Identifier: LGPL-2.1-or-later
"""The example of broker.toml says what is built in, and what it suggests can be switched on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lab.stage import ROOT
from sessionvirt_broker.config import BUILTIN, PciPolicy, _Reader
from sessionvirt_broker.wire import BridgeName, NetworkName

if TYPE_CHECKING:
    from sessionvirt_broker.config import Configuration

pytestmark = pytest.mark.unit

TEXT = (ROOT / "broker/broker.toml.example").read_text()


def read(text: str) -> Configuration:
    """What the broker would read; who owns the file is tested elsewhere."""
    return _Reader(Path("broker.toml"), text).configuration(tomllib.loads(text))


def test_it_is_the_built_in_configuration() -> None:
    configuration = read(TEXT)
    assert dict(configuration.networks) == dict(BUILTIN.networks)
    assert configuration.bridges == BUILTIN.bridges
    assert configuration.pci == BUILTIN.pci
    assert configuration.private == BUILTIN.private
    assert configuration.limits == BUILTIN.limits


def test_what_is_commented_out_can_be_switched_on() -> None:
    # A setting has no space after the "#", prose has.
    configuration = read(re.sub(r"^#(?=\S)", "", TEXT, flags=re.MULTILINE))
    assert set(configuration.networks) == {"default", "lab"}
    assert [host.label for host in configuration.networks[NetworkName("lab")].hosts] == ["build"]
    assert configuration.private == BUILTIN.private  # its values are the defaults
    assert set(configuration.bridges) == {"br0"}
    assert configuration.bridges[BridgeName("br0")].permit.covers(1000, frozenset())
    assert configuration.pci == PciPolicy(deny=frozenset({"0000:00:1f.2"}))
    assert configuration.limits == BUILTIN.limits
