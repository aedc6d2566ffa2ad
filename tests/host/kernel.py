# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which kernel the test host boots: Debian's own, or one with IOMMUFD and VFIO_DEVICE_CDEV.

Debian's kernels are built without CONFIG_IOMMUFD; Fedora's, Arch's and Ubuntu's have it. The other
one has everything built in: no initrd, no modules.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from host.build import BuildError
from lab.stage import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from host.build import Built

__all__ = ["KERNELS", "chosen"]

KERNELS = ("debian", "iommufd")

#: Made beforehand, beside the checkout.
READY = ROOT.parent / "shared/testhost/bzImage-6.12-iommufd"


def chosen(built: Built, name: str, say: Callable[[str], None]) -> Built:
    """*built* with the kernel of that name.

    :raise BuildError: there is none and none can be made.
    """
    if name == "debian":
        return built
    if not READY.exists():
        raise BuildError("there is no kernel with IOMMUFD here")
    return replace(built, kernel=READY, initrd=None)
