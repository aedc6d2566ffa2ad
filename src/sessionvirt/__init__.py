# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run virtual machines as an ordinary user, with a small privileged broker for what needs root."""

__version__ = "0.1.0"
