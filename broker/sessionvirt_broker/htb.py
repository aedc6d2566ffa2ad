# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest may receive in a second, by the kernel's queueing (tc-htb(8)).

A TAP's own sending side is what its guest receives: there an htb qdisc has one class, and every
frame is of it. It is what libvirt makes (virNetDevBandwidthSet() in src/util/virnetdevbandwidth.c),
in libvirt's and tc's units, but for the default of the burst: tc's is one frame, and a timer for
each frame does not keep a rate of many.

What waits is charged to the socket that sent it, so what the host's services answer does not wait
(``ruleset.py``, by the qdisc's handle as priority). What comes from elsewhere is charged to nobody,
or to a TAP, which has no limit of that.

A class is changed where it stands, so no frame passes between two limits. Frames that wait when the
qdisc goes are lost. Nothing here decides; every call is about one ifindex. ``ip`` is pyroute2's.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

__all__ = ["Rate", "is_there", "remove", "set_rate"]

#: "SV": a handle that neither the kernel (from 8000:) nor people (1:) choose.
_QDISC = 0x5356_0000
_CLASS, _DEFAULT = _QDISC | 1, 1
_LEAF = 0x5357_0000
_ROOT = 0xFFFF_FFFF  # TC_H_ROOT
#: What is sent at once where nothing else was said: of a second's worth, and a frame (tc's own
#: formula, with a clock of 250 Hz).
_TICKS, _FRAME = 250, 1600
#: Of one class alone it says nothing; left out, the kernel computes it and warns of the result.
_QUANTUM = 10 * 1514
#: One of these keeps a guest's connections from waiting behind each other; the first that there is.
_LEAVES = ("fq_codel", "sfq")
_ABSENT = (errno.EINVAL, errno.ENOENT, errno.ENODEV)


@dataclass(frozen=True, slots=True)
class Rate:
    """How much in a second, as libvirt says it: tc's kbps are 1000 bytes a second, its kb are KiB.

    :param average: in 1000 bytes a second.
    :param peak: how fast a burst may be, likewise; 0: as fast as the average.
    :param burst: in KiB, what may come at the peak; 0: a few milliseconds' worth.
    """

    average: int
    peak: int = 0
    burst: int = 0

    @property
    def bytes(self) -> int:
        """A second's."""
        return self.average * 1000

    @property
    def peak_bytes(self) -> int:
        """A second's, at most."""
        return (self.peak or self.average) * 1000


def set_rate(ip: Any, ifindex: int, rate: Rate) -> None:
    """Have what goes out by an interface not exceed ``rate``, from now on, whatever it was before.

    :raise FileNotFoundError: the kernel has no htb.
    """
    try:
        # PRIVILEGE: CAP_NET_ADMIN; how fast one interface of ours sends.
        ip.tc("add", "htb", ifindex, _QDISC, default=_DEFAULT)
    except Exception as error:
        if getattr(error, "code", None) == errno.ENOENT:
            raise FileNotFoundError("htb") from error
        if getattr(error, "code", None) != errno.EEXIST:
            raise
    ceil = rate.peak_bytes
    ip.tc(
        "replace-class",
        "htb",
        ifindex,
        _CLASS,
        parent=_QDISC,
        rate=rate.bytes,
        ceil=ceil,
        burst=rate.burst * 1024 or _burst(rate.bytes),
        cburst=_burst(ceil),
        quantum=_QUANTUM,
    )
    for kind in _LEAVES:
        try:
            ip.tc("add", kind, ifindex, _LEAF, parent=_CLASS)
        except Exception as error:
            if getattr(error, "code", None) == errno.ENOENT:
                continue  # not in this kernel
            if getattr(error, "code", None) != errno.EEXIST:
                raise
        break


def is_there(ip: Any, ifindex: int) -> bool:
    """Whether an interface has a class of ours."""
    return any(message["handle"] == _CLASS for message in ip.get_classes(ifindex))


def remove(ip: Any, ifindex: int) -> None:
    """Let it send as it can; absent is in order."""
    if not ifindex:
        return  # which is every interface, to older pyroute2
    try:
        # PRIVILEGE: CAP_NET_ADMIN; by our handle, so no other qdisc goes.
        ip.tc("del", None, ifindex, _QDISC, parent=_ROOT)
    except Exception as error:
        if getattr(error, "code", None) not in _ABSENT:
            raise


def _burst(rate: int) -> int:
    return rate // _TICKS + _FRAME
