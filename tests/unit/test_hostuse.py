# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the host would lose with a PCI function: each rule, with what is no use, too."""

from __future__ import annotations

import shutil
import unicodedata
from typing import TYPE_CHECKING

import pytest

from lab.fakesysfs import FakeSysfs
from sessionvirt_broker.hostuse import HostUse
from sessionvirt_broker.pci import PciBus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

pytestmark = pytest.mark.unit

ADDRESS = "0000:03:00.0"
OTHER = "0000:04:00.0"
STORAGE, NVME, NETWORK, DISPLAY, SOUND, USB = (
    0x010601, 0x010802, 0x020000, 0x030000, 0x040300, 0x0C0330,
)  # fmt: skip


@pytest.fixture
def host(tmp_path: Path) -> FakeSysfs:
    return FakeSysfs(tmp_path)


def uses(
    host: FakeSysfs,
    address: str = ADDRESS,
    *,
    addresses: Mapping[int, Sequence[str]] | None = None,
    routes: frozenset[int] = frozenset(),
) -> tuple[str, ...]:
    """What is told of one function."""
    function = PciBus(host.sys).function(address)
    assert function is not None
    return HostUse.look(host.sys, host.proc, addresses or {}, routes).of(function)


def behind(host: FakeSysfs, address: str = ADDRESS, class_code: int = STORAGE) -> Path:
    """A function behind a root port, and not on the root bus."""
    root = host.devices / "pci0000:00/0000:00:1c.0"
    return host.function(address, class_code=class_code, driver="some", below=root)


# --- file systems


def test_an_idle_disk_is_no_use(host: FakeSysfs) -> None:
    disk = host.block("sda", behind(host) / "ata1", "8:0")
    host.partition(disk, "sda1", "8:1")
    host.block("sdb", behind(host, OTHER) / "ata2", "8:16")
    host.mount("8:16", "/", "ext4", "/dev/sdb")
    host.mount("0:21", "/proc", "proc", "proc")
    assert uses(host) == ()
    assert uses(host, OTHER) == ("file system / on /dev/sdb",)


def test_a_mounted_partition(host: FakeSysfs) -> None:
    disk = host.block("vda", behind(host) / "virtio1", "254:0")
    host.partition(disk, "vda1", "254:1")
    host.mount("254:1", "/", "ext4", "/dev/root")
    assert uses(host) == ("file system / on /dev/vda1",)


def test_a_stick_behind_a_usb_controller(host: FakeSysfs) -> None:
    stick = behind(host, class_code=USB) / "usb2/2-1/2-1:1.0/host7/target7:0:0/7:0:0:0"
    host.block("sdc", stick, "8:32")
    host.mount("8:32", "/media/stick", "vfat", "/dev/sdc")
    assert uses(host) == ("file system /media/stick on /dev/sdc",)


def test_a_disk_behind_a_vmd_is_a_use_of_the_vmd(host: FakeSysfs) -> None:
    vmd = host.function("0000:00:0e.0", class_code=0x010400, driver="vmd")
    nvme = host.function(
        "10000:e1:00.0", class_code=NVME, driver="nvme", below=vmd / "pci10000:e0/10000:e0:06.0"
    )
    host.block("nvme0n1", nvme / "nvme/nvme0", "259:0")
    host.mount("259:0", "/", "xfs", "/dev/nvme0n1")
    expected = ("file system / on /dev/nvme0n1",)
    assert uses(host, "0000:00:0e.0") == expected
    assert uses(host, "10000:e1:00.0") == expected


def test_a_bridge_is_not_blamed_for_what_is_behind_it(host: FakeSysfs) -> None:
    bridge = host.function("0000:00:1c.0", class_code=0x060400, header=1)
    host.block("sda", behind(host) / "ata1", "8:0")
    host.mount("8:0", "/", "ext4", "/dev/sda")
    assert bridge in (host.sys / "devices/pci0000:00").iterdir()
    assert uses(host, "0000:00:1c.0") == ()


