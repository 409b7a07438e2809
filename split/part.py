"""What each party of split learning keeps on disk: its layers, and clients also how to read rows and outputs.

Nothing leaves a party. Every client keeps the same layers; each part says enough to be loaded alone, and
names the digests of those that were saved with it, so that layers of different runs are not put together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue
from torch import nn

from protocols.arrays import Arrays, prefixed, under
from protocols.data.tables import scaler_arrays, scaler_in
from protocols.errors import ConfigError, DataError
from protocols.parts import Part
from split.agreement import ClientPart, ServerPart, joined
from split.chain import Layers
from split.parameters import SplitNet

Own = ClientPart | ServerPart


def part_of(
    method: str,
    party: str,
    own: Own,
    *,
    settings: Mapping[str, JsonValue],
    target: str,
    id: str | None,
    clients: Sequence[str],
) -> Part:
    """One party's part. settings: of the estimator."""
    about: dict[str, Any] = {"settings": dict(settings), "target": target, "clients": list(clients)}
    arrays = prefixed("layers", Arrays.from_module(joined(_layers(own))))
    if isinstance(own, ClientPart):
        about |= {"classes": list(own.classes), "columns": list(own.columns), "id": id}
        arrays |= scaler_arrays("features", own.features) | scaler_arrays("target", own.target)
    else:
        about |= {"inputs": own.columns, "outputs": own.outputs}
    return Part(method, party, about, Arrays(arrays))


def own_in(part: Part, plan: SplitNet, module: nn.Module | None) -> Own:
    """What a party kept, in the layers of `module`, or of the network that `plan` names.

    ConfigError where the part does not fit these.
    """
    about: Mapping[str, Any] = part.settings
    own: Own
    if "inputs" in about:
        inputs, outputs = about["inputs"], about["outputs"]
        own = ServerPart(plan.layers(module, 0, inputs, outputs)[1], inputs, outputs, plan.u_shaped)
    else:
        classes, columns = tuple(about["classes"]), tuple(about["columns"])
        bottom, _, *head = plan.layers(module, 0, len(columns), len(classes) or 1)
        features, target = (scaler_in(name, part.weights) for name in ("features", "target"))
        own = ClientPart(columns, bottom, head[0] if head else None, features, classes, target)
    try:
        under("layers", part.weights).load_into(joined(_layers(own)))
    except DataError as error:
        raise ConfigError(f"the run does not fit the model: {error}; bring the saved one") from None
    return own


def _layers(own: Own) -> Sequence[Layers]:
    return own.layers if isinstance(own, ClientPart) else (own.layers,)
