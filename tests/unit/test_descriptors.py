# SPDX-License-Identifier: LGPL-2.1-or-later
"""Descriptors with one owner: closed once, given away once, never used after either."""

from __future__ import annotations

import os

import pytest

from sessionvirt.descriptors import Fd

pytestmark = pytest.mark.unit


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_the_context_closes_it() -> None:
    with Fd(os.open(os.devnull, os.O_RDONLY)) as fd:
        number = fd.fileno()
        assert is_open(number)
    assert not is_open(number)
    assert fd.closed


def test_what_was_given_away_is_not_closed() -> None:
    fd = Fd(os.open(os.devnull, os.O_RDONLY))
    with fd:
        number = fd.steal()
    assert is_open(number)
    os.close(number)


def test_closing_again_does_not_close_who_got_the_number_since() -> None:
    first = Fd(os.open(os.devnull, os.O_RDONLY))
    number = first.fileno()
    first.close()
    with Fd(os.open(os.devnull, os.O_RDONLY)) as second:
        assert second.fileno() == number, "the kernel gives the lowest free number"
        first.close()
        assert is_open(number)


def test_nothing_works_after_it_is_gone() -> None:
    fd = Fd(os.open(os.devnull, os.O_RDONLY))
    fd.close()
    for use in (fd.fileno, fd.steal):
        with pytest.raises(ValueError, match="closed or given away"):
            use()


def test_a_negative_number_is_an_error_in_the_caller() -> None:
    with pytest.raises(ValueError, match="-1"):
        Fd(-1)
