"""Imports run one way, and the three paradigms never import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

PARADIGMS = ("horizontal", "split", "vfl")
# Low modules stand below the wire: they hold values and numbers, and know of no message.
LEVELS = {
    "protocols.errors": 0,
    "protocols.arrays": 1,
    "protocols.costs": 1,
    "protocols.flops": 1,
    "protocols.logs": 1,
    "protocols.private": 1,
    "protocols.randomness": 0,
    "protocols.hazmat": 2,
    "protocols.wire": 2,
    "protocols.party": 3,
    "protocols": 4,
    **dict.fromkeys(PARADIGMS, 5),
    # A command of vfl's, outside its package: whatever is inside loads torch, and help must not wait for it.
    "vfl.command": 6,
    "examples": 6,
    "tests": 7,
}
SIBLINGS = ({*PARADIGMS}, {"protocols.hazmat", "protocols.wire"}, {"examples"})


def group(module: str) -> str | None:
    """The longest entry of LEVELS that holds `module`; None for a module that is not ours."""
    parts = module.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in LEVELS), None)


def imported(tree: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    """Every module that `module` imports, anywhere in it, also by importlib with a literal name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".") if is_package else module.split(".")[:-1]
            above = base[: len(base) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            # `from protocols import tables` names a module, `from protocols.data.tables import column` does
            # not.
            yield from (f"{start}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def violations(root: Path) -> list[str]:
    """Each import under `root` that goes the wrong way, as "importer -> imported"."""
    wrong = []
    for package in ("protocols", *PARADIGMS, "examples"):
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            module = ".".join(parts[:-1] if is_package else parts)
            for target in imported(ast.parse(file.read_text(encoding="utf-8")), module, is_package):
                if not allowed(module, target):
                    wrong.append(f"{module} -> {target}")
    return wrong


def allowed(module: str, target: str) -> bool:
    """Whether `module` may import `target`."""
    here, there = group(module), group(target)
    if here is None or there is None or here == there:
        return True
    return LEVELS[there] <= LEVELS[here] and not any({here, there} <= family for family in SIBLINGS)


def test_imports_run_one_way() -> None:
    assert violations(ROOT) == []


def test_there_is_something_to_check() -> None:
    for package in ("protocols", *PARADIGMS):
        assert list((ROOT / package).glob("*.py"))


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("protocols/wire/codec.py", "from protocols.party import Party", "protocols.party.Party"),
        ("protocols/wire/codec.py", "from protocols.data.tables import Kind", "protocols.data.tables.Kind"),
        ("protocols/wire/codec.py", "from ..party import run", "protocols.party.run"),
        ("protocols/wire/__init__.py", "from .. import tables", "protocols.data.tables"),
        ("protocols/wire/codec.py", "import protocols.hazmat.lanes", "protocols.hazmat.lanes"),
        ("protocols/arrays.py", "def f():\n    from protocols.wire import message", "protocols.wire.message"),
        ("protocols/errors.py", "import protocols.arrays", "protocols.arrays"),
        (
            "protocols/party.py",
            "if TYPE_CHECKING:\n    from protocols import federation",
            "protocols.federation",
        ),
        ("protocols/compare/run.py", "import vfl", "vfl"),
        ("protocols/cli/main.py", "importlib.import_module('split.methods')", "split.methods"),
        ("protocols/cli/main.py", "from tests.bench import bench", "tests.bench.bench"),
        ("vfl/network/roles.py", "from split.chain import cut", "split.chain.cut"),
        ("horizontal/rounds.py", "import vfl.align as align", "vfl.align"),
        ("split/x.py", "import examples.split_digits", "examples.split_digits"),
    ],
)
def test_an_import_the_wrong_way_is_found(tmp_path: Path, file: str, text: str, said: str) -> None:
    place = tmp_path / file
    place.parent.mkdir(parents=True)
    place.write_text(text)
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert violations(tmp_path) == [f"{module} -> {said}"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("protocols/wire/codec.py", "from protocols.arrays import Array\nfrom .message import Message"),
        (
            "protocols/party.py",
            "from protocols.wire.codec import encode\nfrom protocols.flops import forward_flops",
        ),
        ("protocols/compare/run.py", "import protocols.party, pandas\nfrom importlib import import_module"),
        (
            "vfl/network/roles.py",
            "import protocols.learning.cut\nfrom vfl import align\nfrom . import layout",
        ),
        ("examples/x.py", "import vfl, split, horizontal, protocols"),
    ],
)
def test_an_import_the_right_way_is_left_alone(tmp_path: Path, file: str, text: str) -> None:
    place = tmp_path / file
    place.parent.mkdir(parents=True)
    place.write_text(text)
    assert violations(tmp_path) == []
