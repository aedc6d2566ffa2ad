# SPDX-License-Identifier: LGPL-2.1-or-later
"""MAC and PCI addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessionvirt.model.addresses import PciAddress, parse_mac

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("text", ["52:54:00:AB:cd:ef", " 52-54-00-ab-cd-ef\n"])
def test_mac(text: str) -> None:
    assert parse_mac(text) == "52:54:00:ab:cd:ef"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "52:54:00:ab:cd",
        "52:54:00:ab:cd:ef:00",
        "52:54:00:ab:cd:eg",
        "52:54-00:ab:cd:ef",
        "525400abcdef",
        "01:00:5e:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
        "52:54:00:ab:cd:e\u0665",
        "52:54:00:ab:cd:ef,x=y",
    ],
)
def test_no_mac(text: str) -> None:
    with pytest.raises(ValueError, match=r"address"):
        parse_mac(text)


def test_pci() -> None:
    assert PciAddress.parse("03:00.1") == PciAddress(0, 3, 0, 1)
    assert str(PciAddress.parse("00AB:1f:1F.7")) == "00ab:1f:1f.7"
    assert PciAddress.parse("0000:0a:00.0") < PciAddress.parse("0001:00:00.0")
    assert str(PciAddress.parse("10000:E1:00.0")) == "10000:e1:00.0"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "03:00",
        "3:0.0",
        "0000:03:20.0",
        "0000:03:00.8",
        "0000:03:00.0\n",
        "../03:00.0",
        "00010:03:00.0",
        "100000000:03:00.0",
    ],
)
def test_no_pci(text: str) -> None:
    with pytest.raises(ValueError, match=r"PCI"):
        PciAddress.parse(text)


@pytest.mark.parametrize(
    "parts", [(-1, 0, 0, 0), (1 << 32, 0, 0, 0), (0, 256, 0, 0), (0, 0, 32, 0), (0, 0, 0, 8)]
)
def test_a_pci_address_is_in_range(parts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="no PCI function"):
        PciAddress(*parts)


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 255), st.integers(0, 31), st.integers(0, 7))
def test_pci_round_trip(domain: int, bus: int, slot: int, function: int) -> None:
    address = PciAddress(domain, bus, slot, function)
    assert PciAddress.parse(str(address)) == address