def test_many_mounts_are_told_shortly(host: FakeSysfs) -> None:
    host.block("sda", behind(host) / "ata1", "8:0")
    for where in ("/var/lib/x/1", "/var/lib/x/2", "/srv", "/", "/var/lib/x/3", "/"):
        host.mount("8:0", where, "ext4", "/dev/sda")
    assert uses(host) == (
        "file system / on /dev/sda",
        "file system /srv on /dev/sda",
        "file system /var/lib/x/1 on /dev/sda",
        "2 other mounts of the file system on /dev/sda",
    )


def test_a_logical_volume_on_crypt_on_a_partition_of_nvme_multipath(host: FakeSysfs) -> None:
    controllers = [
        behind(host, address, NVME) / f"nvme/nvme{number}"
        for number, address in enumerate((ADDRESS, OTHER))
    ]
    for controller in controllers:
        controller.mkdir(parents=True)
    disk = host.block("nvme0n1", host.subsystem("nvme-subsys0", *controllers), "259:0")
    part = host.partition(disk, "nvme0n1p3", "259:3")
    crypt = host.mapped("dm-0", "253:0", "luks-1", part)
    host.mapped("dm-1", "253:1", "vg0-root", crypt)
    host.mount("253:1", "/", "ext4", "/dev/mapper/vg0-root")
    expected = (
        "file system / on /dev/nvme0n1p3 (by dm-1)",
        "/dev/nvme0n1p3 is part of dm-0 (luks-1)",
    )
    assert uses(host) == expected
    assert uses(host, OTHER) == expected


def test_nvme_multipath_of_others(host: FakeSysfs) -> None:
    controller = behind(host, OTHER, NVME) / "nvme/nvme0"
    controller.mkdir(parents=True)
    host.block("nvme0n1", host.subsystem("nvme-subsys0", controller), "259:0")
    host.mount("259:0", "/", "ext4", "/dev/nvme0n1")
    behind(host, ADDRESS, NVME)
    assert uses(host) == ()
    assert uses(host, OTHER) == ("file system / on /dev/nvme0n1",)


def test_a_partition_of_a_raid_is_on_its_disks(host: FakeSysfs) -> None:
    disks = [
        host.block(name, behind(host, address) / "ata1", numbers)
        for name, address, numbers in (("sda", ADDRESS, "8:0"), ("sdb", OTHER, "8:16"))
    ]
    raid = host.block("md127", None, "9:127")
    host.holds(raid, *disks)
    host.partition(raid, "md127p1", "259:9")
    host.mount("259:9", "/srv", "ext4", "/dev/md127p1")
    for address, disk in ((ADDRESS, "sda"), (OTHER, "sdb")):
        assert uses(host, address) == (
            f"file system /srv on /dev/{disk} (by md127p1)",
            f"/dev/{disk} is part of md127",
        )


def test_what_is_made_of_itself_is_no_endless_way(host: FakeSysfs) -> None:
    part = host.block("sda", behind(host) / "ata1", "8:0")
    first = host.mapped("dm-0", "253:0", "a", part)
    second = host.mapped("dm-1", "253:1", "b", first)
    host.holds(first, second)
    host.mount("253:1", "/", "ext4", "/dev/mapper/b")
    assert uses(host)[0] == "file system / on /dev/sda (by dm-1)"


def test_btrfs_of_two_disks(host: FakeSysfs) -> None:
    first = host.block("sda", behind(host) / "ata1", "8:0")
    second = host.block("sdb", behind(host, OTHER) / "ata2", "8:16")
    host.mount("0:40", "/data", "btrfs", "/dev/sda")
    for disk in (first, second):
        host.link(host.sys / "fs/btrfs/0f-9a/devices" / disk.name, disk)
    assert uses(host) == ("file system /data on /dev/sda",)
    assert uses(host, OTHER) == ("file system /data on /dev/sdb",)


