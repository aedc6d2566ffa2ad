# SPDX-License-Identifier: LGPL-2.1-or-later
"""Descriptors of /dev/vhost-net: how many, whose, and when there are none.

A file stands for the node, whose kernel this is not; tests/host has the real one.
"""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from sessionvirt_broker import vhost
from sessionvirt_broker.steps import carry_out
from sessionvirt_broker.vhost import OpenVhost, open_each

if TYPE_CHECKING:
    from pathlib import Path

    from sessionvirt_broker.host import Host
    from sessionvirt_broker.steps import Step

pytestmark = pytest.mark.unit


@pytest.fixture
def node(tmp_path: Path) -> Path:
    (tmp_path / "vhost-net").touch()
    (tmp_path / "refcnt").write_text("4\n")
    return tmp_path / "vhost-net"


def opened(node: Path) -> int:
    """How many descriptors of the node this process has."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [os.readlink(link) for link in links if os.path.exists(link)].count(str(node))


def host(*fds: int) -> Host:
    return cast("Host", SimpleNamespace(fds={"svt1": list(fds)}))


def test_one_for_each_queue_close_on_exec(node: Path) -> None:
    given = open_each(3, 4, node, node.with_name("refcnt"))
    try:
        assert len(set(given)) == opened(node) == 3
        assert not any(map(os.get_inheritable, given))
    finally:
        for one in given:
            os.close(one)


def test_none_where_the_host_has_as_many_as_it_may(node: Path) -> None:
    assert open_each(3, 3, node, node.with_name("refcnt")) == []
    assert opened(node) == 0


def test_none_where_nobody_counts(node: Path) -> None:
    """A kernel that has it built in: nothing would bound what is hoarded."""
    assert open_each(2, 1024, node, node.with_name("absent")) == []
    assert opened(node) == 0


@pytest.mark.parametrize("code", ["ENOENT", "ENODEV", "ENXIO", "EACCES", "EPERM"])
def test_a_host_without_is_no_error(node: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No node, no module, a unit or a security module that forbids it."""
    fails(monkeypatch, node, code, at=1)
    assert open_each(1, 9, node, node.with_name("refcnt")) == []


def test_what_else_fails_is_an_error_and_leaves_nothing(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(monkeypatch, node, "EMFILE", at=2)
    with pytest.raises(OSError, match="Too many open files"):
        open_each(3, 9, node, node.with_name("refcnt"))
    assert opened(node) == 0


def fails(monkeypatch: pytest.MonkeyPatch, node: Path, code: str, *, at: int) -> None:
    """Have the node's opening fail, the *at*-th time."""
    real, count = os.open, iter(range(1, 100))

    def open_(path: Any, *arguments: Any) -> int:
        if path == node and next(count) == at:
            number = getattr(errno, code)
            raise OSError(number, os.strerror(number))
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", open_)


def test_the_step_puts_them_behind_the_queues(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        vhost, "open_each", lambda queues, most: [90 + queues, 90 + most] if most > 4 else []
    )
    full, empty = host(7, 8), host(7, 8)
    done: list[Step] = []
    carry_out([OpenVhost("svt1", 2, 9)], done, full, lambda: None)
    assert done == [OpenVhost("svt1", 2, 9, given=1)]
    assert full.fds == {"svt1": [7, 8, 92, 99]}
    carry_out([OpenVhost("svt1", 2, 4)], done, empty, lambda: None)
    assert done == [OpenVhost("svt1", 2, 4, given=0)]
    assert empty.fds == {"svt1": [7, 8]}
