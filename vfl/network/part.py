"""What each party keeps of a vertical network: every part apart from the others.

Takes part: each party, about its own part. A part holds this party's standardisation and bottom model; the
label party's also holds the top model and the classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from protocols.learning.networks import mlp
from protocols.packing import Stored, filled
from protocols.parts import Part
from vfl.network.roles import Bottom, Top


@dataclass(frozen=True)
class Own:
    """One party's own part. Those of the label party have `target` and `top`."""

    id: str
    columns: list[Any]  # names: text, or whole numbers
    bottom: Bottom | None  # None at a label party without features
    target: str = ""
    top: Top | None = None


def own_of(part: Part, bottom: nn.Module | None = None, top: nn.Module | None = None) -> Own:
    """What one party kept in `part`, in the modules that were brought, or else in default ones.

    ConfigError where they do not fit.
    """
    own = part.read(Own)
    if own.bottom is not None:
        default = nn.Sequential(*_linear(own.bottom.module), nn.ReLU())
        own = replace(
            own, bottom=replace(own.bottom, module=filled(own.bottom.module, bottom or default).eval())
        )
    if own.top is not None:
        default = _linear(own.top.module)
        own = replace(own, top=replace(own.top, module=filled(own.top.module, top or default).eval()))
    return own


def _linear(stored: nn.Module) -> nn.Sequential:
    """Linear layers, with ReLU between them, that are as wide as those stored."""
    assert isinstance(stored, Stored)
    shapes = [array.shape for array in stored.weights.values() if array.ndim == 2]
    widths = [*(shape[1] for shape in shapes[:1]), *(shape[0] for shape in shapes)]
    return mlp(widths[0], widths[-1], widths[1:-1]) if shapes else nn.Sequential()
