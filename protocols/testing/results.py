"""Whether two results are the same, bit for bit, whatever they are made of."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence, Set

import numpy as np
import pandas as pd
import torch
from torch import nn


def fingerprint(value: object) -> str:
    """A hash of all numbers in a result, bit for bit."""
    total = hashlib.sha256()
    _add(value, total.update)
    return total.hexdigest()


def _add(value: object, update: Callable[[bytes], None]) -> None:
    update(type(value).__name__.encode())
    if isinstance(value, nn.Module):
        _add(dict(value.state_dict()), update)
    elif isinstance(value, torch.Tensor):
        _add(value.detach().numpy(), update)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, pd.DataFrame | pd.Series | pd.Index | np.ndarray):
        _add(value.tolist() if not isinstance(value, pd.DataFrame) else value.to_dict("list"), update)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _add(getattr(value, field.name), update)
    elif isinstance(value, Mapping):
        for key, held in value.items():
            _add(key, update)
            _add(held, update)
    elif isinstance(value, Sequence | Set) and not isinstance(value, str | bytes):
        for held in value:
            _add(held, update)
    elif callable(value):
        update(getattr(value, "__qualname__", type(value).__name__).encode())
    else:
        update(repr(value).encode())
