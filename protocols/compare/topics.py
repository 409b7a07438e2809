"""The ten rows of the comparison: what a glossary of the field claims, and what a run's numbers say to it.

No line is involved. Claims are in the glossary's sense and our own words. Each row is one value: its title,
its claims, and the functions that say what was measured and judge a claim, which read one method's figures.
"""

from __future__ import annotations

from protocols.compare.claims import level
from protocols.compare.figures import DIRECTIONS, Figures, amount, nbytes, percent, seconds
from protocols.compare.measure import ROUND_TRIPS
from protocols.compare.rows import Line, Ruling, Rulings, Topic

SEQUENTIAL = 0.9  # of the messages of the epochs on one dependent chain
BACK = 0.1  # of the bytes going up: less coming down is not worth a word


def _ruled(agrees: object, why: str) -> tuple[Ruling, str]:
    return "agrees" if agrees else "disagrees", why


def _held(f: Figures) -> tuple[list[float], float]:
    """Parameters held when training ends: by each owner of data, and by all servers together."""
    held = {role: f.get("parameters", role=role).mean for role in f.roles}
    clients = {role for role in f.frame.loc[f.frame["side"] == "client", "role"]}
    servers = sum(size for role, size in held.items() if role not in clients)
    return [held.get(role, 0.0) for role in sorted(clients)], servers


def _measure_architecture(f: Figures) -> list[Line]:
    owners, servers = _held(f)
    most = max(owners, default=0.0)
    mine = f"up to {amount(most)}" if most else "none"
    text = f"Parameters held: {mine} at an owner of data, {amount(servers)} at servers."
    if not servers:
        text = f"Parameters held: {amount(sum(owners))} at the owners of data; there is no server."
    return [Line("stated", f.method.architecture), Line("measured", text)]


def _judge_architecture(f: Figures) -> Rulings:
    owners, servers = _held(f)
    most = max(owners, default=0.0)
    match f.method.column:
        case "federated":
            return [_ruled(most > 0 and most >= servers, f"a client holds {amount(most)} parameters")]
        case "split":
            return [_ruled(most > 0 and servers > 0, "parameters are held on both sides of the cut")]
        case "centralised" | "edge":
            work = f.share("other")
            return [_ruled(work > 0.95, f"{percent(work)} of training was done at one server")]
    return []


ARCHITECTURE = Topic(
    "core architecture",
    {
        "federated": "decentralised training; clients compute the full model",
        "split": "vertically partitioned model; client and server compute different layers",
        "centralised": "data collected and trained in one place",
        "edge": "trained centrally, executed locally",
        "vertical": "parties hold different features of the same entities",
    },
    _measure_architecture,
    _judge_architecture,
)


def _moved(f: Figures, phase: str) -> str:
    ways = [(way, f.get("bytes", phase=phase, direction=way).mean) for way in DIRECTIONS]
    return ", ".join(f"{nbytes(size)} {way}" for way, size in ways if size) or "nothing leaves"


def _raw(f: Figures) -> float:
    """Bytes of the messages of training that carry rows in the clear."""
    return sum(t.nbytes.mean for t in f.traffic if t.phase == "train" and "rows" in (t.carries or ()))


def _undeclared(f: Figures) -> list[str]:
    """Kinds of message of training that do not say what they carry."""
    return sorted({t.kind for t in f.traffic if t.phase == "train" and t.carries is None})


def _judge_what_stays(f: Figures) -> Rulings:
    """Whether rows and labels stayed, while training."""
    raw, undeclared = _raw(f), _undeclared(f)
    rulings: Rulings = []
    if raw or not undeclared:
        rulings.append(_ruled(not raw, f"{nbytes(raw)} of raw rows left a client"))
    if undeclared:
        rulings.append(("not known", f"whether {', '.join(undeclared)} carry rows or labels is not declared"))
    labelled = [t for t in f.traffic if t.phase == "train" and "labels" in (t.carries or ())]
    if labelled:
        messages, size = sum(t.messages.mean for t in labelled), sum(t.nbytes.mean for t in labelled)
        why = f"every label goes to the server ({amount(messages)} messages, {nbytes(size)})"
        rulings.append(("leaves out", why))
    return rulings


