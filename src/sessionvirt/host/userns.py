# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether this user may make a user namespace, which is what passt confines itself by.

Tried, not looked up: a sysctl, an AppArmor profile, a chroot and a container's seccomp filter each
forbid it in a way of their own (user_namespaces(7)).
"""

from __future__ import annotations

import subprocess

from .paths import find_program

__all__ = ["may_make_user_namespaces"]


def may_make_user_namespaces() -> bool:
    """Make one in a child and see; False where there is no unshare(1) to try it with."""
    unshare = find_program("unshare")
    if unshare is None:
        return False
    tried = subprocess.run([unshare, "--user", "true"], capture_output=True, check=False, timeout=5)
    return tried.returncode == 0
