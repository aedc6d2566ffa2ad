# SPDX-License-Identifier: LGPL-2.1-or-later
"""What polkit is asked about one offer, and what of its answers is a no; polkit is a table here."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sessionvirt_broker.authority import Answer
from sessionvirt_broker.bus import Caller
from sessionvirt_broker.consent import Consent
from sessionvirt_broker.errors import NotAuthorized
from sessionvirt_broker.kind import Offer
from sessionvirt_broker.limits import Share

pytestmark = pytest.mark.unit

CALLER = Caller(":1.5", 1000)
DETAILS = (("vm", "win11"), ("members", "0000:03:10.0"))


class Authority:
    """Answers by action, and what it was asked."""

    def __init__(self, **answers: Answer) -> None:
        self._answers = {word.replace("_", "-"): answer for word, answer in answers.items()}
        self.asked: list[tuple[str, dict[str, str]]] = []

    async def check(self, caller: Caller, action: str, details: dict[str, str]) -> Answer:
        assert caller == CALLER
        self.asked.append((action, details))
        return self._answers[action]


def answers(authority: Any, *offers: Offer) -> list[Answer]:
    lacking: Any = None
    return asyncio.run(Consent(authority, lacking, lacking).answers(CALLER, offers, refusing=True))


def offer(action: str, includes: str = "") -> Offer:
    return Offer(action, "sentence", DETAILS, "a device", Share(devices=1), (), includes=includes)


@pytest.mark.parametrize("refusal", [Answer.NO, Answer.DISMISSED])
@pytest.mark.parametrize("more", [Answer.YES, Answer.WOULD_ASK])
def test_what_is_refused_is_not_had_by_asking_for_more(refusal: Answer, more: Answer) -> None:
    authority = Authority(pci_assign=refusal, pci_network=more)
    with pytest.raises(NotAuthorized):
        answers(authority, offer("pci-network", includes="pci-assign"))
    # A rule sees what it would see without the wish for more.
    assert authority.asked[0] == ("pci-assign", {"polkit.message": "sentence", **dict(DETAILS)})


@pytest.mark.parametrize("less", [Answer.YES, Answer.WOULD_ASK])
@pytest.mark.parametrize("more", [Answer.YES, Answer.WOULD_ASK])
def test_who_may_have_less_has_not_got_more(less: Answer, more: Answer) -> None:
    authority = Authority(pci_assign=less, pci_network=more)
    assert answers(authority, offer("pci-network", includes="pci-assign")) == [more]
    assert answers(authority, offer("pci-assign")) == [less]
