# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host has the devices that later work is proved with, in the IOMMU groups that it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.host

DEVICES = Path("/sys/bus/pci/devices")


def group(address: str) -> list[str]:
    """Everything in the IOMMU group of a device."""
    return sorted(one.name for one in (DEVICES / address / "iommu_group/devices").iterdir())


def with_ids(vendor: int, device: int) -> list[str]:
    """The addresses of all devices of one model."""
    wanted = (f"0x{vendor:04x}", f"0x{device:04x}")
    return sorted(
        one.name
        for one in DEVICES.iterdir()
        if ((one / "vendor").read_text().strip(), (one / "device").read_text().strip()) == wanted
    )


def test_two_network_cards_in_groups_of_their_own() -> None:
    cards = with_ids(0x8086, 0x10D3)
    assert len(cards) == 2
    assert [group(card) for card in cards] == [[card] for card in cards]


def test_the_chipset_functions_share_a_group() -> None:
    assert group("0000:00:1f.2") == ["0000:00:1f.0", "0000:00:1f.2", "0000:00:1f.3"]


def test_two_cards_behind_a_bridge_to_pci_share_its_group() -> None:
    cards = with_ids(0x8086, 0x100E)
    assert len(cards) == 2
    (bridge,) = with_ids(0x1B36, 0x000E)
    assert group(cards[0]) == sorted([bridge, *cards])


def test_the_root_disk_has_a_controller_in_a_group_of_its_own() -> None:
    controller = Path("/sys/block/vda/device").resolve().parent.name
    assert group(controller) == [controller]
    assert Path("/sys/block/vda/serial").read_text().strip() == "testhost-root"


def test_the_network_card_with_sr_iov_makes_a_virtual_function() -> None:
    (card,) = with_ids(0x8086, 0x10C9)
    count = DEVICES / card / "sriov_numvfs"
    count.write_text("1")
    try:
        function = (DEVICES / card / "virtfn0").resolve().name
        assert group(function) == [function]
    finally:
        count.write_text("0")


def test_other_storage_is_there() -> None:
    assert len(list(Path("/sys/class/nvme").iterdir())) == 1
    assert Path("/dev/disk/by-id/virtio-testhost-spare").is_block_device()
    assert list(Path("/dev/disk/by-id").glob("usb-*testhost-stick*"))