def test_a_file_system_without_numbers_by_its_source(host: FakeSysfs) -> None:
    host.block("sda", behind(host) / "ata1", "8:0")
    disk = host.block("sdb", behind(host, OTHER) / "ata2", "8:16")
    host.mapped("dm-0", "253:0", "vg-data", disk)
    host.mount("0:41", "/a", "bcachefs", "/dev/sda:/dev/sdz")
    host.mount("0:42", "/b", "btrfs", "/dev/mapper/vg-data")
    assert uses(host) == ("file system /a on /dev/sda",)
    assert uses(host, OTHER)[0] == "file system /b on /dev/sdb (by dm-0)"


def test_a_controller_with_a_slash_in_the_names_of_its_disks(host: FakeSysfs) -> None:
    host.block("cciss!c0d0", behind(host) / "cciss0", "104:0")
    host.mount("0:42", "/", "btrfs", "/dev/cciss/c0d0")
    assert uses(host) == ("file system / on /dev/cciss/c0d0",)


def test_the_log_of_a_file_system_on_another_disk(host: FakeSysfs) -> None:
    host.block("sda", behind(host) / "ata1", "8:0")
    host.mount("254:1", "/", "xfs", "/dev/vda1", options="rw,logdev=/dev/sda,noquota")
    assert uses(host) == ("file system / on /dev/sda",)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "f2fs", "nilfs2", "erofs"])
def test_a_mount_that_only_the_kernel_knows(host: FakeSysfs, kind: str) -> None:
    disk = host.block("sda", behind(host) / "ata1", "8:0")
    host.partition(disk, "sda1", "8:1")
    (host.sys / "fs" / kind / "features").mkdir(parents=True)
    (host.sys / "fs" / kind / "sda1").mkdir()
    assert uses(host) == ("file system in another mount namespace on /dev/sda1",)


def test_a_mount_that_both_know_is_told_once(host: FakeSysfs) -> None:
    host.block("sda", behind(host) / "ata1", "8:0")
    (host.sys / "fs/ext4/sda").mkdir(parents=True)
    host.mount("8:0", "/", "ext4", "/dev/sda")
    assert uses(host) == ("file system / on /dev/sda",)


@pytest.mark.parametrize("where", ["fs/btrfs/0f/devices/sda", "fs/bcachefs/0f/dev-0/block"])
def test_several_disks_mounted_elsewhere(host: FakeSysfs, where: str) -> None:
    disk = host.block("sda", behind(host) / "ata1", "8:0")
    (host.sys / "fs/btrfs/features").mkdir(parents=True)
    host.link(host.sys / where, disk)
    assert uses(host) == ("file system in another mount namespace on /dev/sda",)


def test_what_process_1_has_mounted(host: FakeSysfs) -> None:
    host.block("sda", behind(host) / "ata1", "8:0")
    (host.proc / "1").mkdir()
    (host.proc / "1/mountinfo").write_text("22 1 8:0 / /home rw - vfat /dev/sda rw\n")
    assert uses(host) == ("file system /home on /dev/sda",)


def test_a_journal_on_a_disk_of_its_own(host: FakeSysfs) -> None:
    host.block("sda", behind(host) / "ata1", "8:0")
    host.block("sdb", behind(host, OTHER) / "ata2", "8:16")
    for name in ("sda", "sdb-8"):
        (host.proc / "fs/jbd2" / name).mkdir(parents=True)
    assert uses(host) == ("a file system's journal is on /dev/sda",)
    assert uses(host, OTHER) == ()


