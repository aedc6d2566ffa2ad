# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ``sessionvirt`` command: one module for each verb, imported when it is wanted."""

from .main import main

__all__ = ["main"]
