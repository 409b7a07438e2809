"""Laws of the named networks: same seed, same weights, and no trace on torch's generator."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
import torch
from torch import nn

from protocols.errors import ConfigError
from protocols.learning import networks
from protocols.learning.networks import check_model, count_parameters, dry_run, mlp, model, network


def tower(width: int = 3) -> nn.Module:
    return nn.Linear(width, 1)


def wide(inputs: int, outputs: int, depth: int = 1) -> nn.Module:
    return nn.Sequential(*(nn.Linear(inputs, inputs) for _ in range(depth)), nn.Linear(inputs, outputs))


def seeded(inputs: int, outputs: int, seed: int = 0) -> nn.Module:
    return nn.Linear(inputs, outputs)


class Projected(nn.Module):
    """A layer behind a random projection, which is part of its state or not."""

    def __init__(self, inputs: int, outputs: int, kept: bool) -> None:
        super().__init__()
        self.last, projection = nn.Linear(4, outputs), torch.randn(inputs, 4)
        if kept:
            self.register_buffer("projection", projection)
        else:
            self.projection = projection

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x @ self.projection)  # type: ignore[no-any-return]


def kept(inputs: int, outputs: int) -> nn.Module:
    return Projected(inputs, outputs, kept=True)


def lost(inputs: int, outputs: int) -> nn.Module:
    return Projected(inputs, outputs, kept=False)


def no_module() -> str:
    return "a network"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("tower", "wide", "no_module", "seeded", "kept", "lost")
    here = [EntryPoint(name, f"{__name__}:{name}", networks.GROUP) for name in names]
    shadow = EntryPoint("mlp", f"{__name__}:tower", networks.GROUP)
    monkeypatch.setattr(
        networks, "entry_points", lambda group: [*here, shadow] if group == networks.GROUP else []
    )


def test_mlp_alternates_linear_and_relu() -> None:
    built = mlp(30, 2, hidden=(64, 32))
    kinds = [type(layer) for layer in built]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    shapes = [tuple(layer.weight.shape) for layer in built if isinstance(layer, nn.Linear)]
    assert shapes == [(64, 30), (32, 64), (2, 32)]
    assert built(torch.zeros(7, 30)).shape == (7, 2)
    assert len(mlp(30, 2, hidden=())) == 1


def test_the_seed_alone_decides_the_weights() -> None:
    torch.rand(3)
    first = nn.utils.parameters_to_vector(mlp(5, 2, seed=1).parameters())
    torch.rand(3)
    again = nn.utils.parameters_to_vector(mlp(5, 2, seed=1).parameters())
    other = nn.utils.parameters_to_vector(mlp(5, 2, seed=2).parameters())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_weights_are_torchs_default_initialisation() -> None:
    built = mlp(5, 2, hidden=(), seed=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        plain = nn.Linear(5, 2)
    assert torch.equal(
        nn.utils.parameters_to_vector(built.parameters()), nn.utils.parameters_to_vector(plain.parameters())
    )


def test_the_global_generator_is_left_alone() -> None:
    before, seed = torch.get_rng_state(), torch.initial_seed()
    mlp(5, 2, seed=9)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.initial_seed() == seed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": 0, "outputs": 1}, "positive integers, got \\[0, 64, 32, 1\\]"),
        ({"inputs": 3.0, "outputs": 1}, "positive integers"),
        ({"inputs": True, "outputs": 1}, "positive integers"),
        ({"inputs": 3, "outputs": 1, "hidden": [8, -1]}, "positive integers"),
        ({"inputs": 3, "outputs": 1, "hidden": 8}, "list of layer widths, got 8"),
        ({"inputs": 3, "outputs": 1, "hidden": "88"}, "list of layer widths, got '88'"),
        ({"inputs": 3, "outputs": 1, "seed": -1}, "seed should be"),
        ({"inputs": 3}, "missing a required argument: 'outputs'; it takes mlp\\(inputs: "),
        ({"inputs": 3, "outputs": 1, "depth": 2}, "unexpected keyword argument 'depth'"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model("mlp", arguments)


@pytest.mark.usefixtures("registry")
def test_lookup_by_name() -> None:
    assert model("tower", {"width": 5})(torch.zeros(2, 5)).shape == (2, 1)
    assert isinstance(model("mlp", {"inputs": 3, "outputs": 1}), nn.Sequential)


@pytest.mark.usefixtures("registry")
def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(
        ConfigError, match=r"'towr' is not among .*mlp, no_module, seeded, tower, wide; did you mean 'tower'"
    ):
        model("towr", {})
    with pytest.raises(ConfigError, match="registered, kept, lost, mlp, no_module, seeded, tower, wide$"):
        model("zzz", {})
    with pytest.raises(ConfigError, match=r"should build a torch.nn.Module, got str"):
        model("no_module", {})


@pytest.mark.usefixtures("registry")
def test_a_network_is_told_what_its_factory_takes_and_drawn_from_the_seed() -> None:
    built, again, other = (network("wide", 5, 2, (3,), seed) for seed in (1, 1, 2))
    assert built(torch.zeros(4, 5)).shape == (4, 2)
    first, second, third = (nn.utils.parameters_to_vector(m.parameters()) for m in (built, again, other))
    assert torch.equal(first, second) and not torch.equal(first, third)
    plain = nn.utils.parameters_to_vector(mlp(5, 2, (3,), 1).parameters())
    assert torch.equal(nn.utils.parameters_to_vector(network("mlp", 5, 2, (3,), 1).parameters()), plain)


@pytest.mark.usefixtures("registry")
def test_a_network_that_cannot_be_told_is_found_before_it_is_built() -> None:
    check_model("wide")
    check_model("mlp")
    with pytest.raises(ConfigError, match="model 'tower': got an unexpected keyword argument 'inputs'"):
        check_model("tower")
    with pytest.raises(ConfigError, match="model 'wode' is not among those registered"):
        check_model("wode")


@pytest.mark.usefixtures("registry")
def test_a_factory_draws_from_no_seed_but_the_partys_and_nothing_beside_its_weights() -> None:
    """One that is told no seed takes its default, which everybody knows."""
    with pytest.raises(ConfigError, match="model 'seeded' takes a seed; leave it out"):
        check_model("seeded")
    with pytest.raises(ConfigError, match="model 'lost' draws numbers that are not among its weights"):
        network("lost", 5, 2, (), 1)
    before = torch.get_rng_state()
    built = network("kept", 5, 2, (), 1)
    assert built.training and torch.equal(before, torch.get_rng_state())


class Noise(nn.Module):
    """Randomness that no class of torch's own tells of."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn_like(x) if self.training else x


@pytest.mark.parametrize(
    ("module", "draws"),
    [
        (mlp(3, 2), False),
        (nn.Sequential(mlp(3, 2), nn.Dropout(0.5)), True),
        (nn.Sequential(Noise(), mlp(3, 2)), True),
        (nn.BatchNorm1d(3), False),
    ],
)
def test_a_dry_run_tells_whether_training_draws_random_numbers(module: nn.Module, draws: bool) -> None:
    generator = torch.get_rng_state()
    state = {name: tensor.clone() for name, tensor in module.eval().state_dict().items()}
    result, drew = dry_run(module, torch.zeros(2, 3))
    assert drew == draws and len(result) == 2 and not result.requires_grad
    assert torch.equal(generator, torch.get_rng_state()) and not module.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_parameters_are_counted_and_buffers_are_not() -> None:
    assert count_parameters(mlp(3, 2, (4,))) == 3 * 4 + 4 + 4 * 2 + 2
    assert count_parameters(nn.BatchNorm1d(5), nn.Linear(2, 1)) == 2 * 5 + 3
    assert count_parameters() == 0
