"""The sub-commands of `vfl`, a module each. `protocols.cli` puts them together.

A module holds one `typer.Typer` called `app`. It imports what a command needs where it needs it, so that
`vfl --help` answers at once, and says what it has to say through `terminal`.
"""
