# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ``--network`` and ``--bridge`` say of an interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sessionvirt.cli.arguments import parser
from sessionvirt.cli.definition import load_domain
from sessionvirt.errors import UsageError
from sessionvirt.model.interface import InterfaceType, NicModel

if TYPE_CHECKING:
    import argparse

    from sessionvirt.model.interface import Interface

pytestmark = pytest.mark.unit


def interfaces(*words: str) -> tuple[Interface, ...]:
    args: argparse.Namespace = parser().parse_args(["plan", "--kernel", "/dev/null", *words])
    return load_domain(args).interfaces


@pytest.mark.parametrize(
    ("words", "kind", "source", "queues"),
    [
        ((), InterfaceType.USER, None, 1),
        (("--network", "user"), InterfaceType.USER, None, 1),
        (("--network", "default"), InterfaceType.NETWORK, "default", 1),
        (("--network", "default,queues=4"), InterfaceType.NETWORK, "default", 4),
        (("--bridge", "br0,queues=256"), InterfaceType.BRIDGE, "br0", 256),
        (("--bridge", "br0,queues=1"), InterfaceType.BRIDGE, "br0", 1),
    ],
)
def test_one_interface(
    words: tuple[str, ...], kind: InterfaceType, source: str | None, queues: int
) -> None:
    (nic,) = interfaces(*words)
    assert (nic.type, nic.network or nic.bridge, nic.queues) == (kind, source, queues)
    assert nic.model is NicModel.VIRTIO


def test_none_is_none() -> None:
    assert interfaces("--network", "none") == ()


@pytest.mark.parametrize(
    "option",
    [
        "queues=0",
        "queues=257",
        "queues=",
        "queues=+4",
        "queues=\u0664",
        "queues=4,",
        "mtu=9000",
        "",
    ],
)
@pytest.mark.parametrize("of", ["--network", "--bridge"])
def test_what_cannot_be_said_of_one_is_refused(of: str, option: str) -> None:
    with pytest.raises(UsageError, match="cannot be said after 'net0'") as caught:
        interfaces(of, f"net0,{option}")
    assert "queues=1 to queues=256" in caught.value.advice


@pytest.mark.parametrize("name", ["user", "none"])
def test_queues_take_a_tap(name: str) -> None:
    with pytest.raises(UsageError, match="has no queues"):
        interfaces("--network", f"{name},queues=2")
