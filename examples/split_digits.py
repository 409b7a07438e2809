"""Split learning on scikit-learn's digits: hospitals hold the first layers of one network, a server the rest.

    python examples/split_digits.py [epochs]

The vanilla shape sends the labels to the server; the U shape keeps them, for twice the messages.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from protocols.data.partition import iid
from split import SplitClassifier


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(144, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def main(epochs: int = 5) -> None:
    images, digit = load_digits(return_X_y=True, as_frame=True)
    train, test = train_test_split(images.assign(digit=digit), test_size=0.2, random_state=0, stratify=digit)
    parts = iid(len(train), 3, np.random.default_rng(0))
    tables = {f"hospital{i}": train.iloc[rows] for i, rows in enumerate(parts)}

    for shape, cut in (("vanilla", 4), ("U-shaped", (4, 7))):
        model = SplitClassifier(network(), cut, epochs=epochs, learning_rate=3e-3)
        model.fit(tables, target="digit")
        accuracy = (model.predict(test) == test["digit"]).mean()
        print(f"{shape}: {accuracy:.3f} on {len(test)} rows that nobody has seen")
        to_server = model.ledger_.frame().query("receiver == 'server'")
        for kind, sent in to_server.groupby("kind"):
            print(f"  {len(sent):4} x {kind}, {sent['bytes'].sum():,} bytes: {sent['reveals'].iloc[0]}")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