def test_escapes_and_hostile_mount_points(host: FakeSysfs) -> None:
    host.block("sda", behind(host) / "ata1", "8:0")
    host.mount("8:0", r"/media/my\040disk\134n", "vfat", "/dev/sda")
    host.mount("8:0", "/media/\\012\u202e\u200b$(id)", "vfat", "/dev/sda")
    host.mount("8:0", "/media/" + "x" * 5000, "vfat", "/dev/sda")
    found = uses(host)
    assert found[:2] == (
        "file system /media/???$(id) on /dev/sda".replace("$", "?"),
        "file system /media/my disk\\n on /dev/sda",
    )
    for phrase in found:
        assert len(phrase) < 110
        assert phrase.isprintable()
        assert not any(unicodedata.category(c) == "Cf" for c in phrase)


def test_the_source_of_a_users_fuse_mount_is_what_he_likes(host: FakeSysfs) -> None:
    host.block("sda", behind(host) / "ata1", "8:0")
    host.mount("0:50", "/home/u/x", "fuse.x", "/dev/sda", options="rw,user_id=1000,group_id=1000")
    assert uses(host) == ()


def test_the_source_of_roots_fuse_mount_is_believed(host: FakeSysfs) -> None:
    host.block("sda", behind(host) / "ata1", "8:0")
    host.mount("0:50", "/mnt", "fuse.ext4", "/dev/sda", options="rw,user_id=0,group_id=0")
    assert uses(host) == ("file system /mnt on /dev/sda",)


def test_a_fuse_mount_with_the_numbers_of_a_disk_is_believed(host: FakeSysfs) -> None:
    host.block("sda", behind(host) / "ata1", "8:0")
    host.mount("8:0", "/mnt", "fuseblk", "/dev/sda", options="rw,user_id=1000")
    assert uses(host) == ("file system /mnt on /dev/sda",)


@pytest.mark.parametrize("line", ["22 1 8:0 / / rw", "22 1 8:0 / / rw shared:1 - ext4", "x"])
def test_a_mount_that_is_not_understood_is_an_error(host: FakeSysfs, line: str) -> None:
    behind(host)
    (host.proc / "self/mountinfo").write_text(line + "\n")
    with pytest.raises(ValueError, match="mountinfo"):
        uses(host)


def test_mounts_that_cannot_be_read_are_an_error(host: FakeSysfs) -> None:
    behind(host)
    (host.proc / "self/mountinfo").unlink()
    with pytest.raises(OSError, match="mountinfo"):
        uses(host)


# --- swap, holders, pools


def test_swap(host: FakeSysfs) -> None:
    disk = host.block("sda", behind(host) / "ata1", "8:0")
    host.partition(disk, "sda2", "8:2")
    behind(host, OTHER)
    host.swap("/dev/sda2")
    host.swap("/swapfile", "file")
    assert uses(host) == ("swap on /dev/sda2",)
    assert uses(host, OTHER) == ()


def test_swap_on_a_volume_whose_node_was_made_anew(host: FakeSysfs) -> None:
    disk = host.block("sda", behind(host) / "ata1", "8:0")
    host.mapped("dm-0", "253:0", "vg-swap", disk)
    host.swap(r"/dev/mapper/vg-swap\040(deleted)")
    assert uses(host)[0] == "swap on /dev/sda (by dm-0)"


def test_swap_that_is_nowhere_may_be_anywhere(host: FakeSysfs) -> None:
    disk = host.block("sda", behind(host) / "ata1", "8:0")
    host.partition(disk, "sda2", "8:2")
    host.swap("/mnt/node")
    assert uses(host) == ("swap may be on /dev/sda",)


def test_a_kernel_without_swap(host: FakeSysfs) -> None:
    behind(host)
    (host.proc / "swaps").unlink()
    assert uses(host) == ()


def test_a_holder_with_a_hostile_label(host: FakeSysfs) -> None:
    disk = host.block("sda", behind(host) / "ata1", "8:0")
    host.mapped("dm-0", "253:0", "\x1b]0;x\u202e$(id)" + "y" * 200, disk)
    (phrase,) = uses(host)
    assert phrase.startswith("/dev/sda is part of dm-0 (?]0;x??(id)yy")
    assert len(phrase) < 100


