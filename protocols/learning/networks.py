"""Networks that have a name, which a job may ask for when no code may cross the wire; facts about any.

Takes part: every party that builds a network. Learns: nothing; a name and JSON arguments are all that is
told. A factory is registered by an installed package as an entry point of the group `vfl.models`; `mlp`
is built in and cannot be replaced.

The network that all parties of a run train is a registered one or the caller's own, and each builds it for
itself: over a network that is possible only for one that has a name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
from pydantic import AfterValidator
from torch import nn

from protocols.arrays import Arrays
from protocols.data.tables import Kind
from protocols.errors import ConfigError, VflError, nearest
from protocols.flops import copied
from protocols.learning.training import outputs
from protocols.randomness import standard_torch, torch_seeded

Network = Callable[[int, int], nn.Module]  # (feature columns, outputs) -> a new module

GROUP = "vfl.models"


def mlp(inputs: int, outputs: int, hidden: Sequence[int] = (64, 32), seed: int = 0) -> nn.Sequential:
    """Linear layers with ReLU between them: (batch, inputs) -> (batch, outputs), float32.

    The weights are torch's default initialisation drawn under `seed`; torch's global generator is left
    as it was. Raises ConfigError for a width that is not a positive integer.
    """
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise ConfigError(f"mlp: hidden should be a list of layer widths, got {hidden!r}")
    widths = [inputs, *hidden, outputs]
    if not all(type(width) is int and width >= 1 for width in widths):
        raise ConfigError(f"mlp: inputs, hidden and outputs should be positive integers, got {widths}")
    if type(seed) is not int or not 0 <= seed < 2**256:
        raise ConfigError(f"mlp: seed should be an integer in [0, 2**256), got {seed!r}")
    layers: list[nn.Module] = []
    with standard_torch(), torch_seeded(seed):
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def model(name: str, /, arguments: Mapping[str, object]) -> nn.Module:
    """Build the registered network `name`.

    Raises ConfigError if nothing of that name is registered, if the arguments do not fit its signature,
    or if what it builds is no torch module.
    """
    factory = _factory(name)
    bound = _bound(name, factory, arguments)
    built = factory(*bound.args, **bound.kwargs)
    if not isinstance(built, nn.Module):
        raise ConfigError(f"model {name!r} should build a torch.nn.Module, got {type(built).__name__}")
    return built


def network(name: str, inputs: int, outputs: int, hidden: Sequence[int], seed: int) -> nn.Module:
    """The registered network `name` for rows of `inputs` numbers, with weights that torch draws from `seed`.

    Its factory is told `inputs` and `outputs`, and `hidden` if it takes that. Raises ConfigError as `model`
    does, for a factory that takes a seed, and for a network that draws more than its weights.
    """
    told = _told(name, inputs, outputs, hidden, seed)
    with standard_torch(), torch_seeded(seed):
        built = model(name, told)
    if name != "mlp":
        with standard_torch(), torch_seeded(seed + 1):
            _check_drawn(name, built, model(name, told), torch.linspace(-1, 1, 2 * inputs).reshape(2, inputs))
    return built


def _check_drawn(name: str, built: nn.Module, other: nn.Module, x: torch.Tensor) -> None:
    """ConfigError unless a network of another seed becomes `built` by taking its weights: parties share
    no seed."""
    try:
        Arrays.from_module(built).load_into(other)
        equal = np.array_equal(outputs(built, x), outputs(other, x), equal_nan=True)
    except (VflError, RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return  # it fits nobody's rows, which is said where it is used
    if not equal:
        raise ConfigError(
            f"model {name!r} draws numbers that are not among its weights, and no other party would draw the "
            "same; register them as buffers"
        )


def check_model(name: str) -> None:
    """ConfigError unless `name` is registered, and takes what `network` tells its factory."""
    _bound(name, _factory(name), _told(name, 1, 1, (), 0))


def _registered(name: str) -> str:
    check_model(name)
    return name


Registered = Annotated[str, AfterValidator(_registered)]  # of a program's parameters: a model's name


def count_parameters(*modules: nn.Module) -> int:
    """Numbers that `modules` hold as parameters, all together."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def dry_run(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """What `module` makes of `x` in training, and whether it draws random numbers for it, as dropout does.

    A copy is run, without gradients; torch's global generator is left as it was.
    """
    with torch_seeded(), torch.no_grad():
        before = torch.get_rng_state()
        result: torch.Tensor = copied(module).train()(x)
        return result, not torch.equal(before, torch.get_rng_state())


def _told(name: str, inputs: int, outputs: int, hidden: Sequence[int], seed: int) -> dict[str, object]:
    takes = inspect.signature(_factory(name)).parameters
    own = {"seed": seed} if name == "mlp" else {}
    if "seed" in takes and not own:
        raise ConfigError(
            f"model {name!r} takes a seed; leave it out, and let torch draw the weights: its generator is "
            "set from the party's own seed before the network is built"
        )
    return {"inputs": inputs, "outputs": outputs, **({"hidden": hidden} if "hidden" in takes else {}), **own}


def _bound(
    name: str, factory: Callable[..., object], arguments: Mapping[str, object]
) -> inspect.BoundArguments:
    takes = inspect.signature(factory)
    try:
        return takes.bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"model {name!r}: {error}; it takes {name}{takes}") from None


def _factory(name: str) -> Callable[..., object]:
    if name == "mlp":
        return mlp
    registered = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in registered:
        known = sorted({"mlp", *registered})
        listed = ", ".join(known)
        raise ConfigError(f"model {name!r} is not among those registered, {listed}{nearest(name, known)}")
    factory: Callable[..., object] = registered[name].load()
    return factory


def named(name: str, hidden: Sequence[int], kind: Kind, seed: int) -> Network:
    """A function that builds the registered network `name`."""

    def build(inputs: int, wanted: int) -> nn.Module:
        module = network(name, inputs, wanted, hidden, seed)
        if name != "mlp":  # whose shape is known
            _check_outputs(_shape(module, inputs), wanted, kind)
        return module

    return build


def brought(model: nn.Module, kind: Kind, seed: int) -> Network:
    """A function that copies the caller's `model`, once its width is seen to fit."""

    def build(inputs: int, wanted: int) -> nn.Module:
        module, shape = _prototype(model, inputs, seed)
        _check_outputs(shape, wanted, kind)
        return module

    return build


