"""What a glossary of the field claims about each way to learn, row by row of the comparison.

Only words, in the glossary's sense and our own; no line is involved. What was measured is set beside them by
`protocols.compare.rows`, from which the rulings come too.
"""

from __future__ import annotations

WAYS = ("federated", "split", "vertical", "centralised", "edge", "alone")
TITLES = {
    "federated": "Federated (horizontal)",
    "split": "Split",
    "vertical": "Vertical",
    "centralised": "Centralised",
    "edge": "Edge inference",
    "alone": "Each party alone",
}
NO_CLAIM = "no claim"
SOURCE = (
    "The documents are a glossary of the field, in paraphrase: what its entries on federated learning "
    "(vertical included), split learning, centralised training and edge inference say."
)
LEAKAGE = (
    "How much the messages leak under attack is not yet measured here. That raw rows stay at home is not a "
    "guarantee: gradients and activations at a cut, embeddings and model updates are known to leak labels "
    "and inputs to whoever receives them."
)

CLAIMS: dict[str, dict[str, str]] = {
    "core architecture": {
        "federated": "decentralised training; clients compute the full model",
        "split": "vertically partitioned model; client and server compute different layers",
        "centralised": "data collected and trained in one place",
        "edge": "trained centrally, executed locally",
        "vertical": "parties hold different features of the same entities",
    },
    "data movement": {
        "federated": "raw data stays; gradients or weights are shared",
        "split": "activations (“smashed data”) go from client to server",
        "centralised": "all raw data is uploaded",
        "edge": "the model goes to the device; nothing leaves at inference",
    },
    "primary privacy mechanism": {
        "federated": "data minimisation; optionally secure aggregation, differential privacy",
        "split": "data minimisation; raw data stays",
        "centralised": "perimeter security, access control",
        "edge": "local processing",
    },
    "communication pattern": {
        "federated": "iterative rounds, synchronous or not, between server and clients",
        "split": "sequential, per sample or client: client to server to client",
        "centralised": "one bulk upload; download of models",
        "edge": "one deployment; periodic model updates",
    },
    "client compute": {
        "federated": "high: full forward, backward, local optimisation",
        "split": "moderate: part of the forward pass, the first layers",
        "centralised": "none for training, little for inference if deployed",
        "edge": "low to moderate: forward only",
    },
    "server compute": {
        "federated": "moderate: aggregation, keeping the global model",
        "split": "high: most of forward and backward",
        "centralised": "very high: all of it",
        "edge": "high for the first training, none at inference",
    },
    "client count and reliability": {
        "federated": "massive (10³ to 10⁹), unreliable, heterogeneous; cross-silo 2 to 100, reliable",
        "split": "small to medium, more reliable",
        "centralised": "clients are data sources only",
        "edge": "massive, unreliable",
        "vertical": "the main case of cross-silo: 2 to 100, reliable",
    },
    "personalisation": {},
    "resilience to network latency": {},
    "on-device fine-tuning": {},
}

# Upper ends of the share of all training FLOPs that a side does, and the word for it.
LEVELS = ((0.005, "none"), (0.2, "low"), (0.6, "moderate"), (0.95, "high"), (1.0, "very high"))
CLIENT_LEVELS = {
    "federated": {"high", "very high"},
    "split": {"moderate"},
    "centralised": {"none"},
}
SERVER_LEVELS = {
    "federated": {"moderate"},
    "split": {"high", "very high"},
    "centralised": {"very high"},
    "edge": {"high", "very high"},
}


def level(share: float) -> str:
    """The word for a share of the FLOPs."""
    return next(word for end, word in LEVELS if share <= end + 1e-12)
