"""The ways to learn that a comparison tells apart, whose claims about them are quoted, and words for shares.

Only words; no line is involved. What is claimed is in `protocols.compare.topics`, row by row.
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

# Upper ends of the share of all training FLOPs that a side does, and the word for it.
LEVELS = ((0.005, "none"), (0.2, "low"), (0.6, "moderate"), (0.95, "high"), (1.0, "very high"))


def level(share: float) -> str:
    """The word for a share of the FLOPs."""
    return next(word for end, word in LEVELS if share <= end + 1e-12)
