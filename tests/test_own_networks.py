"""Networks of a user's own, and what the process is set to: neither ends a run without the true reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from horizontal import FedClassifier
from protocols.errors import ConfigError, DataError, VflError
from split import SplitClassifier
from vfl import VerticalNetClassifier

RNG = np.random.default_rng(0)
WHOLE = pd.DataFrame(RNG.normal(size=(120, 4)), columns=list("abcd")).assign(id=np.arange(120))
WHOLE["y"] = (WHOLE["a"] + WHOLE["c"] > 0).astype(int)
ROWS = {"north": WHOLE[:60], "south": WHOLE[60:]}
COLUMNS = {"bank": WHOLE[["id", "a", "b", "y"]], "shop": WHOLE[["id", "c", "d"]]}
SHORT: dict[str, Any] = {"batch_size": 30, "random_state": 1}


class Keeping(nn.Module):
    """It keeps what it computed last, as attention maps are kept to be looked at."""

    last: torch.Tensor | None = None

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.layer(x)
        return self.last


class Uncountable(nn.Module):
    """It can only be run where its tensors are real and no counter looks on."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise KeyError("not here")
        return self.layer(x)  # type: ignore[no-any-return]


Layer = Callable[[int, int], nn.Module]


def normed(width: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, out), nn.BatchNorm1d(out))


def fits(layer: Layer) -> Iterator[Any]:
    """Each kind of model with such layers, trained."""
    fed = FedClassifier(nn.Sequential(layer(4, 5), nn.Linear(5, 2)), rounds=2, **SHORT)
    yield fed.fit(ROWS, target="y", id="id")
    split = SplitClassifier(nn.Sequential(layer(4, 5), nn.Linear(5, 2)), cut=1, epochs=2, **SHORT)
    yield split.fit(ROWS, target="y", id="id")
    bottoms = {"bank": layer(2, 3), "shop": layer(2, 3)}
    vertical = VerticalNetClassifier(bottoms=bottoms, epochs=2, **SHORT)
    yield vertical.fit(COLUMNS, "bank.y", "id")


@pytest.mark.parametrize("layer", [normed, Keeping])
def test_layers_that_need_rows_or_keep_tensors_train_and_predict_any_number_of_rows(layer: Layer) -> None:
    for model in fits(layer):
        vertical = isinstance(model, VerticalNetClassifier)
        data = COLUMNS if vertical else WHOLE.drop(columns="y")
        every = model.predict_proba(data)
        one = {p: t[:1] for p, t in COLUMNS.items()} if vertical else WHOLE.drop(columns="y")[:1]
        np.testing.assert_allclose(model.predict_proba(one).to_numpy(), every.iloc[:1].to_numpy(), atol=1e-6)
        many = pd.concat([WHOLE.drop(columns="y")] * 35)[:4097] if not vertical else None
        if many is not None:
            assert len(model.predict_proba(many.reset_index(drop=True).assign(id=np.arange(4097)))) == 4097


def test_work_that_cannot_be_counted_is_left_out_with_a_warning_and_the_run_is_the_same() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for model in fits(Uncountable):
            vertical = isinstance(model, VerticalNetClassifier)
            assert len(model.predict_proba(COLUMNS if vertical else WHOLE.drop(columns="y"))) == 120
    said = {str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)}
    assert any("the FLOPs of a " in words and "cannot be counted (KeyError)" in words for words in said)


@pytest.mark.filterwarnings("ignore:the FLOPs of a")
def test_a_last_batch_of_one_row_is_named_with_the_cure() -> None:
    said = r"a batch of 1 row .*ValueError.*choose another batch_size"
    sizes: dict[str, Any] = {"batch_size": 59}  # 60 rows a client; 120 common ones
    network = nn.Sequential(normed(4, 5), nn.Linear(5, 2))
    with pytest.raises(DataError, match=said):
        FedClassifier(network, rounds=1, **sizes).fit(ROWS, target="y", id="id")
    with pytest.raises(DataError, match=said):
        SplitClassifier(network, cut=1, epochs=1, **sizes).fit(ROWS, target="y", id="id")
    bottoms = {"bank": normed(2, 3), "shop": nn.Linear(2, 3)}
    with pytest.raises(DataError, match=said):
        VerticalNetClassifier(bottoms=bottoms, epochs=1, batch_size=17).fit(COLUMNS, "bank.y", "id")


