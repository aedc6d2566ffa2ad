# SPDX-License-Identifier: LGPL-2.1-or-later
"""The broker's errors, told to the person they happen to.

Every error name of the contract, and those of the bus that a caller of the broker meets, becomes
one class of :mod:`sessionvirt.errors`, with what to do about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .errors import (
    BrokerUnavailableError,
    BusyError,
    InteractionRequiredError,
    NotFoundError,
    PermissionDeniedError,
    SessionvirtError,
    UnsafeError,
    UsageError,
)

__all__ = ["INSTALL", "RESTARTING", "error_for"]

EXAMPLE_RULE: Final = "/usr/share/doc/sessionvirt/sessionvirt.rules.example"

#: What to do where there is no broker.
INSTALL: Final = (
    "install and start sessionvirt-broker, or run without it: --network user, or "
    "<interface type='user'> in the definition"
)
_JOURNAL: Final = "the broker's journal has the details: journalctl -u sessionvirt-broker"
_RULE_FILE: Final = f"{EXAMPLE_RULE} goes to /etc/polkit-1/rules.d/"
_RULE: Final = (
    "log in at this machine's own seat (no rule is needed there), or have an administrator allow "
    f"it: {_RULE_FILE}; for a bridge of the LAN, users or groups in its table of broker.toml"
)


@dataclass(frozen=True)
class _Wording:
    """How one D-Bus error is told."""

    kind: type[SessionvirtError]
    cause: str
    advice: str = ""


_OURS: Final = "org.sessionvirt.Broker1.Error."
#: Nothing was done, and the next broker answers; the client calls again.
RESTARTING: Final = f"{_OURS}Restarting"
_BUS: Final = "org.freedesktop.DBus.Error."

#: Error name to the words for it. The message that came with it is the evidence.
_WORDINGS: Final = {
    f"{_OURS}NotAuthorized": _Wording(
        PermissionDeniedError,
        "polkit does not allow this user what the machine needs",
        _RULE,
    ),
    f"{_OURS}Dismissed": _Wording(
        PermissionDeniedError, "nobody authenticated", "start again and answer the prompt"
    ),
    f"{_OURS}AuthorityUnavailable": _Wording(
        BrokerUnavailableError,
        "polkit could not be asked, so the answer is no",
        "see whether polkit runs: systemctl status polkit",
    ),
    f"{_OURS}Busy": _Wording(
        BusyError, "somebody else holds it", "answer the prompt that is open, or wait"
    ),
    f"{_OURS}LimitsExceeded": _Wording(
        BusyError,
        "a limit of this user is reached",
        "end another machine (sessionvirt leases), or have the limit raised in broker.toml",
    ),
    f"{_OURS}NotFound": _Wording(
        NotFoundError,
        "there is no such thing for this user",
        "'sessionvirt networks' and 'sessionvirt devices' list what there is",
    ),
    f"{_OURS}DeviceUnsafe": _Wording(
        UnsafeError,
        "the broker refuses, because the host would suffer",
        "'sessionvirt devices' shows what can be given away, and what goes along with it",
    ),
    # Only who has called again and again sees this one.
    RESTARTING: _Wording(
        BrokerUnavailableError,
        "the broker starts anew, and does not come to an end of it",
        _JOURNAL,
    ),
    f"{_OURS}StateChanged": _Wording(
        BusyError, "the host changed while the prompt was open", "start again"
    ),
    f"{_OURS}NotSupported": _Wording(
        SessionvirtError,
        "the broker or this host cannot do that",
        "'sessionvirt doctor' may tell why",
    ),
    f"{_OURS}Configuration": _Wording(
        BrokerUnavailableError,
        "the broker's configuration is wrong",
        "an administrator has to correct /etc/sessionvirt/broker.toml",
    ),
    f"{_OURS}Failed": _Wording(
        BrokerUnavailableError, "the host refused what the broker tried", _JOURNAL
    ),
    f"{_BUS}InteractiveAuthorizationRequired": _Wording(
        InteractionRequiredError,
        "authentication is needed, and there is nobody to ask",
        "run it in a terminal or a desktop session, without --no-ask-password, or have an "
        f"administrator allow it: {_RULE_FILE}",
    ),
    f"{_BUS}InvalidArgs": _Wording(UsageError, "the broker does not accept the request"),
    f"{_BUS}UnknownMethod": _Wording(
        BrokerUnavailableError,
        "the broker is of another version",
        "install the same version of sessionvirt and sessionvirt-broker",
    ),
    f"{_BUS}ServiceUnknown": _Wording(
        BrokerUnavailableError, "the broker is not installed", INSTALL
    ),
    f"{_BUS}NameHasNoOwner": _Wording(BrokerUnavailableError, "the broker does not run", INSTALL),
    f"{_BUS}AccessDenied": _Wording(
        BrokerUnavailableError,
        "the system bus does not let the message through",
        "see whether org.sessionvirt.Broker1.conf is installed, and reload the bus",
    ),
    f"{_BUS}NoReply": _Wording(
        BrokerUnavailableError, "the broker went away in mid-call", _JOURNAL
    ),
    f"{_BUS}LimitsExceeded": _Wording(
        BusyError, "a limit of the system bus is reached", "wait, and start again"
    ),
    "org.freedesktop.systemd1.UnitMasked": _Wording(
        BrokerUnavailableError,
        "the broker must not be started now",
        "if its package is just being upgraded, try again in a moment; else an administrator has "
        "masked it: systemctl unmask sessionvirt-broker",
    ),
}

_UNKNOWN: Final = _Wording(BrokerUnavailableError, "the broker failed", _JOURNAL)


def error_for(name: str, message: str) -> SessionvirtError:
    """Return the exception for a D-Bus error.

    :param message: the string that came with it.
    """
    wording = _WORDINGS.get(name, _UNKNOWN)
    if name.startswith(f"{_BUS}Spawn."):
        wording = _Wording(BrokerUnavailableError, "the broker cannot be started", _JOURNAL)
    evidence = message if name in _WORDINGS else f"{name}: {message}"
    return wording.kind(wording.cause, evidence=evidence, advice=wording.advice)
