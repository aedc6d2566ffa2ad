# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a virtual machine is: pure data, no I/O (but :mod:`.quick`, which looks at a disk)."""