def test_a_bcache(host: FakeSysfs) -> None:
    disk = host.block("sda", behind(host) / "ata1", "8:0")
    (disk / "bcache").mkdir()
    assert uses(host) == ("/dev/sda is part of a bcache",)


def test_a_zfs_pool_may_be_on_any_disk(host: FakeSysfs) -> None:
    disk = host.block("sda", behind(host) / "ata1", "8:0")
    host.partition(disk, "sda1", "8:1")
    (host.proc / "spl/kstat/zfs/tank").mkdir(parents=True)
    assert uses(host) == ("a ZFS pool may be on /dev/sda",)


def test_zfs_without_a_pool(host: FakeSysfs) -> None:
    host.block("sda", behind(host) / "ata1", "8:0")
    host.write(host.proc / "spl/kstat/zfs", {"arcstats": ""})
    assert uses(host) == ()


def test_a_disk_that_vanishes(host: FakeSysfs) -> None:
    disk = host.block("sda", behind(host) / "ata1", "8:0")
    host.mount("8:0", "/mnt", "ext4", "/dev/sda")
    shutil.rmtree(disk)
    # Links and the mount are still there, as for a moment after a stick is pulled.
    assert uses(host) == ("file system /mnt on /dev/sda",)
    (host.sys / "class/block/sda").unlink()
    assert uses(host) == ()


# --- network


def card(host: FakeSysfs, address: str = ADDRESS) -> Path:
    return behind(host, address, NETWORK)


def test_an_idle_interface_is_no_use(host: FakeSysfs) -> None:
    host.interface("enp3s0", card(host), 2)
    host.write(host.sys / "class/net", {"bonding_masters": "bond0\n"})
    assert uses(host, addresses={3: ["192.168.1.6"]}, routes=frozenset({3})) == ()


def test_a_route_and_addresses(host: FakeSysfs) -> None:
    host.interface("enp3s0", card(host) / "virtio3", 2)
    found = uses(host, addresses={2: ["192.168.1.5", "2001:db8::5"]}, routes=frozenset({2}))
    assert found == (
        "default route via enp3s0",
        "address 192.168.1.5 on enp3s0",
        "address 2001:db8::5 on enp3s0",
    )


def test_many_addresses_are_told_shortly(host: FakeSysfs) -> None:
    host.interface("enp3s0", card(host), 2)
    found = uses(host, addresses={2: [f"192.0.2.{number}" for number in range(100)]})
    assert len(found) == 5
    assert found[-1] == "96 other addresses on enp3s0"


@pytest.mark.parametrize(
    ("master", "kind", "word"),
    [("br0", "bridge", " (bridge)"), ("bond0", "bonding", " (bond)"), ("team0", "", "")],
)
def test_a_port(host: FakeSysfs, master: str, kind: str, word: str) -> None:
    upper = host.interface(master, None, 9)
    if kind:
        (upper / kind).mkdir()
    host.interface("enp3s0", card(host), 2, master=upper)
    assert uses(host) == (f"enp3s0 is a port of {master}{word}",)


def test_a_vlan(host: FakeSysfs) -> None:
    vlan = host.interface("enp3s0.100", None, 9)
    below = host.interface("enp3s0", card(host), 2)
    host.link(below / "upper_enp3s0.100", vlan)
    assert uses(host) == ("enp3s0 is below enp3s0.100",)


def test_pppoe(host: FakeSysfs) -> None:
    host.interface("enp3s0", card(host), 2)
    host.interface("enp4s0", card(host, OTHER), 3)
    line = "00000100   00:90:1A:A0:11:22           enp3s0\n"
    host.write(host.proc / "net", {"pppoe": f"Id       Address              Device\n{line}"})
    assert uses(host) == ("a PPPoE connection by enp3s0",)
    assert uses(host, OTHER) == ()


HIDDEN = ("its network interface is in another network namespace, or hidden",)


