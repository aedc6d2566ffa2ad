# SPDX-License-Identifier: LGPL-2.1-or-later
"""From argv to an exit status. Expected errors become words here, and nowhere else."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from sessionvirt.errors import LaunchError, SessionvirtError

from . import status
from .arguments import parser
from .output import print_error, say

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    :param argv: without the program's name; by default this process'.
    :return: the exit status.
    """
    _open_streams()
    args = parser().parse_args(argv)
    verb = "plan" if args.verb == "run" and args.dry_run else args.verb
    try:
        code: int = import_module(f".{verb}", __package__).main(args)
        sys.stdout.flush()
    except SessionvirtError as error:
        print_error(error)
        if isinstance(error, LaunchError) and getattr(args, "verbose", False):
            import shlex

            say(f"the command was: {shlex.join(error.command)}")
        return error.exit_status
    except KeyboardInterrupt:
        return status.SIGNAL + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output has seen enough. Nothing more is written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status.FAILURE
    except OSError as error:
        # No room for our output, no descriptors left.
        print_error(SessionvirtError("the system refused", evidence=str(error)))
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status.FAILURE
    return code


def _open_streams() -> None:
    """Open what we were started without: else a socket of ours would be stdin, or stdout."""
    names = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
    for number, (name, mode) in enumerate(names):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, which is this one.
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for good
