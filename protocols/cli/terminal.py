"""What a command says, and how it ends.

Exit codes: 0 done; 1 a run failed, and the message names party and scope, or what was checked does not hold;
2 bad input; 130 Ctrl-C.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console


def say(text: str) -> None:
    """One line on standard error."""
    typer.echo(text, err=True)


def plain(text: str) -> str:
    """`text` without what a terminal would obey: a peer's words may be among it."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def cell(value: object) -> str:
    """A cell of a table, with nothing in it that a terminal or rich's markup would obey."""
    from rich.markup import escape

    return escape(plain(str(value)))


def console() -> Console:
    """Standard output; of a fixed width where it is no terminal."""
    from rich.console import Console

    from protocols.compare.report import WIDTH

    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


@contextmanager
def errors(stopped: str = "stopped") -> Iterator[None]:
    """Errors and warnings as single lines on standard error; exit codes as the module says. `stopped` is
    said on Ctrl-C."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *rest, **more: say(f"warning: {message}")
        try:
            yield
        except KeyboardInterrupt:
            say(stopped)
            raise typer.Exit(130) from None
        except Exception as error:
            from protocols.errors import VflError

            if not isinstance(error, VflError):
                raise
            notes = getattr(error, "__notes__", [])
            say("error: " + " ".join(f"{error}".split()) + "".join(f" ({note})" for note in notes))
            raise typer.Exit(1 if notes else 2) from None
