"""Every error this toolkit raises. Below everything: imports nothing of ours.

    VflError
    ├── ConfigError (ValueError)     a setting, a name or a layout that cannot be meant
    ├── DataError (ValueError)       a table that cannot be used as it is
    │   └── AlignmentError           the parties' ids cannot be brought together
    ├── NotFittedError               predict before fit: `protocols.estimator`, as it is scikit-learn's too
    ├── PolicyError                  a party's policy does not grant what was asked of it
    ├── ProtocolError                a peer said something its role may not say here
    ├── StallError                   every role waits for another, so none can go on
    ├── LineError                    a line between two parties is cut
    ├── CancelledJobError            a job was given up, by its caller or a person, or since its lease ended
    └── PartyError                   a role failed with an error not ours; the cause is chained

An error that leaves a role is marked with its party and scope and prints them first. Messages say
who, where, expected, got and the likely fix. None holds a cell, an id, a key or
another party's column name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class VflError(Exception):
    """Base of every error of this toolkit. `party` and `scope` say where, once it left a role."""

    party: str = ""
    scope: str = ""
    told: str = ""  # what other parties hear instead, where the words are not for them

    def at(self, party: str, scope: str) -> VflError:
        """Return this error, marked with the party and scope it arose in unless it is marked already."""
        if not self.party:
            self.party, self.scope = party, scope
        return self

    def __str__(self) -> str:
        where = "/".join(part for part in (self.party, self.scope) if part)
        return f"{where}: {super().__str__()}" if where else super().__str__()


class ConfigError(VflError, ValueError):
    """A setting, a name or a layout that cannot be meant."""


class DataError(VflError, ValueError):
    """A table that cannot be used as it is."""


class AlignmentError(DataError):
    """The parties' ids cannot be brought together."""


class PolicyError(VflError):
    """A party's policy does not grant what was asked. `clause` is the key of the policy that decided.

    The message begins with the clause and may be told to the peer: no id, no count of rows, no column's name
    that the policy does not show.
    """

    clause: str = ""


class ProtocolError(VflError):
    """A peer said something its role may not say here."""


class StallError(VflError):
    """Every role waits for another, so none can go on."""


class LineError(VflError):
    """A line between two parties is cut."""


class CancelledJobError(VflError):
    """A job was given up: by its caller, by a person, or since the caller fell silent."""


class PartyError(VflError):
    """A role failed with an error that is not ours; that error is chained (`__cause__`)."""


@contextmanager
def marked(party: str, scope: str) -> Iterator[None]:
    """Mark every error of ours that is raised within with its party and its scope."""
    try:
        yield
    except VflError as error:
        error.at(party, scope)
        raise


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"`, whatever the case, or nothing where no known name is close.

    Close is one that differs in a few letters; failing that, one that holds the name, or that the name holds.
    """
    asked = name.casefold()
    folded = {word.casefold(): word for word in known}
    close = get_close_matches(asked, folded, n=1)
    if not close:
        close = sorted(
            (word for word in folded if _is_part(asked, word)), key=lambda w: abs(len(w) - len(asked))
        )
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def _is_part(a: str, b: str) -> bool:
    """Return whether one begins or ends with the other, or contains it and it has four or more letters."""
    short, long = sorted((a, b), key=len)
    if len(short) < 2:
        return False
    return long.startswith(short) or long.endswith(short) or (len(short) > 3 and short in long)
