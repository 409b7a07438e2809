"""Three organisations in processes of their own: the vertical network, then FedAvg, over mutual TLS.

    python examples/over_the_network.py           # makes the files in a temporary folder, starts all parties
    python examples/over_the_network.py FOLDER     # the same in FOLDER, which is kept
    python examples/over_the_network.py FOLDER --started    # the parties of FOLDER run already

Between organisations each makes its own key and runs `vfl serve` itself; see docs/guides/network.md.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from sklearn.datasets import load_breast_cancer

from horizontal import FedClassifier
from protocols.federation import Federation
from protocols.service.trial import new_trial
from vfl import VerticalNetClassifier

COLUMNS, ROWS = ("bank", "telco", "shop"), ("server", "north", "south")
PORTS = {"columns": 7001, "rows": 7101}  # of the first party; the others have the next ones
PATIENCE = 300.0  # seconds that the callers wait for the parties, all of which start at the same time


def write_tables(folder: Path) -> None:
    """By columns: bank holds the target. By rows: north and south hold all columns of their own people."""
    people = load_breast_cancer(as_frame=True).frame.rename_axis("id").reset_index()
    shares = {"bank": ["target", "mean radius", "mean texture"], "telco": people.columns[4:18]}
    shares["shop"] = people.columns[18:31]
    for seed, (party, names) in enumerate(shares.items()):
        known = people.sample(frac=0.9, random_state=seed)
        known[["id", *names]].to_csv(folder / "columns" / f"{party}.csv", index=False)
    for party, rows in {"north": people[:300], "south": people[300:]}.items():
        rows.to_csv(folder / "rows" / f"{party}.csv", index=False)


def start(folder: Path) -> list[subprocess.Popen[bytes]]:
    """Certificates, configurations and tables, and a process for each party that serves."""
    for part, parties in {"columns": COLUMNS, "rows": ROWS}.items():
        new_trial(folder / part, parties, port=PORTS[part])
    write_tables(folder)
    configs = [f"columns/{party}.toml" for party in COLUMNS[1:]] + [
        f"rows/{party}.toml" for party in ROWS[1:]
    ]
    command = [sys.executable, "-m", "protocols.cli.main", "serve"]
    logs = [(folder / config).with_suffix(".log").open("wb") for config in configs]
    return [
        subprocess.Popen([*command, str(folder / config)], stderr=log)
        for config, log in zip(configs, logs, strict=True)
    ]


def train(folder: Path) -> None:
    """As bank, and then as the server that holds no data."""
    import pandas as pd

    bank = pd.read_csv(folder / "columns" / "bank.csv")
    columns, rows = (folder / part / "parties.toml" for part in PORTS)
    with Federation.connect(columns, "bank", bank, patience=PATIENCE) as parties:
        vertical = VerticalNetClassifier(epochs=5).fit(parties, target="bank.target", id="id")
        print(vertical.alignment_)
        predicted = vertical.predict(parties)
        right = (predicted == bank.set_index("id")["target"].reindex(predicted.index)).mean()
        print(
            f"vertical network: {right:.3f} right of {len(predicted)} rows that all know, run {vertical.run_}"
        )
        print(vertical.ledger_.summary()[["messages", "bytes"]])
    with Federation.connect(rows, "server", patience=PATIENCE) as parties:
        averaged = FedClassifier(rounds=5).fit(parties, target="target")
        print(f"FedAvg: mean training loss {averaged.history_['loss'].iloc[-1]:.3f} after 5 rounds")
        print(averaged.ledger_.summary()[["messages", "bytes"]])


def main(*words: str) -> None:
    """Start the parties unless they run already, train, and stop those that were started."""
    folder = Path(words[0] if words else tempfile.mkdtemp()).resolve()
    started = [] if "--started" in words else start(folder)
    try:
        train(folder)
    finally:
        for process in started:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main(*sys.argv[1:])
