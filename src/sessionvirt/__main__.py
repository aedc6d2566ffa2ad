# SPDX-License-Identifier: LGPL-2.1-or-later
"""``python -m sessionvirt``: the command."""

import sys

from sessionvirt.cli import main

sys.exit(main())
