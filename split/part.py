"""What each party of split learning keeps: its layers, and clients also how to read rows and outputs.

Nothing leaves a party. Every client keeps the same layers; each part says enough to be loaded alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from torch import nn

from protocols.packing import filled
from protocols.parts import Part
from split.agreement import ClientPart, ServerPart
from split.chain import Layers
from split.parameters import SplitNet


@dataclass(frozen=True)
class Own:
    """One party's own part."""

    part: ClientPart | ServerPart
    target: str
    clients: tuple[str, ...]
    id: str | None = None  # a client's


def own_in(part: Part, told: SplitNet, module: nn.Module | None) -> Own:
    """What a party kept, in the layers of `module`, or of the network that was told by name.

    ConfigError where the part does not fit these.
    """
    own = part.read(Own)
    kept = own.part
    if isinstance(kept, ServerPart):
        built = told.layers(module, 0, kept.columns, kept.outputs)[1]
        return replace(own, part=replace(kept, layers=_filled(kept.layers, built)))
    bottom, _, *head = told.layers(module, 0, len(kept.columns), len(kept.classes) or 1)
    top = None if kept.head is None else _filled(kept.head, *head)
    return replace(own, part=replace(kept, bottom=_filled(kept.bottom, bottom), head=top))


def _filled(kept: Layers, built: Layers) -> Layers:
    return replace(built, module=cast(nn.Sequential, filled(kept.module, built.module)))
