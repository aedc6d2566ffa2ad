# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sphinx: ``.venv/bin/python -m sphinx -W docs docs/_build``. No extension, no theme to install."""

project = "sessionvirt"
author = "the sessionvirt project"
release = "0.1.0"
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_copy_source = False
nitpicky = True
