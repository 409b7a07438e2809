"""FLOPs of torch modules, counted once per module, input shapes and pass, then remembered.

Takes part: nobody; this is one party's own arithmetic, and nothing leaves.

What is counted: matrix products, convolutions and attention, forward and backward, as
`torch.utils.flop_counter` counts them; a multiply-add is 2 FLOPs. What is not: elementwise work
(activations, normalisation, dropout, bias), embedding look-ups, the loss, optimizer steps, and the few
products that torch's counter has no formula for (`nn.Bilinear`, custom kernels).

How: a deep copy of the module runs on torch's "meta" device, which holds shapes and no values. So
counting computes nothing, draws nothing from the random generators, and leaves weights, gradients and
running statistics alone. It also counts what CPU kernels hide from the counter: on CPU an LSTM, fused
attention and a frozen transformer layer all count as zero. A module that needs values (it calls `.item()`,
or keeps tensors that are not registered) is counted on the CPU instead. Forward hooks run on the copy.

Bookkeeping ends no run: where a module cannot be counted at all, a warning says so once, and its work is 0.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from protocols.randomness import torch_seeded

FORWARD, TRAIN, TRAIN_AND_INPUT, FORWARD_IN_TRAINING = 0, 1, 2, 3

N = TypeVar("N", bound=nn.Module)
Inputs = tuple[torch.Tensor | tuple[int, ...], ...]

_counts: WeakKeyDictionary[nn.Module, dict[Hashable, float]] = WeakKeyDictionary()
_shared: dict[Hashable, float] = {}
_counting = threading.Lock()
_INTERNAL = frozenset(vars(nn.Module()))


def forward_flops(module: nn.Module, *inputs: torch.Tensor | tuple[int, ...]) -> float:
    """FLOPs of `module(*inputs)` in evaluation mode, whichever the module is in.

    An input is a tensor, of which only shape and dtype are remembered, or the shape of a floating-point
    one. The first call for a shape takes milliseconds (in a process, some two seconds, which
    torch spends on imports), later ones about a microsecond.
    0 with a RuntimeWarning for a module that cannot be counted with such inputs.
    """
    return _cached(FORWARD, module, inputs)


def forward_flops_in_training(module: nn.Module, *inputs: torch.Tensor | tuple[int, ...]) -> float:
    """FLOPs of `module(*inputs)` in the mode that the module is in, before a backward pass."""
    return _cached(FORWARD_IN_TRAINING, module, inputs)


def training_flops(
    module: nn.Module, *inputs: torch.Tensor | tuple[int, ...], input_gradient: bool = False
) -> float:
    """FLOPs of one forward and one backward pass, to every parameter that requires a gradient.

    With `input_gradient`, also to the floating-point inputs, as at a cut layer. Which parameters are
    frozen is looked at when a shape is first counted: after freezing or thawing some, call `forget(module)`.
    """
    return _cached(TRAIN_AND_INPUT if input_gradient else TRAIN, module, inputs)


def backward_flops(
    module: nn.Module, *inputs: torch.Tensor | tuple[int, ...], input_gradient: bool = False
) -> float:
    """FLOPs of the backward pass alone."""
    both = training_flops(module, *inputs, input_gradient=input_gradient)
    return both - forward_flops_in_training(module, *inputs)


def forget(module: nn.Module) -> None:
    """Count `module` anew at its next use. Call this after its layers, or what is frozen in them, changed."""
    _counts.pop(module, None)


def _cached(passes: int, module: nn.Module, inputs: Inputs) -> float:
    # A list grown in a loop: this runs at every training step, and nested tuples take half as long again.
    entry: list[Hashable] = [passes, passes != FORWARD and module.training]
    for x in inputs:
        if isinstance(x, tuple):
            entry.append(x)
        else:
            entry += (x.shape, x.dtype)
    key = tuple(entry)
    try:
        return _counts[module][key]
    except KeyError:
        pass
    with _counting:
        structure = _structure(module)
        flops = _shared.get((structure, key)) if structure is not None else None
        if flops is None:
            flops = _count(passes, module, inputs)
        if structure is not None:
            _shared[structure, key] = flops
        _counts.setdefault(module, {})[key] = flops
    return flops


def _count(passes: int, module: nn.Module, inputs: Inputs) -> float:
    with torch.inference_mode(False), torch.enable_grad():
        with suppress(Exception):  # it may need values
            return _run(passes, module, inputs, "meta")
        try:
            with torch_seeded(), _no_fused_kernels():
                return _run(passes, module, inputs, "cpu")
        except Exception as error:  # whatever a module of somebody's own raises
            warnings.warn(
                f"the FLOPs of a {type(module).__name__} cannot be counted ({type(error).__name__}); they "
                "are left out of what the ledger says of its party",
                RuntimeWarning,
                stacklevel=2,
            )
            return 0.0


@contextmanager
def _no_fused_kernels() -> Iterator[None]:
    """Make the CPU compute LSTMs and attention by plain products, for which the counter has formulas."""
    mkldnn: Any = torch.backends.mkldnn
    before = mkldnn.enabled
    # Not torch.backends.mkldnn.flags(), which warns about settings of Intel GPUs that it passes on.
    mkldnn.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mkldnn.enabled = before


def _run(passes: int, module: nn.Module, inputs: Inputs, device: str) -> float:
    twin = copied(module).to(device)
    if passes == FORWARD:
        twin.eval()
    if passes in (FORWARD, FORWARD_IN_TRAINING):
        # A transformer with nothing to train takes a fused path that the counter cannot see into.
        for parameter in twin.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
    examples = [_example(x, module, device) for x in inputs]
    if passes == TRAIN_AND_INPUT:
        for example in examples:
            example.requires_grad_(example.is_floating_point())
    with FlopCounterMode(display=False) as counter:
        outputs = [y for y in _tensors(twin(*examples)) if y.requires_grad]
        if passes in (TRAIN, TRAIN_AND_INPUT) and outputs:
            torch.autograd.backward(outputs, [torch.zeros_like(y) for y in outputs])
    return float(counter.get_total_flops())


def copied(module: N) -> N:
    """Deep-copy a module, even one that keeps what it computed last, such as attention maps.

    torch refuses to copy tensors with a history; in the copy they have none.
    """
    memo: dict[int, Any] = {}
    for inner in module.modules():
        for tensor in _tensors(vars(inner)):
            if tensor.requires_grad and not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(module, memo)


def _example(x: torch.Tensor | tuple[int, ...], module: nn.Module, device: str) -> torch.Tensor:
    """A stand-in for an input. Integers keep their values, which may be indices or lengths."""
    if isinstance(x, tuple):
        dtypes = [p.dtype for p in module.parameters() if p.is_floating_point()]
        return torch.zeros(x, dtype=dtypes[0] if dtypes else None, device=device)
    if x.is_floating_point():
        return torch.zeros(x.shape, dtype=x.dtype, device=device)
    return x.detach().to(device, copy=True)


def _tensors(output: object) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from _tensors(tuple(output.values()))
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)


def _structure(module: nn.Module) -> Hashable | None:
    """Return a key that is equal only for modules with equal FLOPs, or None if that cannot be told.

    Class, plain attributes, parameter shapes and what is frozen, for every module inside. Anything else
    (a hook, a function, a tensor as attribute) might steer `forward`, so such a module shares with none.
    """
    parts: list[Hashable] = []
    for name, inner in module.named_modules(remove_duplicate=False):
        plain: list[Hashable] = [name, cast(Hashable, type(inner))]
        for attribute, value in vars(inner).items():
            if attribute in ("_parameters", "_buffers"):
                plain += [(key, _tensor_structure(tensor)) for key, tensor in value.items()]
            elif attribute.endswith("_hooks"):
                if value:
                    return None
            elif attribute == "training" or attribute not in _INTERNAL:
                try:
                    plain.append((attribute, _plain(value)))
                except TypeError:
                    return None
        parts.append(tuple(plain))
    return tuple(parts)


def _tensor_structure(tensor: torch.Tensor | None) -> Hashable:
    if tensor is None:
        return None
    if nn.parameter.is_lazy(tensor):
        return "lazy"
    return (tuple(tensor.shape), tensor.dtype, tensor.requires_grad)


def _plain(value: object) -> Hashable:
    if value is None or isinstance(value, bool | int | float | str):
        return (type(value), value)
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    raise TypeError
