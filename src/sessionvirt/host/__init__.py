# SPDX-License-Identifier: LGPL-2.1-or-later
"""Facts about this host that need no privilege."""
