# SPDX-License-Identifier: LGPL-2.1-or-later
"""Renders the man pages of docs/man into the wheel's share/man, when the wheel is built.

A page's name says its section: ``sessionvirt.1.rst`` becomes ``share/man/man1/sessionvirt.1``. A
warning of docutils ends the build. The pages are forced into the wheel under their final name: the
hatchling of Debian 12 (1.12) takes no shared data from a hook.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from docutils.core import publish_string
from docutils.writers import manpage
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: docutils' level 2 is "warning"; halting there leaves no page that renders by guessing.
STRICT = {"halt_level": 2, "report_level": 2, "output_encoding": "unicode"}


def render(source: Path) -> str:
    """One page, from reStructuredText to roff.

    :raise docutils.utils.SystemMessage: the source has a fault.
    """
    text = source.read_text(encoding="utf-8")
    writer = manpage.Writer()
    page = publish_string(text, source_path=str(source), writer=writer, settings_overrides=STRICT)
    return str(page)


class ManPages(BuildHookInterface[Any]):
    """The hook that pyproject.toml names."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Render every page and tell hatchling where it goes."""
        if version == "editable":
            return
        self._rendered = tempfile.TemporaryDirectory(prefix="sessionvirt-man-")
        data = f"{self.build_config.builder.project_id}.data/data/share/man"
        for source in sorted(Path(self.root, "docs/man").glob("*.rst")):
            page = Path(self._rendered.name, source.stem)
            page.write_text(render(source), encoding="utf-8")
            page.chmod(0o644)
            section = source.stem.rpartition(".")[2]
            build_data["force_include"][str(page)] = f"{data}/man{section}/{page.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Take the rendered copies away."""
        if version != "editable":
            self._rendered.cleanup()
