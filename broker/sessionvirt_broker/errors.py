# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the broker answers when it does not do what was asked.

::

    BrokerError                 a D-Bus error name and one sentence that may leave the process
    ├── InvalidRequest          malformed; names the field
    ├── UnknownMethod           not in the table
    ├── InteractionRequired     a prompt is needed, and not allowed or not possible
    ├── NotAuthorized           polkit said no
    ├── Dismissed               the user closed the prompt, or left it open for too long
    ├── AuthorityUnavailable    polkit is absent, failed, or did not answer in time
    ├── Busy                    somebody else holds it
    ├── LimitsExceeded          a quota is used up; names it
    ├── NotFound                absent, or not for this caller: the same words for both
    ├── DeviceUnsafe            the host would suffer
    ├── StateChanged            what the prompt showed is no longer true
    ├── NotSupported            unknown kind, or this host cannot
    ├── Restarting              the next broker can: call again
    ├── ConfigurationError      broker.toml: file, line, reason
    └── HostFailure             the kernel or a helper refused a step

The sentence is written here or from validated values, never from an exception's text: that goes to
the broker's own log. An exception outside this tree reaches a caller as ``Failed`` with a number to
look up there.
"""

from __future__ import annotations

from typing import ClassVar

ERROR_PREFIX = "org.sessionvirt.Broker1.Error."


class BrokerError(Exception):
    """Root of the tree. ``str()`` of it is sent to the caller."""

    dbus_name: ClassVar[str] = ERROR_PREFIX + "Failed"


class InvalidRequest(BrokerError):
    """A value has the wrong type, form or length; the sentence names the field."""

    dbus_name = "org.freedesktop.DBus.Error.InvalidArgs"


class UnknownMethod(BrokerError):
    """No such object, interface or member."""

    dbus_name = "org.freedesktop.DBus.Error.UnknownMethod"


class InteractionRequired(BrokerError):
    """polkit would ask; the caller allowed no interaction, or has no agent to show a prompt."""

    dbus_name = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"


class NotAuthorized(BrokerError):
    """polkit said no, after a prompt or without one."""

    dbus_name = ERROR_PREFIX + "NotAuthorized"


class Dismissed(BrokerError):
    """The user closed the prompt, or did not answer it in time."""

    dbus_name = ERROR_PREFIX + "Dismissed"


class AuthorityUnavailable(BrokerError):
    """No answer of polkit that means yes or no: treated as a no."""

    dbus_name = ERROR_PREFIX + "AuthorityUnavailable"


class Busy(BrokerError):
    """Held by another lease, or another prompt of the same user is open."""

    dbus_name = ERROR_PREFIX + "Busy"


class LimitsExceeded(BrokerError):
    """A quota of this user or caller is used up."""

    dbus_name = ERROR_PREFIX + "LimitsExceeded"


class NotFound(BrokerError):
    """Absent or forbidden; a caller cannot tell which."""

    dbus_name = ERROR_PREFIX + "NotFound"


class DeviceUnsafe(BrokerError):
    """Refused whatever polkit or the caller says."""

    dbus_name = ERROR_PREFIX + "DeviceUnsafe"


class StateChanged(BrokerError):
    """The host changed between the question and the answer."""

    dbus_name = ERROR_PREFIX + "StateChanged"


class NotSupported(BrokerError):
    """An unknown request kind, or something this host lacks."""

    dbus_name = ERROR_PREFIX + "NotSupported"


class Restarting(BrokerError):
    """Nothing was done; this process ends, and the one that follows can do what was asked."""

    dbus_name = ERROR_PREFIX + "Restarting"


class ConfigurationError(BrokerError):
    """broker.toml is wrong; nothing new is given until it is mended."""

    dbus_name = ERROR_PREFIX + "Configuration"


class HostFailure(BrokerError):
    """A step failed; what was done before it has been undone."""
