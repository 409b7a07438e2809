"""What was measured beside what is claimed, and whether the numbers bear the claim out.

No line is involved. Verdicts are decided by the rules below, from numbers, for every run anew. Each row of
the comparison has one function here, which reads one method's figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from protocols.compare.claims import CLAIMS, CLIENT_LEVELS, NO_CLAIM, SERVER_LEVELS, WAYS, level
from protocols.compare.figures import DIRECTIONS, Figures, amount, nbytes, percent, seconds
from protocols.compare.measure import ROUND_TRIPS

Status = Literal["stated", "measured", "not yet measured", "not run"]
Ruling = Literal["agrees", "disagrees", "leaves out", "not known"]
STATUSES = get_args(Status)

SEQUENTIAL = 0.9  # of the messages of the epochs on one dependent chain
BACK = 0.1  # of the bytes going up: less coming down is not worth a word


@dataclass(frozen=True)
class Line:
    """One sentence of a cell, and whether it was measured on this run."""

    status: Status
    text: str


@dataclass(frozen=True)
class Verdict:
    """Whether the numbers of one method bear the claim out."""

    method: str
    ruling: Ruling
    text: str


@dataclass(frozen=True)
class Cell:
    """One way to learn, in one row of the comparison."""

    way: str
    claim: str
    lines: tuple[Line, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class Row:
    """One row of the comparison."""

    title: str
    cells: tuple[Cell, ...]


Found = tuple[list[Line], list[tuple[Ruling, str]]]


def rows(figures: Sequence[Figures]) -> list[Row]:
    """All ten rows, each with a cell for every way."""
    return [
        Row(title, tuple(_cell(title, way, [f for f in figures if f.method.column == way]) for way in WAYS))
        for title in CLAIMS
    ]


def _cell(title: str, way: str, figures: Sequence[Figures]) -> Cell:
    claim = CLAIMS[title].get(way, NO_CLAIM)
    if not figures:
        return Cell(way, claim, (Line("not run", "No method of this kind was run."),), ())
    lines: dict[Line, list[str]] = {}
    verdicts: dict[tuple[Ruling, str], list[str]] = {}
    for f in figures:
        found, rulings = FINDERS[title](f)
        for line in found:
            lines.setdefault(line, []).append(f.name)
        for ruling in rulings:
            verdicts.setdefault(ruling, []).append(f.name)
    return Cell(
        way,
        claim,
        # What holds for all methods of a cell needs no names.
        tuple(
            Line(line.status, line.text if len(who) == len(figures) else f"{', '.join(who)}: {line.text}")
            for line, who in sorted(lines.items(), key=lambda item: STATUSES.index(item[0].status))
        ),
        tuple(Verdict(", ".join(who), *ruling) for ruling, who in verdicts.items()),
    )


def _moved(f: Figures, phase: str) -> str:
    ways = [(way, f.get("bytes", phase=phase, direction=way).mean) for way in DIRECTIONS]
    return ", ".join(f"{nbytes(size)} {way}" for way, size in ways if size) or "nothing leaves"


def _raw(f: Figures, phase: str) -> float:
    """Bytes of the messages that carry rows in the clear."""
    return sum(t.nbytes.mean for t in f.traffic if t.phase == phase and "rows" in (t.carries or ()))


def _undeclared(f: Figures, phase: str) -> list[str]:
    """Kinds of message that do not say what they carry."""
    return sorted({t.kind for t in f.traffic if t.phase == phase and t.carries is None})


def _stays(f: Figures) -> list[tuple[Ruling, str]]:
    """Whether rows and labels stayed, while training."""
    raw, undeclared = _raw(f, "train"), _undeclared(f, "train")
    rulings: list[tuple[Ruling, str]] = []
    if raw or not undeclared:
        rulings.append(("disagrees" if raw else "agrees", f"{nbytes(raw)} of raw rows left a client"))
    if undeclared:
        rulings.append(("not known", f"whether {', '.join(undeclared)} carry rows or labels is not declared"))
    labelled = [t for t in f.traffic if t.phase == "train" and "labels" in (t.carries or ())]
    if labelled:
        messages, size = sum(t.messages.mean for t in labelled), sum(t.nbytes.mean for t in labelled)
        said = f"every label goes to the server ({amount(messages)} messages, {nbytes(size)})"
        rulings.append(("leaves out", said))
    return rulings


def _architecture(f: Figures) -> Found:
    held = {role: f.get("parameters", role=role).mean for role in f.roles}
    clients = {role for role in f.frame.loc[f.frame["side"] == "client", "role"]}
    at_clients = [held.get(role, 0.0) for role in sorted(clients)]
    others = sum(size for role, size in held.items() if role not in clients)
    most = max(at_clients, default=0.0)
    mine = f"up to {amount(most)}" if most else "none"
    said = f"Parameters held: {mine} at an owner of data, {amount(others)} at servers."
    if not others:
        said = f"Parameters held: {amount(sum(at_clients))} at the owners of data; there is no server."
    lines = [Line("stated", f.method.architecture), Line("measured", said)]
    rulings: list[tuple[Ruling, str]] = []
    if f.method.column == "federated":
        full = most > 0 and most >= others
        rulings.append(("agrees" if full else "disagrees", f"a client holds {amount(most)} parameters"))
    elif f.method.column == "split":
        both = most > 0 and others > 0
        rulings.append(("agrees" if both else "disagrees", "parameters are held on both sides of the cut"))
    elif f.method.column in ("centralised", "edge"):
        work = f.share("other")
        rulings.append(
            ("agrees" if work > 0.95 else "disagrees", f"{percent(work)} of training was done at one server")
        )
    return lines, rulings


def _data(f: Figures) -> Found:
    lines = [
        Line("measured", f"Training: {_moved(f, 'train')}. Predicting the test rows: {_moved(f, 'predict')}.")
    ]
    raw, up = _raw(f, "train"), f.get("bytes", phase="train", direction="up").mean
    down, answers = f.get("bytes", phase="train", direction="down").mean, f.get("bytes", phase="predict").mean
    rulings: list[tuple[Ruling, str]] = []
    match f.method.column:
        case "federated":
            rulings += _stays(f)
        case "split":
            rulings += _stays(f)
            if down > BACK * up:
                rulings.append(("leaves out", f"{nbytes(down)} come back down beside {nbytes(up)} up"))
        case "centralised":
            unsure = raw < up and _undeclared(f, "train")
            ruling: Ruling = "agrees" if up and raw == up else "not known" if unsure else "disagrees"
            rulings.append((ruling, f"{nbytes(raw)} of {nbytes(up)} up are declared as raw rows"))
        case "edge":
            rulings.append(("disagrees" if answers else "agrees", f"{nbytes(answers)} left at inference"))
            if raw:
                rulings.append(("leaves out", f"{nbytes(raw)} of raw rows went up to train the model"))
    return lines, rulings


def _privacy(f: Figures) -> Found:
    lines = [
        Line("stated", f.method.privacy),
        Line("not yet measured", "Leakage under attack is not yet measured."),
    ]
    raw = _raw(f, "train")
    if f.method.column == "edge" and raw:
        return lines, [("leaves out", f"training: the server received {nbytes(raw)} of raw rows")]
    return lines, []


def _pattern(f: Figures) -> Found:
    chain, sent = f.get("chain_in_epochs").mean, f.get("messages_in_epochs").mean
    outside, uploads = (
        f.get("chain_outside_epochs").mean,
        f.get("messages", phase="train", direction="up").mean,
    )
    deployed = f.get("messages", phase="train", direction="down").mean
    total, epochs = f.get("messages", phase="train").mean, f.get("epochs").mean
    said = (
        f"{amount(total)} messages for {epochs:.0f} epochs. Longest chain of dependent ones: "
        f"{amount(f.get('chain_per_epoch').mean)} an epoch, {outside:.0f} outside the epochs."
    )
    lines = [Line("measured", said if total else "No message at all.")]
    clients = f.frame.loc[(f.frame["direction"] == "up"), "value"].size > 0
    match f.method.column:
        case "federated":
            rounds = chain >= 2 * epochs
            return lines, [
                ("agrees" if rounds else "disagrees", f"a chain of {chain:.0f} messages over the rounds")
            ]
        case "split":
            part = chain / sent if sent else 0.0
            said = f"{percent(part)} of the epochs' messages are on one chain"
            return lines, [("agrees" if part >= SEQUENTIAL else "disagrees", said)]
        case "centralised":
            bulk = clients and chain == 0
            return lines, [
                ("agrees" if bulk else "disagrees", f"{uploads:.0f} uploads, none during the epochs")
            ]
        case "edge":
            once = chain == 0 and not f.get("messages", phase="predict").mean
            return lines, [("agrees" if once else "disagrees", f"{deployed:.0f} deployments, then silence")]
    return lines, []


def _work(side: str, f: Figures) -> str:
    said = []
    for phase, name in (("train", "Training"), ("predict", "Predicting the test rows")):
        work = f.get("flops", phase=phase, side=side).mean
        took = seconds(f.get("seconds", phase=phase, side=side).mean)
        part = f"{amount(work, 'FLOP')} ({percent(f.share(side, phase))} of all), {took} measured"
        said.append(f"{name}: {part if work else 'nothing to compute'}.")
    return " ".join(said)


def _client_compute(f: Figures) -> Found:
    lines = [Line("measured", _work("client", f))]
    share, found = f.share("client"), level(f.share("client"))
    claimed = CLIENT_LEVELS.get(f.method.column)
    if f.method.column == "edge":
        forward = found == "none" and f.share("client", "predict") == 1.0
        return lines, [
            ("agrees" if forward else "disagrees", f"{percent(share)} of training, all of predicting")
        ]
    if claimed is None:
        return lines, []
    return lines, [
        ("agrees" if found in claimed else "disagrees", f"{found}: {percent(share)} of all training FLOPs")
    ]


def _server_compute(f: Figures) -> Found:
    share, found = f.share("other"), level(f.share("other"))
    claimed = SERVER_LEVELS.get(f.method.column)
    if claimed is None:
        work = f.get("flops", phase="train", side="other").mean
        return [Line("measured", _work("other", f) if work else "There is no server.")], []
    lines = [Line("measured", _work("other", f))]
    fits = found in claimed
    if f.method.column == "edge":
        fits = fits and f.share("other", "predict") == 0.0
    return lines, [("agrees" if fits else "disagrees", f"{found}: {percent(share)} of all training FLOPs")]


def _clients(f: Figures) -> Found:
    owners = f.get("owners").mean
    lines = [
        Line("measured", f"Owners of data that took part: {owners:.0f}; none dropped out."),
        Line("not yet measured", "Large numbers of clients and unreliable ones are not yet measured."),
    ]
    return lines, []


def _unmeasured(what: str) -> Callable[[Figures], Found]:
    return lambda f: ([Line("not yet measured", f"{what} is not yet measured.")], [])


def _latency(f: Figures) -> Found:
    times = [f.get("time", rtt_ms=rtt).mean for rtt in ROUND_TRIPS]
    said = ", ".join(f"{seconds(t)} at {rtt} ms" for t, rtt in zip(times, ROUND_TRIPS, strict=True))
    growth = times[-1] / times[0] if times[0] else 1.0
    text = (
        f"Training takes {said}: × {growth:.3g} from {ROUND_TRIPS[0]} to {ROUND_TRIPS[-1]} ms of round trip."
    )
    return [Line("measured", text)], []


FINDERS: dict[str, Callable[[Figures], Found]] = {
    "core architecture": _architecture,
    "data movement": _data,
    "primary privacy mechanism": _privacy,
    "communication pattern": _pattern,
    "client compute": _client_compute,
    "server compute": _server_compute,
    "client count and reliability": _clients,
    "personalisation": _unmeasured("Personalisation"),
    "resilience to network latency": _latency,
    "on-device fine-tuning": _unmeasured("On-device fine-tuning"),
}
