# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who says yes: at most one prompt for everything that one call wants.

The algorithm: every request's own action is checked first, without interaction and with its
details. One no refuses all. If exactly one would ask, that action is asked. If several would, only
``vm-start`` is asked, with a sentence that names all of them; never the strongest of them alone,
which would give the others unseen.

What broker.toml permits somebody beforehand stands for the yes of a prompt, and for nothing else:
polkit is asked in any case, and its no is a no, so that a rule can take away what the file gives.

One prompt of a user is open at a time; some agents break on two, and a person can read one.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .authority import Answer
from .errors import Dismissed, InteractionRequired, NotAuthorized

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from .authority import Authority
    from .bus import Bus, Caller
    from .kind import Offer, Owner
    from .limits import Limits, Usage

SEVERAL = "vm-start"
_NOT_REFUSED = (Answer.YES, Answer.CONFIGURED, Answer.WOULD_ASK)


@dataclass(frozen=True, slots=True)
class Question:
    """What would be put before the user."""

    action: str
    details: Mapping[str, str]

    @property
    def sentence(self) -> str:
        """As an agent shows it."""
        text = self.details["polkit.message"]
        for key, value in self.details.items():
            text = text.replace(f"$({key})", value)
        return text


class Consent:
    """Asks polkit on behalf of callers."""

    def __init__(self, authority: Authority, bus: Bus, usage: Usage) -> None:
        self._authority = authority
        self._bus = bus
        self._usage = usage
        self._turns: dict[int, tuple[asyncio.Lock, int]] = {}

    async def answers(
        self, caller: Caller, offers: Sequence[Offer], *, refusing: bool = False
    ) -> list[Answer]:
        """Each offer's own action, without a prompt; in order.

        Who the caller is, in numbers, is what the bus recorded when it connected.

        :raise NotAuthorized: one is no, where *refusing*.
        """
        known: dict[Offer, Answer] = {}
        for offer in offers:
            if offer not in known:
                answer = await self._answer(caller, offer)
                permitted = offer.permit.covers(caller.uid, caller.groups)
                if answer is Answer.WOULD_ASK and permitted:
                    answer = Answer.CONFIGURED
                known[offer] = answer
        for offer, answer in known.items():
            if refusing and answer not in _NOT_REFUSED:
                raise NotAuthorized(f"polkit refuses {offer.summary}")
        return [known[offer] for offer in offers]

    async def _answer(self, caller: Caller, offer: Offer) -> Answer:
        if offer.includes:
            # Nobody gets by a further wish what a rule refuses him without it.
            answer = await self._authority.check(caller, offer.includes, _details(offer))
            if answer not in (Answer.YES, Answer.WOULD_ASK):
                return answer
        return await self._authority.check(caller, offer.action, _details(offer))

    async def obtain(
        self,
        caller: Caller,
        owner: Owner,
        offers: Sequence[Offer],
        limits: Limits,
        *,
        interactive: bool,
    ) -> str:
        """A yes for all of them.

        :return: ``yes``: nobody was asked; ``configured``: nor was anybody, for broker.toml had the
            answer to what would have been; ``asked``: somebody said so.
        :raise BrokerError: NotAuthorized, Dismissed, InteractionRequired or AuthorityUnavailable.
        """
        answers = await self.answers(caller, offers, refusing=True)
        question = asked(owner, offers, answers)
        if question is None:
            return "configured" if Answer.CONFIGURED in answers else "yes"
        if not interactive:
            raise InteractionRequired(f"a prompt is needed: {question.sentence}")
        with self._usage.prompt(caller.uid, caller.sender, limits):
            async with self._bus.cancelled_without(caller), self._turn(caller.uid):
                answer = await self._authority.check(
                    caller,
                    question.action,
                    question.details,
                    prompt_seconds=limits.prompt_seconds,
                )
        if answer is Answer.WOULD_ASK:
            raise InteractionRequired(f"nobody is there to show a prompt: {question.sentence}")
        if answer is Answer.DISMISSED:
            raise Dismissed("the prompt was dismissed")
        if answer is not Answer.YES:
            raise NotAuthorized(f"polkit did not permit it: {question.sentence}")
        return "asked"

    @asynccontextmanager
    async def _turn(self, uid: int) -> AsyncIterator[None]:
        """One prompt of a user at a time."""
        lock, waiting = self._turns.get(uid, (asyncio.Lock(), 0))
        self._turns[uid] = (lock, waiting + 1)
        try:
            async with lock:
                yield
        finally:
            lock, waiting = self._turns[uid]
            if waiting == 1:
                del self._turns[uid]
            else:
                self._turns[uid] = (lock, waiting - 1)


def asked(owner: Owner, offers: Sequence[Offer], answers: Sequence[Answer]) -> Question | None:
    """What must be put before the user, by the answers without a prompt; None: nothing."""
    asking = [o for o, a in zip(offers, answers, strict=True) if a is Answer.WOULD_ASK]
    if not asking:
        return None
    if len(asking) == 1:
        return Question(asking[0].action, _details(asking[0]))
    details = dict(asking[0].details)
    return Question(
        SEVERAL,
        {
            "polkit.message": "Authentication is required to give the virtual machine"
            ' "$(vm)": $(what)',
            "vm": details["vm"],
            "uid": str(owner.uid),
            "what": "; ".join(offer.summary for offer in asking),
        },
    )


def _details(offer: Offer) -> dict[str, str]:
    return {"polkit.message": offer.sentence, **dict(offer.details)}