def _measure_movement(f: Figures) -> list[Line]:
    return [
        Line("measured", f"Training: {_moved(f, 'train')}. Predicting the test rows: {_moved(f, 'predict')}.")
    ]


def _judge_movement(f: Figures) -> Rulings:
    raw, up = _raw(f), f.get("bytes", phase="train", direction="up").mean
    match f.method.column:
        case "federated":
            return _judge_what_stays(f)
        case "split":
            down = f.get("bytes", phase="train", direction="down").mean
            back: Rulings = [("leaves out", f"{nbytes(down)} come back down beside {nbytes(up)} up")]
            return _judge_what_stays(f) + (back if down > BACK * up else [])
        case "centralised":
            unsure = raw < up and _undeclared(f)
            ruling: Ruling = "agrees" if up and raw == up else "not known" if unsure else "disagrees"
            return [(ruling, f"{nbytes(raw)} of {nbytes(up)} up are declared as raw rows")]
        case "edge":
            answers = f.get("bytes", phase="predict").mean
            uploaded: Rulings = [("leaves out", f"{nbytes(raw)} of raw rows went up to train the model")]
            return [_ruled(not answers, f"{nbytes(answers)} left at inference"), *(uploaded if raw else [])]
    return []


MOVEMENT = Topic(
    "data movement",
    {
        "federated": "raw data stays; gradients or weights are shared",
        "split": "activations (“smashed data”) go from client to server",
        "centralised": "all raw data is uploaded",
        "edge": "the model goes to the device; nothing leaves at inference",
    },
    _measure_movement,
    _judge_movement,
)


def _state_privacy(f: Figures) -> list[Line]:
    return [
        Line("stated", f.method.privacy),
        Line("not yet measured", "Leakage under attack is not yet measured."),
    ]


def _judge_privacy(f: Figures) -> Rulings:
    raw = _raw(f)
    if f.method.column == "edge" and raw:
        return [("leaves out", f"training: the server received {nbytes(raw)} of raw rows")]
    return []


PRIVACY = Topic(
    "primary privacy mechanism",
    {
        "federated": "data minimisation; optionally secure aggregation, differential privacy",
        "split": "data minimisation; raw data stays",
        "centralised": "perimeter security, access control",
        "edge": "local processing",
    },
    _state_privacy,
    _judge_privacy,
)


def _measure_pattern(f: Figures) -> list[Line]:
    total, epochs = f.get("messages", phase="train").mean, f.get("epochs").mean
    text = (
        f"{amount(total)} messages for {epochs:.0f} epochs. Longest chain of dependent ones: "
        f"{amount(f.get('chain_per_epoch').mean)} an epoch, {f.get('chain_outside_epochs').mean:.0f} outside "
        "the epochs."
    )
    return [Line("measured", text if total else "No message at all.")]


def _judge_pattern(f: Figures) -> Rulings:
    chain = f.get("chain_in_epochs").mean
    match f.method.column:
        case "federated":
            rounds = chain >= 2 * f.get("epochs").mean
            return [_ruled(rounds, f"a chain of {chain:.0f} messages over the rounds")]
        case "split":
            sent = f.get("messages_in_epochs").mean
            part = chain / sent if sent else 0.0
            return [_ruled(part >= SEQUENTIAL, f"{percent(part)} of the epochs' messages are on one chain")]
        case "centralised":
            uploads = f.get("messages", phase="train", direction="up").mean
            bulk = f.frame.loc[(f.frame["direction"] == "up"), "value"].size > 0 and chain == 0
            return [_ruled(bulk, f"{uploads:.0f} uploads, none during the epochs")]
        case "edge":
            deployed = f.get("messages", phase="train", direction="down").mean
            once = chain == 0 and not f.get("messages", phase="predict").mean
            return [_ruled(once, f"{deployed:.0f} deployments, then silence")]
    return []


PATTERN = Topic(
    "communication pattern",
    {
        "federated": "iterative rounds, synchronous or not, between server and clients",
        "split": "sequential, per sample or client: client to server to client",
        "centralised": "one bulk upload; download of models",
        "edge": "one deployment; periodic model updates",
    },
    _measure_pattern,
    _judge_pattern,
)


