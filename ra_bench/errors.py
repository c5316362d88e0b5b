"""Errors a user can cause. Each is one line that names the argument, the rule and the value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RaBenchError(Exception):
    """Base of all errors that the command line prints as one line, without a traceback."""

    exit_code = 1


class UsageError(RaBenchError):
    """What was asked for cannot be done: a wrong argument, file or setting. Exit code 2."""

    exit_code = 2


class RunError(RaBenchError):
    """What was asked for was right but failed while it ran. Exit code 1."""

    exit_code = 1


class InterruptedRunError(RaBenchError):
    """The user, or a batch system, ended the run. Exit code 130."""

    exit_code = 130


def one_line(error: Exception) -> str:
    """What an error of a library says, in one line; its name where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def unknown(what: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not known: the closest match, then the list."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return UsageError(f"unknown {what} '{name}'.{hint} Known: {', '.join(names) or 'none'}.")
