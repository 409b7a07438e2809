"""Laws of the FLOP counter: exact on products, counted once, and invisible to what it counts."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from time import perf_counter
from typing import cast

import pytest
import torch
from torch import nn

from protocols import flops
from protocols.flops import backward_flops, forget, forward_flops, training_flops

PRODUCT = 2 * 32 * 30 * 64  # batch 32, Linear(30, 64): a multiply-add is 2


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The device of every instrumented run, as they happen, starting from an empty shared cache."""
    seen: list[str] = []
    run = flops._run

    def watched(passes: int, module: nn.Module, inputs: flops.Inputs, device: str) -> float:
        seen.append(device)
        return run(passes, module, inputs, device)

    monkeypatch.setattr(flops, "_run", watched)
    monkeypatch.setattr(flops, "_shared", {})
    return seen


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 2))


class Peeking(nn.Module):
    """Looks at a value, which only a run on real tensors can answer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.sum().item() == 0
        y = self.inner(x)
        return cast(torch.Tensor, y[0] if isinstance(y, tuple) else y)


class Attention(nn.Module):
    def forward(self, q: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, q, q)


def test_linear_is_two_flops_per_multiply_add() -> None:
    layer, x = nn.Linear(30, 64), torch.ones(32, 30)
    assert forward_flops(layer, x) == PRODUCT
    assert backward_flops(layer, x) == PRODUCT
    assert backward_flops(layer, x, input_gradient=True) == 2 * PRODUCT
    assert training_flops(layer, x, input_gradient=True) == 3 * PRODUCT


def test_layers_add_up() -> None:
    head = 2 * 32 * 64 * 2
    assert forward_flops(mlp(), (32, 30)) == PRODUCT + head
    # The hidden layer needs the head's input gradient; the first layer's own input gradient is not asked for.
    assert backward_flops(mlp(), (32, 30)) == PRODUCT + 2 * head


def test_frozen_layers_have_no_backward() -> None:
    model = mlp()
    before = backward_flops(model, (32, 30))
    model[0].requires_grad_(False)
    forget(model)
    assert backward_flops(model, (32, 30)) == before - PRODUCT - 2 * 32 * 64 * 2
    model.requires_grad_(False)
    forget(model)
    assert backward_flops(model, (32, 30)) == 0
    assert forward_flops(model, (32, 30)) == PRODUCT + 2 * 32 * 64 * 2


def test_embedding_takes_integers() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    indices = torch.full((5,), 9)
    assert forward_flops(model, indices) == 2 * 5 * 4 * 2
    assert training_flops(model, indices, input_gradient=True) == 3 * 2 * 5 * 4 * 2


def test_a_shape_stands_for_a_tensor_of_the_modules_dtype() -> None:
    assert forward_flops(nn.Linear(30, 64).double(), (32, 30)) == PRODUCT


@pytest.mark.parametrize("wrap", [lambda inner: inner, Peeking], ids=["meta", "cpu"])
def test_what_cpu_kernels_hide_is_counted(wrap: Callable[[nn.Module], nn.Module]) -> None:
    steps, batch, width, hidden = 10, 4, 8, 16
    lstm = wrap(nn.LSTM(width, hidden)).requires_grad_(False)
    assert forward_flops(lstm, (steps, batch, width)) == 2 * steps * batch * 4 * hidden * (width + hidden)
    assert forward_flops(wrap(Attention()), (2, 4, 10, 16)) == 2 * (2 * 2 * 4 * 10 * 10 * 16)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    thawed = forward_flops(wrap(layer), (4, 10, 16))
    frozen = wrap(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)).eval().requires_grad_(False)
    assert forward_flops(frozen, (4, 10, 16)) == thawed > 0


def test_counted_once_per_shape_pass_and_mode(runs: list[str]) -> None:
    model, x = mlp(), torch.zeros(32, 30)
    first = [forward_flops(model, x), training_flops(model, x), training_flops(model, x, input_gradient=True)]
    assert runs == ["meta"] * 3
    again = [forward_flops(model, x), training_flops(model, x), training_flops(model, x, input_gradient=True)]
    assert again == first
    assert runs == ["meta"] * 3
    assert forward_flops(model, torch.zeros(16, 30)) == first[0] / 2
    forward_flops(model.eval(), x)  # as it always is counted
    assert len(runs) == 4
    training_flops(model, x)
    assert len(runs) == 5


def test_same_structure_shares_and_different_structure_does_not(runs: list[str]) -> None:
    class Repeated(nn.Linear):
        def __init__(self, times: int) -> None:
            super().__init__(30, 30)
            self.times = times

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            for _ in range(self.times):
                input = super().forward(input)
            return input

    assert forward_flops(mlp(), (32, 30)) == forward_flops(mlp(), (32, 30))
    assert len(runs) == 1
    assert forward_flops(Repeated(3), (32, 30)) == 3 * forward_flops(Repeated(1), (32, 30))
    layer = nn.Linear(30, 30)
    assert forward_flops(nn.Sequential(layer, layer), (1, 30)) == 2 * forward_flops(
        nn.Sequential(layer), (1, 30)
    )


def test_a_module_that_cannot_be_compared_shares_with_none(runs: list[str]) -> None:
    hooked = nn.Linear(30, 64)
    hooked.register_forward_hook(
        lambda module, args, output: output @ torch.zeros(64, 64, device=output.device)
    )
    assert forward_flops(nn.Linear(30, 64), (32, 30)) == PRODUCT
    assert forward_flops(hooked, (32, 30)) == PRODUCT + 2 * 32 * 64 * 64
    assert len(runs) == 2


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_counting_disturbs_nothing(device: str, runs: list[str]) -> None:
    inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model = inner if device == "meta" else Peeking(inner)
    model(torch.zeros(8, 3)).sum().backward()
    model.eval()
    inner.train()
    x = torch.zeros(8, 3, requires_grad=True)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    modes = [module.training for module in model.modules()]
    generator, mkldnn = torch.get_rng_state(), torch.backends.mkldnn.enabled

    training_flops(model, x, input_gradient=True)

    assert runs[-1] == device
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.backends.mkldnn.enabled == mkldnn
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    after = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(after) == len(gradients) == 6
    assert all(torch.equal(new, old) for new, old in zip(after, gradients, strict=True))
    assert all(p.device.type == "cpu" for p in model.parameters())
    assert x.grad is None


def test_counts_where_gradients_are_off() -> None:
    with torch.no_grad():
        assert backward_flops(nn.Linear(30, 64), (32, 30)) == PRODUCT
    with torch.inference_mode():
        assert backward_flops(nn.Linear(30, 64), torch.zeros(32, 30)) == PRODUCT


def test_several_inputs_and_nested_outputs() -> None:
    class TwoTowers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 5), nn.Linear(4, 5)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, list[torch.Tensor]]:
            return {"towers": [self.left(a), self.right(b)]}

    products = 2 * 7 * 3 * 5 + 2 * 7 * 4 * 5
    assert training_flops(TwoTowers(), torch.zeros(7, 3), (7, 4)) == 2 * products


def test_what_cannot_be_counted_is_0_with_a_warning() -> None:
    with pytest.warns(RuntimeWarning, match=r"FLOPs of a Sequential cannot be counted \(RuntimeError\)"):
        assert forward_flops(mlp(), (32, 31)) == 0.0


def test_the_cache_keeps_no_module_alive() -> None:
    model = mlp()
    forward_flops(model, (32, 30))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_known_count_is_far_cheaper_than_a_step() -> None:
    model, x = mlp(), torch.zeros(32, 30)
    training_flops(model, x)

    def once() -> float:
        start = perf_counter()
        for _ in range(1000):
            training_flops(model, x)
        return (perf_counter() - start) / 1000

    # 2 us is the aim on a quiet machine; the bound only has to tell a look-up from a count of milliseconds.
    assert min(once() for _ in range(5)) < 20e-6
