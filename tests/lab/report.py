# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a demo shows: steps, what programs said, and claims that hold or do not.

A step that takes place in the test host is made there (:class:`Step`), and shown here.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

    from lab.users import User

__all__ = ["Report", "Step"]


@dataclass
class Step:
    """What was done and what of it holds, before it is shown; all of it can go through JSON."""

    title: str
    #: Each with what it said.
    commands: list[tuple[str, str]] = field(default_factory=list)
    #: A sentence, whether it holds, and the evidence.
    claims: list[tuple[str, bool, str]] = field(default_factory=list)

    def run(self, user: User, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the user's to its end."""
        done = user.run(list(argv))
        self.show(f"{user.name}$ {shlex.join(argv)}", done.stdout + done.stderr)
        return done

    def show(self, words: str, said: str) -> None:
        """A command that was run in another way."""
        self.commands.append((words, said))

    def claim(self, sentence: str, holds: object, evidence: str = "") -> None:
        self.claims.append((sentence, bool(holds), evidence))


@dataclass
class Report:
    """What is shown, and what held."""

    colour: bool = field(
        default_factory=lambda: sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    )
    held: int = 0
    failed: int = 0
    steps: int = 0
    started: float = field(default_factory=time.monotonic)

    def paint(self, text: str, code: int) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def step(self, title: str) -> None:
        """Begin a numbered step."""
        self.steps += 1
        print(f"\n{self.paint(f'{self.steps}. {title}', 1)}", flush=True)

    def note(self, text: str) -> None:
        print(f"   {text}", flush=True)

    def quote(self, text: str) -> None:
        """Show what a program said."""
        for line in text.rstrip().splitlines():
            print(f"   {self.paint('|', 2)} {line}", flush=True)

    def check(self, sentence: str, *, holds: bool, evidence: str = "") -> None:
        """One claim; the evidence is shown where it does not hold."""
        if holds:
            self.held += 1
            print(f"   {self.paint('ok', 32)}      {sentence}", flush=True)
        else:
            self.failed += 1
            print(f"   {self.paint('FAILED', 31)}  {sentence}", flush=True)
            self.quote(evidence)

    def tell(self, step: Step) -> None:
        """A whole step."""
        self.step(step.title)
        for words, said in step.commands:
            self.note(words)
            self.quote(said)
        for sentence, holds, evidence in step.claims:
            self.check(sentence, holds=holds, evidence=evidence)

    def total(self) -> None:
        """The last line."""
        seconds = time.monotonic() - self.started
        print(f"\n{self.held} of {self.held + self.failed} hold after {seconds:.0f} s")