def check_inputs(model: nn.Module, inputs: int) -> None:
    """ConfigError if `model` does not take (n, inputs) float32, or gives no (n, k)."""
    _prototype(model, inputs, 0)


def _prototype(model: nn.Module, inputs: int, seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A copy, lazy layers drawn from `seed`, and the shape of what it makes of two rows."""
    module = copied(model)
    with standard_torch(), torch_seeded(seed):
        return module, _shape(module, inputs)


def check_tensors(module: nn.Module) -> None:
    """ConfigError for a network that cannot be averaged and kept: of another precision than float32, on an
    accelerator, or with state that is no tensor."""
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            raise ConfigError(
                f"model: {name} is a {type(tensor).__name__}, expected tensors alone in its state"
            )
        if nn.parameter.is_lazy(tensor):
            continue
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ConfigError(f"model: {name} is {tensor.dtype}, expected float32; call float() on the model")
        if tensor.device.type != "cpu":
            raise ConfigError(f"model: {name} is on {tensor.device}; call cpu() on the model")


def _shape(module: nn.Module, inputs: int) -> tuple[int, ...]:
    check_tensors(module)
    try:
        shape = outputs(module, torch.zeros(2, inputs)).shape
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConfigError(
            f"model fails on 2 rows of {inputs} features, all zeros in float32, with {type(error).__name__}: "
            f"{error}"
        ) from error
    if len(shape) != 2 or shape[0] != 2:
        raise ConfigError(f"model gives outputs of shape {shape} for 2 rows, expected (2, outputs)")
    return shape


def _check_outputs(shape: tuple[int, ...], wanted: int, kind: Kind) -> None:
    if shape[1] != wanted:
        each = "one for each class" if kind == "classification" else "a number"
        raise ConfigError(f"model gives {shape[1]} outputs for a row, expected {wanted}: {each}")
