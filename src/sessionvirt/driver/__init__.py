# SPDX-License-Identifier: LGPL-2.1-or-later
"""Behaviour: one virtual machine from its definition to its end."""
