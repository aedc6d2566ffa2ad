# SPDX-License-Identifier: LGPL-2.1-or-later
"""Root's powers without root's uid: a user of its own and five capabilities.

A process of uid 0 on the system bus is root whatever its sandbox says: systemd and polkit look at
the uid. Under systemd the unit sets user and capabilities. Elsewhere the program is started as root
and does the same here, before it opens the bus: :func:`become_broker` starts dnsmasq's keeper and
then runs itself again through setpriv(1), which knows how to leave root better than forty lines of
ctypes.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterable

USER = "sessionvirt-broker"
DNSMASQ_USER = "sessionvirt-dnsmasq"
#: Why each is there is argued in systemd/system/sessionvirt-broker.service.
CAPABILITIES = ("net_admin", "dac_override", "fowner", "sys_resource", "kill")
#: Without these nothing can be given at all.
NEEDED = ("net_admin", "dac_override")
_DNSMASQ_CAPABILITIES = ("net_bind_service", "net_admin", "net_raw")
#: Bit numbers, linux/capability.h.
_BITS = {
    "dac_override": 1,
    "fowner": 3,
    "kill": 5,
    "net_bind_service": 10,
    "net_admin": 12,
    "net_raw": 13,
    "sys_resource": 24,
}
_SETPRIV = "/usr/bin/setpriv"


class PrivilegeError(Exception):
    """The program was started in a way in which it must not run."""


def effective() -> frozenset[str]:
    """The names of the effective capabilities that concern us."""
    return _capabilities("CapEff")


def check() -> None:
    """The broker proper: not root, the needed capabilities, none beyond the five.

    :raise PrivilegeError: says which.
    """
    if os.geteuid() == 0:
        raise PrivilegeError("the broker does not run as root")
    have, mask = effective(), _mask("CapEff")
    beyond = mask & ~sum(1 << _BITS[name] for name in CAPABILITIES)
    if beyond:
        raise PrivilegeError(f"started with capabilities beyond its own: {beyond:#x}")
    missing = [name for name in NEEDED if name not in have]
    if missing:
        raise PrivilegeError(f"started without {' and '.join(missing)}")


def become_broker(runtime: Path) -> NoReturn:
    """Root's stage: directories, the keeper, then this program again as its own user.

    :raise PrivilegeError: a user is missing.
    """
    # Whoever started this may have left something open: nothing of root's goes along.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    try:
        user, dnsmasq = pwd.getpwnam(USER), pwd.getpwnam(DNSMASQ_USER)
    except KeyError as error:
        raise PrivilegeError(f"there is no system user {error.args[0]!s}") from error
    runtime.mkdir(mode=0o711, exist_ok=True)
    runtime.chmod(0o711)
    shutil.chown(runtime, user.pw_uid, user.pw_gid)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # PRIVILEGE: root, for the time of one exec; the argv is constant but for numbers.
    subprocess.Popen(
        [
            *_setpriv(dnsmasq, _DNSMASQ_CAPABILITIES),
            *("/usr/bin/python3", "-IB", "-m", "sessionvirt_broker.keeper"),
            *(str(theirs.fileno()), str(runtime)),
        ],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        env={},
        cwd="/",
    )
    theirs.close()
    ours.set_inheritable(True)
    argv = [
        *_setpriv(user, CAPABILITIES),
        sys.executable,
        *sys.orig_argv[1:],
        "--keeper",
        str(ours.detach()),
    ]
    # PRIVILEGE: root ends here.
    os.execve(_SETPRIV, argv, {})  # noqa: S606  (no shell is the point)


def _setpriv(user: pwd.struct_passwd, capabilities: Iterable[str]) -> list[str]:
    """setpriv(1) for a user with some capabilities, those this host has at all."""
    have = _capabilities("CapBnd") & _capabilities("CapPrm")
    wanted = ",".join(["-all", *(f"+{name}" for name in capabilities if name in have)])
    return [
        _SETPRIV,
        f"--reuid={user.pw_uid}",
        f"--regid={_group(user)}",
        "--clear-groups",
        f"--inh-caps={wanted}",
        f"--ambient-caps={wanted}",
        f"--bounding-set={wanted}",
        "--no-new-privs",
        "--",
    ]


def _group(user: pwd.struct_passwd) -> int:
    return grp.getgrgid(user.pw_gid).gr_gid


def _capabilities(field: str) -> frozenset[str]:
    mask = _mask(field)
    return frozenset(name for name, bit in _BITS.items() if mask >> bit & 1)


def _mask(field: str) -> int:
    for line in (
        Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    ):
        name, _, value = line.partition(":")
        if name == field:
            return int(value, 16)
    raise PrivilegeError(f"/proc/self/status has no {field}")
