# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proofs that have not all passed in the test host yet. pytest does not collect them.

Each becomes ``inside/test_NAME.py`` when it has passed there, alone and among the others. They are
no evidence of anything before.
"""
