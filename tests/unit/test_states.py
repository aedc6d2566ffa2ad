# SPDX-License-Identifier: LGPL-2.1-or-later
"""The life of a domain: which state may follow which."""

from __future__ import annotations

import pytest

from sessionvirt.errors import StateError
from sessionvirt.states import INACTIVE, TRANSITIONS, DomainState, check, require

pytestmark = pytest.mark.unit


def test_every_state_has_its_followers_and_can_be_reached() -> None:
    assert set(TRANSITIONS) == set(DomainState)
    reached = set().union(*TRANSITIONS.values())
    assert reached == set(DomainState)


def test_only_a_domain_without_qemu_can_be_started() -> None:
    starts = {old for old, new in TRANSITIONS.items() if DomainState.PREPARING in new}
    assert starts == INACTIVE


def test_a_failed_start_can_go_back_to_wherever_it_came_from() -> None:
    for state in (DomainState.PREPARING, DomainState.STARTING):
        assert TRANSITIONS[state] >= INACTIVE


def test_what_stops_does_not_run_again() -> None:
    assert TRANSITIONS[DomainState.STOPPING] == {DomainState.STOPPED, DomainState.CRASHED}


def test_check_names_both_states() -> None:
    check(DomainState.RUNNING, DomainState.PAUSED)
    with pytest.raises(StateError, match="is stopped cannot become running"):
        check(DomainState.STOPPED, DomainState.RUNNING)


def test_require_names_what_was_wanted_and_what_would_do() -> None:
    require(DomainState.PAUSED, DomainState.RUNNING, DomainState.PAUSED, what="stop")
    with pytest.raises(StateError, match="cannot resume: the domain is running, not paused"):
        require(DomainState.RUNNING, DomainState.PAUSED, what="resume")