def test_an_interface_that_a_container_has(host: FakeSysfs) -> None:
    card(host)
    host.interface("enp4s0", card(host, OTHER), 3)
    assert uses(host) == HIDDEN
    assert uses(host, OTHER) == ()


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        ("", ()), ("vfio-pci", ()), ("mlx5_vfio_pci", ()), ("pci-stub", ()),
        ("uio_pci_generic", HIDDEN),
    ],
)  # fmt: skip
def test_a_card_that_has_no_interface(
    host: FakeSysfs, driver: str, expected: tuple[str, ...]
) -> None:
    host.function(ADDRESS, class_code=0x028000, driver=driver)
    assert uses(host) == expected


# --- displays, consoles, sound, input, TPM


def test_the_boot_display(host: FakeSysfs) -> None:
    (behind(host, ADDRESS, DISPLAY) / "boot_vga").write_text("1\n")
    (behind(host, OTHER, DISPLAY) / "boot_vga").write_text("0\n")
    assert uses(host) == ("boot display",)
    assert uses(host, OTHER) == ()


def test_displays(host: FakeSysfs) -> None:
    gpu = behind(host, ADDRESS, DISPLAY)
    first = host.member("drm", "card0", gpu)
    for name, state in (("HDMI-A-1", "enabled"), ("DP-1", "disabled")):
        path = first / f"card0-{name}"
        host.write(path, {"enabled": f"{state}\n"})
        host.link(host.sys / "class/drm" / path.name, path)
    host.member("drm", "renderD128", gpu, {"enabled": "enabled\n"})
    host.member("graphics", "fb0", gpu)
    host.member("graphics", "fbcon", host.virtual)
    assert uses(host) == ("active display card0-HDMI-A-1", "framebuffer fb0")


def test_a_console(host: FakeSysfs) -> None:
    host.member("tty", "ttyS4", behind(host, class_code=0x070002))
    host.member("tty", "ttyS5", behind(host, OTHER, 0x070002))
    host.write(host.sys / "class/tty/console", {"active": "tty0 ttyS4\n"})
    assert uses(host) == ("console on ttyS4",)
    assert uses(host, OTHER) == ()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("closed\n", ()),
        ("state: RUNNING\nowner_pid   : 1\n", ("sound card 1 is playing or recording",)),
        ("state: PREPARED\n", ("sound card 1 is playing or recording",)),
    ],
)
def test_sound(host: FakeSysfs, status: str, expected: tuple[str, ...]) -> None:
    host.member("sound", "card1", behind(host, ADDRESS, SOUND))
    host.write(
        host.proc / "asound/card1",
        {"id": "PCH\n", "pcm0p/sub0/status": "closed\n", "pcm3p/sub0/status": status},
    )
    host.write(host.proc / "asound/card0", {"pcm0p/sub0/status": "state: RUNNING\n"})
    assert uses(host) == expected


def keys(host: FakeSysfs, parent: Path, number: int, name: str, **sends: str) -> None:
    """An input device."""
    capabilities = {"key": "0", "rel": "0", "abs": "0", "sw": "0"} | sends
    files = {f"capabilities/{kind}": f"{bits}\n" for kind, bits in capabilities.items()}
    host.member("input", f"input{number}", parent, files | {"name": f"{name}\n"})


@pytest.mark.parametrize("kind", ["key", "rel", "abs"])
def test_an_input_device(host: FakeSysfs, kind: str) -> None:
    stick = behind(host, class_code=USB) / "usb1/1-2/1-2:1.0/0003:046D:C31C.0001"
    keys(host, stick, 4, "AT\u202e \x1b[0mkeyboard$(id)", **{kind: "10000 7 0"})
    assert uses(host) == ("input device: AT? ?[0mkeyboard?(id)",)


def test_a_jack_is_no_input_device(host: FakeSysfs) -> None:
    keys(host, behind(host, class_code=SOUND) / "sound/card0", 9, "HDMI", sw="140")
    assert uses(host) == ()