@pytest.fixture
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def plain() -> list[Any]:
    fed = FedClassifier(hidden=(4,), rounds=1, **SHORT).fit(ROWS, target="y", id="id")
    split = SplitClassifier(hidden=(4,), epochs=1, **SHORT).fit(ROWS, target="y", id="id")
    vertical = VerticalNetClassifier(epochs=1, **SHORT).fit(COLUMNS, "bank.y", "id")
    rows = WHOLE.drop(columns="y")
    return [fed.predict_proba(rows), split.predict_proba(rows), vertical.predict_proba(COLUMNS)]


@pytest.mark.usefixtures("double")
def test_torchs_default_type_is_the_users_own_and_changes_nothing() -> None:
    found = plain()
    assert torch.get_default_dtype() == torch.float64
    torch.set_default_dtype(torch.float32)
    for one, other in zip(found, plain(), strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_torchs_default_device_changes_nothing() -> None:
    expected = plain()
    torch.set_default_device("meta")
    try:
        found = plain()
    finally:
        torch.set_default_device(None)
    for one, other in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)


class Odd(nn.Module):
    """Of a width that is given; `how` it is odd is the test's."""

    def __init__(self, how: str, out: int = 2) -> None:
        super().__init__()
        self.how, self.layer, self.codes = how, nn.Linear(4, out), nn.Embedding(9, out)
        if how == "precision":
            self.layer.to(torch.bfloat16)

    def get_extra_state(self) -> object:
        return {"seen": 3}

    def set_extra_state(self, state: object) -> None: ...

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "a fault of its own":
            return self.missing(x)  # type: ignore[no-any-return,operator]
        if self.how == "codes":
            return self.codes(x[:, 0].long() - 1)  # type: ignore[no-any-return]
        return self.layer(x)  # type: ignore[no-any-return]


class Stateless(Odd):
    get_extra_state = nn.Module.get_extra_state
    set_extra_state = nn.Module.set_extra_state


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Stateless("precision"), "layer.weight is torch.bfloat16, expected float32; call float"),
        (Odd("extra"), "_extra_state is a dict, expected tensors alone in its state"),
        (Stateless("codes"), "all zeros in float32, with IndexError: index out of range"),
        (Stateless("a fault of its own"), "with AttributeError: .*no attribute 'missing'"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused_for_its_own_reason(module: nn.Module, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FedClassifier(module, rounds=1).fit(ROWS, target="y", id="id")
    with pytest.raises(VflError, match=said):
        SplitClassifier(nn.Sequential(module, nn.Linear(2, 2)), cut=1, epochs=1).fit(
            ROWS, target="y", id="id"
        )
    wide = {"bank": WHOLE.drop(columns=["id"]).assign(id=WHOLE["id"]), "shop": COLUMNS["shop"]}
    with pytest.raises(ConfigError, match=said):
        VerticalNetClassifier(bottoms={"bank": module}, epochs=1).fit(wide, "bank.y", "id")


def test_an_activation_used_twice_is_twice_in_what_is_shown() -> None:
    relu = nn.ReLU()
    whole = nn.Sequential(nn.Linear(4, 5), relu, nn.Linear(5, 4), relu, nn.Linear(4, 2))
    for cut in (4, (2, 4)):
        model = SplitClassifier(whole, cut=cut, epochs=1, **SHORT).fit(ROWS, target="y", id="id")
        layers = 4 if cut == 4 else 3
        assert len(model.client_model_) == layers and len(model.server_model_) == 5 - layers
    own = [*model.client_model_]
    shown = nn.Sequential(*own[:2], *model.server_model_, *own[2:])
    x = torch.from_numpy(WHOLE[list("abcd")].to_numpy(np.float32).copy())
    x = (x - x.mean(0)) / x.std(0, unbiased=False)
    found = torch.softmax(shown(x).double(), dim=1).detach().numpy()
    np.testing.assert_allclose(found, model.predict_proba(WHOLE.drop(columns="y")), atol=1e-5)


def test_looking_at_a_fitted_model_changes_no_prediction() -> None:
    def noisy(width: int, out: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, out), nn.BatchNorm1d(out), nn.Dropout(0.5))

    for model in fits(noisy):
        vertical = isinstance(model, VerticalNetClassifier)
        data: Any = COLUMNS if vertical else WHOLE.drop(columns="y")
        before = model.predict_proba(data)
        if vertical:
            shown = [part.bottom.module for part in model.parts_.values()] + [model.parts_["bank"].top.module]
        else:
            shown = [value for name, value in vars(model).items() if name.endswith("model_")]
        assert shown and not any(inner.training for module in shown for inner in module.modules())
        for module in shown:
            width = next(p.shape[1] for p in module.parameters() if p.dim() == 2)
            module(torch.randn(20, width, generator=torch.Generator().manual_seed(0)))
        pd.testing.assert_frame_equal(model.predict_proba(data), before, check_exact=True)