def _work(side: str, f: Figures) -> str:
    """The computation of one side, client or other, in two sentences."""
    sentences = []
    for phase, name in (("train", "Training"), ("predict", "Predicting the test rows")):
        work = f.get("flops", phase=phase, side=side).mean
        took = seconds(f.get("seconds", phase=phase, side=side).mean)
        part = f"{amount(work, 'FLOP')} ({percent(f.share(side, phase))} of all), {took} measured"
        sentences.append(f"{name}: {part if work else 'nothing to compute'}.")
    return " ".join(sentences)


CLIENT_LEVELS = {"federated": {"high", "very high"}, "split": {"moderate"}, "centralised": {"none"}}


def _judge_clients_work(f: Figures) -> Rulings:
    share = f.share("client")
    word = level(share)
    if f.method.column == "edge":
        forward = word == "none" and f.share("client", "predict") == 1.0
        return [_ruled(forward, f"{percent(share)} of training, all of predicting")]
    claimed = CLIENT_LEVELS.get(f.method.column)
    if claimed is None:
        return []
    return [_ruled(word in claimed, f"{word}: {percent(share)} of all training FLOPs")]


CLIENT_COMPUTE = Topic(
    "client compute",
    {
        "federated": "high: full forward, backward, local optimisation",
        "split": "moderate: part of the forward pass, the first layers",
        "centralised": "none for training, little for inference if deployed",
        "edge": "low to moderate: forward only",
    },
    lambda f: [Line("measured", _work("client", f))],
    _judge_clients_work,
)

SERVER_LEVELS = {
    "federated": {"moderate"},
    "split": {"high", "very high"},
    "centralised": {"very high"},
    "edge": {"high", "very high"},
}


def _measure_servers_work(f: Figures) -> list[Line]:
    idle = f.method.column not in SERVER_LEVELS and not f.get("flops", phase="train", side="other").mean
    return [Line("measured", "There is no server." if idle else _work("other", f))]


def _judge_servers_work(f: Figures) -> Rulings:
    claimed = SERVER_LEVELS.get(f.method.column)
    if claimed is None:
        return []
    share = f.share("other")
    word = level(share)
    idle = f.method.column != "edge" or f.share("other", "predict") == 0.0
    return [_ruled(word in claimed and idle, f"{word}: {percent(share)} of all training FLOPs")]


SERVER_COMPUTE = Topic(
    "server compute",
    {
        "federated": "moderate: aggregation, keeping the global model",
        "split": "high: most of forward and backward",
        "centralised": "very high: all of it",
        "edge": "high for the first training, none at inference",
    },
    _measure_servers_work,
    _judge_servers_work,
)


def _count_clients(f: Figures) -> list[Line]:
    return [
        Line("measured", f"Owners of data that took part: {f.get('owners').mean:.0f}; none dropped out."),
        Line("not yet measured", "Large numbers of clients and unreliable ones are not yet measured."),
    ]


CLIENTS = Topic(
    "client count and reliability",
    {
        "federated": "massive (10³ to 10⁹), unreliable, heterogeneous; cross-silo 2 to 100, reliable",
        "split": "small to medium, more reliable",
        "centralised": "clients are data sources only",
        "edge": "massive, unreliable",
        "vertical": "the main case of cross-silo: 2 to 100, reliable",
    },
    _count_clients,
)


def _measure_latency(f: Figures) -> list[Line]:
    times = [f.get("time", rtt_ms=rtt).mean for rtt in ROUND_TRIPS]
    each = ", ".join(f"{seconds(t)} at {rtt} ms" for t, rtt in zip(times, ROUND_TRIPS, strict=True))
    growth = times[-1] / times[0] if times[0] else 1.0
    text = (
        f"Training takes {each}: × {growth:.3g} from {ROUND_TRIPS[0]} to {ROUND_TRIPS[-1]} ms of round trip."
    )
    return [Line("measured", text)]


def _not_measured(title: str) -> Topic:
    line = Line("not yet measured", f"{title[0].upper()}{title[1:]} is not yet measured.")
    return Topic(title, {}, lambda f: [line])


TOPICS = (
    ARCHITECTURE,
    MOVEMENT,
    PRIVACY,
    PATTERN,
    CLIENT_COMPUTE,
    SERVER_COMPUTE,
    CLIENTS,
    _not_measured("personalisation"),
    Topic("resilience to network latency", {}, _measure_latency),
    _not_measured("on-device fine-tuning"),
)