def test_a_controller_with_a_hundred_keyboards(host: FakeSysfs) -> None:
    controller = behind(host, class_code=USB)
    for number in range(100):
        keys(host, controller / f"usb1/{number}", number, f"keyboard {number}", key="1")
    found = uses(host)
    assert len(found) == 32
    assert found[-1] == "69 other uses"


def test_a_tpm(host: FakeSysfs) -> None:
    host.member("tpm", "tpm0", behind(host, class_code=0x078000) / "tpm_crb")
    behind(host, OTHER)
    assert uses(host) == ("TPM tpm0",)
    assert uses(host, OTHER) == ()


# --- the function itself


@pytest.mark.parametrize(
    ("number", "phrase"), [(1, "1 virtual function exists"), (3, "3 virtual functions exist")]
)
def test_virtual_functions(host: FakeSysfs, number: int, phrase: str) -> None:
    physical = card(host)
    host.interface("enp3s0", physical, 2)
    virtual = [host.function(f"0000:03:10.{one}") for one in range(number)]
    host.virtual_functions(physical, *virtual)
    assert uses(host) == (phrase,)
    assert uses(host, "0000:03:10.0") == ()


@pytest.mark.parametrize(
    ("class_code", "word"),
    [
        (0x060000, "host bridge"), (0x060100, "ISA"), (0x0C0500, "SMBus"), (0x080600, "IOMMU"),
        (0x050210, "CXL"), (0x058000, "power"), (0x078000, "management"), (0x088000, "peripheral"),
        (0x0C8000, "serial bus"), (0x110100, "counters"),
    ],
)  # fmt: skip
def test_parts_of_the_host(host: FakeSysfs, class_code: int, word: str) -> None:
    host.function("0000:00:1f.0", class_code=class_code)
    (phrase,) = uses(host, "0000:00:1f.0")
    assert word in phrase


@pytest.mark.parametrize("class_code", [0x058000, 0x078000, 0x088000, 0x0C8000, 0x068000])
def test_a_card_with_the_class_of_a_chipset_is_a_card(host: FakeSysfs, class_code: int) -> None:
    behind(host, ADDRESS, class_code)
    assert uses(host) == ()


@pytest.mark.parametrize("class_code", [0x0C0330, 0x050000, 0x118000, 0x080501, 0x00FF00])
def test_a_device_on_the_root_bus_is_a_device(host: FakeSysfs, class_code: int) -> None:
    host.function("0000:00:14.0", class_code=class_code)
    assert uses(host, "0000:00:14.0") == ()


def test_the_security_processor(host: FakeSysfs) -> None:
    root = host.devices / "pci0000:00/0000:00:08.1"
    host.function(ADDRESS, class_code=0x108000, vendor=0x1022, below=root)
    host.function(OTHER, class_code=0x108000, vendor=0x8086, below=root)
    assert uses(host) == ("the processor's security processor",)
    assert uses(host, OTHER) == ()


def test_the_order_is_fixed(host: FakeSysfs) -> None:
    everything = behind(host, class_code=DISPLAY)
    (everything / "boot_vga").write_text("1\n")
    host.member("tpm", "tpm0", everything)
    keys(host, everything, 1, "keyboard", key="1")
    host.member("graphics", "fb0", everything)
    host.interface("enp3s0", everything, 2)
    host.block("sda", everything / "ata1", "8:0")
    host.swap("/dev/sda")
    host.mount("8:0", "/", "ext4", "/dev/sda")
    assert uses(host, routes=frozenset({2})) == (
        "file system / on /dev/sda",
        "swap on /dev/sda",
        "default route via enp3s0",
        "boot display",
        "framebuffer fb0",
        "input device: keyboard",
        "TPM tpm0",
    )


def test_a_host_with_nothing(tmp_path: Path) -> None:
    host = FakeSysfs(tmp_path)
    behind(host)
    assert uses(host) == ()
