# SPDX-License-Identifier: LGPL-2.1-or-later
"""``[bridge.NAME]`` of broker.toml: what is read, and each fault with its line."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from sessionvirt_broker import accounts, bridges
from sessionvirt_broker.accounts import AccountFile
from sessionvirt_broker.bridges import LanBridge
from sessionvirt_broker.config import ConfigFile, _Reader
from sessionvirt_broker.errors import ConfigurationError
from sessionvirt_broker.kind import NOBODY, Permit
from sessionvirt_broker.wire import BridgeName

pytestmark = pytest.mark.unit

PASSWD = f"""\
root:x:0:0:root:/root:/bin/sh
alice:x:1000:1000::/home/alice:/bin/sh
alice:x:0:0:a second line of a name:/:/bin/sh
+nis:x:7:7:::
no-number:x:
wrong:x:-1:1:::
arabic:x:\u0661:1:::
huge:x:4294967295:1:::
endless:x:{"9" * 5000}:1:::

"""


@pytest.fixture(autouse=True)
def _accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "passwd").write_text(PASSWD)
    (tmp_path / "group").write_bytes(b"staff:x:50:alice\nbytes\xff:x:51:\n")
    for module in (accounts, bridges):
        monkeypatch.setattr(module, "USERS", AccountFile(tmp_path / "passwd", "user"))
        monkeypatch.setattr(module, "GROUPS", AccountFile(tmp_path / "group", "group"))


def read(body: str) -> LanBridge:
    text = f"\n[bridge.br0]\n{body}\n"
    found = _Reader(Path("broker.toml"), text).configuration(tomllib.loads(text)).bridges
    return found[BridgeName("br0")]


def test_a_bridge_without_keys_permits_nobody_beforehand_and_no_vlan() -> None:
    assert read("") == LanBridge()
    for uid in (0, 1000):
        assert not NOBODY.covers(uid, frozenset({0, 1000}))


def test_names_become_numbers_when_the_file_is_read() -> None:
    found = read('users = ["alice", 1234, 0]\ngroups = ["staff", 60000]')
    assert found.permit == Permit(frozenset({1000, 1234, 0}), frozenset({50, 60000}))
    assert found.permit.covers(1000, frozenset())
    assert found.permit.covers(77, frozenset({7, 50}))
    # A user's number is not a group's.
    assert not found.permit.covers(50, frozenset({1000, 1234}))


def test_vlans_are_numbers_and_ranges() -> None:
    assert read('vlans = [42, "100-103", "7-7", 4094]').vlans == {42, 100, 101, 102, 103, 7, 4094}


@pytest.mark.parametrize(
    "body",
    [
        'users = "alice"',
        'users = ["nobody-here"]',
        'users = ["1000"]',
        'users = ["+nis"]',
        'users = ["no-number"]',
        'users = ["wrong"]',
        'users = ["arabic"]',
        'users = ["huge"]',
        'users = ["endless"]',
        "users = [-1]",
        "users = [4294967295]",
        "users = [true]",
        "users = [1.0]",
        'users = ["staff"]',
        'groups = ["alice"]',
        'groups = ["\\u001b[31m"]',
        "vlans = 42",
        "vlans = [0]",
        "vlans = [4095]",
        "vlans = [true]",
        'vlans = ["42"]',
        'vlans = ["10-9"]',
        'vlans = ["0-9"]',
        'vlans = ["1-4095"]',
        'vlans = ["1-2\\n"]',
        'vlans = ["\\u0661-2"]',
        'mode = "bridge"',
    ],
)
def test_what_is_wrong_is_named_with_its_line(body: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^broker\.toml:3: 'bridge\.br0\.") as error:
        read(body)
    assert str(error.value).isascii()
    assert str(error.value).isprintable()


def test_a_changed_account_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "broker.toml"
    path.write_text('[bridge.br0]\nusers = ["alice"]\n')
    path.chmod(0o644)
    file = ConfigFile(path)

    def users() -> frozenset[int]:
        return file.current().bridges[BridgeName("br0")].permit.users

    if path.stat().st_uid:
        pytest.skip("the file must be root's")
    assert users() == {1000}
    (tmp_path / "passwd").write_text(PASSWD.replace("1000:1000", "10001:1000"))
    assert users() == {10001}
    (tmp_path / "passwd").write_text("")
    with pytest.raises(ConfigurationError, match="there is no user 'alice'"):
        users()
