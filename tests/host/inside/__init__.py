# SPDX-License-Identifier: LGPL-2.1-or-later
"""What runs in the test host. No module here is imported outside but the tests, for their names."""
