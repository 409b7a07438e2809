"""Who takes part, and how to reach them. Here: everybody in this process.

In one process each party still holds only its own table and speaks only through its lines; what a
run says about disclosure is what those lines carried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from protocols.data.tables import own_table
from protocols.errors import ConfigError, marked
from protocols.party import Coordinator, Desk, Role, Run, run
from protocols.policy.rules import Action
from protocols.progress import Report
from protocols.randomness import standard_torch
from protocols.wire.clock import run_virtual
from protocols.wire.faults import Faults, Plan
from protocols.wire.ledger import Ledger
from protocols.wire.tap import Tap
from protocols.wire.transport import Local, Network, Transport

if TYPE_CHECKING:
    from protocols.programs import Parameters, Program, Seat
    from protocols.service.caller import Connected

P = TypeVar("P", bound="Parameters")


def simulate(
    roles: Mapping[str, Role],
    *,
    seed: int = 0,
    network: Network | None = None,
    faults: Plan | None = None,
    job: str = "local",
    on_progress: Report | None = None,
    tap: Tap | None = None,
) -> Run:
    """Run every role (party name -> function of its Party) in this process, under a virtual clock.

    Everyone's roster is all the others, in the order of `roles`. The first failure stops all and is
    raised here, naming party and scope. Works below a running event loop, as in a notebook. tap: keeps what
    one party sends and receives.
    """
    local = Local(tuple(roles), network)
    below: Transport = local if tap is None else tap.on(local)
    ledger = Ledger(below if faults is None else Faults(below, faults))

    names = tuple(roles)

    async def play(name: str) -> Any:
        return await roles[name](
            Coordinator(Desk(name, ledger, seed, job, names, network, on_progress=on_progress))
        )

    async def everyone() -> dict[str, Any]:
        return await run(**{name: play(name) for name in names})

    results, seconds = run_virtual(everyone(), local.on_stall)
    return Run(results, ledger, seconds)


class Federation(Mapping[str, pd.DataFrame]):
    """Parties and their tables, all in this process. Estimators take one, or a plain mapping.

    Party names are non-empty and hold no dot, slash or white space: `"party.column"` is split at the
    first dot, scopes at slashes.
    """

    def __init__(
        self,
        tables: Mapping[str, pd.DataFrame],
        *,
        network: Network | None = None,
        faults: Plan | None = None,
        tap: Tap | None = None,
    ) -> None:
        """network: simulated; faults: a plan that disturbs lines; tap: keeps one party's view of a run."""
        if not isinstance(tables, Mapping) or not tables:
            raise ConfigError(f"expected a mapping of party name to DataFrame, got {type(tables).__name__}")
        self._tables = {}
        for name, table in tables.items():
            with marked(check_name(name), ""):
                self._tables[name] = own_table(table)
        self.network, self.faults, self.tap = network, faults, tap

    @classmethod
    def of(cls, data: Mapping[str, pd.DataFrame]) -> Federation | Connected:
        """Return `data` itself if it is a federation, else a new federation of the tables in `data`."""
        from protocols.service.caller import Connected

        return data if isinstance(data, Federation | Connected) else cls(data)

    @classmethod
    def local(cls, data: Mapping[str, pd.DataFrame]) -> Federation:
        """Do what `of` does, but raise ConfigError unless all tables are in this process."""
        found = cls.of(data)
        if isinstance(found, Federation):
            return found
        raise ConfigError(f"this needs the tables of all parties here, and {found!r} holds one")

    @staticmethod
    def connect(
        file: str | Path,
        me: str,
        data: pd.DataFrame | None = None,
        *,
        store: str | Path | None = None,
        tables: Mapping[str, str] | None = None,
        insecure: bool = False,
        patience: float = 60.0,
    ) -> Connected:
        """Connect to the parties in the book `file` (parties.toml) over the network, as the party `me`.

        data: this party's own table, None for one that has none. The others run `vfl serve`. store: where
        this party's parts, checkpoints and ledger are; by default `<me>-store` beside the book. tables: which
        of its tables a party is to use, where it serves more than one. insecure: no TLS, on loopback only.
        patience: seconds to wait for a party that is away. Use as a context, or call `close`.
        """
        from protocols.service.caller import Connected

        return Connected(file, me, data, store=store, tables=tables, insecure=insecure, patience=patience)

    @property
    def parties(self) -> tuple[str, ...]:
        """Party names, in the order given."""
        return tuple(self._tables)

    @property
    def here(self) -> tuple[str, ...]:
        """The parties whose tables are in this process: all of them, or over a network at most this one."""
        return tuple(self)

    def execute(
        self,
        program: Program[P],
        action: Action,
        parameters: P,
        seat: Callable[[str], Seat],
        parties: Sequence[str],
        *,
        seed: int = 0,
        on_progress: Report | None = None,
        run: str = "",
    ) -> Run:
        """Run one action of a registered program among `parties`, in roster order; `seat` gives each its own.

        seed: what all of them draw from in this process; over a network each has a seed of its own.
        Every seat is checked before any line opens; an error says whose it is. Over a network, this party's
        seat alone is asked for, and `Run.results` holds its result alone; `run` is the job that trained.
        """
        roles: dict[str, Role] = {}
        with standard_torch():
            for party in parties:
                with marked(party, action):
                    roles[party] = program.role(action, parameters, seat(party))
            return self.run(roles, seed=seed, on_progress=on_progress)

    def run(self, roles: Mapping[str, Role], *, seed: int = 0, on_progress: Report | None = None) -> Run:
        """Run these roles over this federation's lines."""
        with standard_torch():
            return simulate(
                roles,
                seed=seed,
                network=self.network,
                faults=self.faults,
                on_progress=on_progress,
                tap=self.tap,
            )

    def __getitem__(self, party: str) -> pd.DataFrame:
        return self._tables[party]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {t.shape[0]} x {t.shape[1]}" for name, t in self._tables.items())
        return f"Federation({sizes})"


def check_name(name: object) -> str:
    """Return `name` if it can name a party; raise ConfigError otherwise."""
    if not isinstance(name, str) or not name or any(c.isspace() or c in "./|\0" for c in name):
        raise ConfigError(
            f"{name!r} cannot name a party: names are text without dots, slashes, bars or spaces"
        )
    return name
