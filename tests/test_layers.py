"""Imports run one way, in no circle, and the three paradigms never import each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support import ROOT

PARADIGMS = ("horizontal", "split", "vfl")
# A room is a module at the top of a package, or a folder there with all that it holds. A module imports only
# from its own room and from rooms of a lower level.
PROTOCOLS = {
    **dict.fromkeys(["errors", "lazy", "progress"], 0),
    **dict.fromkeys(["arrays", "costs", "files", "hazmat", "logs", "private", "randomness", "settings"], 1),
    **dict.fromkeys(["flops", "policy", "scores", "trees", "wire"], 2),
    **dict.fromkeys(["data", "network", "packing", "party", "record"], 3),
    **dict.fromkeys(["parts", "psi", "sums"], 4),
    **dict.fromkeys(["learning", "programs"], 5),
    "service": 6,
    "federation": 7,
    **dict.fromkeys(["compare", "estimator", "testing"], 8),
    **dict.fromkeys(["cli", "row_clients"], 9),
}
LEVELS = {
    **{f"protocols.{room}": level for room, level in PROTOCOLS.items()},
    "horizontal": 10,
    "split": 10,
    **dict.fromkeys(["vfl.alignment", "vfl.order", "vfl.weights"], 10),
    "vfl.base": 11,
    **dict.fromkeys(["vfl.boosting", "vfl.linear", "vfl.network"], 12),
    **dict.fromkeys(["vfl.command", "vfl.methods"], 13),
    "protocols": 14,  # a package's own names, for its users: each is imported when it is asked for
    "vfl": 14,
    "examples": 15,
    "tests": 16,
}


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
            # `from protocols import party` names a module, `from protocols.party import run` does not.
            yield from (f"{start}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def modules(root: Path, packages: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """Each module of `packages` under `root`, by its name."""
    for package in packages:
        for file in sorted((root / package).rglob("*.py")):
            yield ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"), file


def arrows(root: Path) -> Iterator[tuple[str, str]]:
    """Each import of ours under `root`, as (importer, imported)."""
    for module, file in modules(root, ("protocols", *PARADIGMS, "examples")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for target in imported(tree, module, file.name == "__init__.py"):
            if group(target) is not None:
                yield module, target


def violations(root: Path) -> list[str]:
    """Each import under `root` that goes the wrong way, as "importer -> imported"."""
    return [f"{module} -> {target}" for module, target in arrows(root) if not allowed(module, target)]


def allowed(module: str, target: str) -> bool:
    """Whether `module` may import `target`."""
    here, there = group(module), group(target)
    assert here is not None and there is not None
    families = {here.partition(".")[0], there.partition(".")[0]}
    if len(families) == 2 and families <= {*PARADIGMS}:
        return False
    return here == there or LEVELS[there] < LEVELS[here]


def circle(root: Path) -> list[str]:
    """Modules under `root` that import each other, round and round, wherever the imports stand."""
    known = {module for module, _ in modules(root, ("protocols", *PARADIGMS))}
    below: dict[str, set[str]] = {module: set() for module in known}
    for module, target in arrows(root):
        place = target if target in known else target.rpartition(".")[0]
        if module in known and place in known and place != module:
            below[module].add(place)
    try:
        tuple(TopologicalSorter(below).static_order())
    except CycleError as error:
        return [*error.args[1]]
    return []


def test_imports_run_one_way() -> None:
    assert violations(ROOT) == []


def test_no_modules_import_each_other() -> None:
    assert circle(ROOT) == []


def test_every_module_is_in_a_room_that_has_a_level() -> None:
    for module, file in modules(ROOT, ("protocols", "vfl")):
        package = module.partition(".")[0]
        assert group(module) != package or file == ROOT / package / "__init__.py", module


def test_errors_bring_nothing_else() -> None:
    heavy = "{'torch', 'pandas', 'numpy', 'sklearn', 'grpc', 'pydantic'}"
    code = f"import sys, protocols.errors; print(*({heavy} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_there_is_something_to_check() -> None:
    for package in ("protocols", *PARADIGMS):
        assert list((ROOT / package).glob("*.py"))
    assert len([*arrows(ROOT)]) > 1000


@pytest.mark.parametrize(
    ("file", "text", "target"),
    [
        ("protocols/wire/codec.py", "from protocols.party import Party", "protocols.party.Party"),
        ("protocols/wire/codec.py", "from protocols.data.tables import Kind", "protocols.data.tables.Kind"),
        ("protocols/wire/codec.py", "from ..party import run", "protocols.party.run"),
        ("protocols/wire/__init__.py", "from .. import data", "protocols.data"),
        ("protocols/wire/codec.py", "import protocols.network.link", "protocols.network.link"),
        ("protocols/hazmat/lanes.py", "import protocols.wire.codec", "protocols.wire.codec"),
        ("protocols/arrays.py", "def f():\n    from protocols.wire import message", "protocols.wire.message"),
        ("protocols/errors.py", "import protocols.arrays", "protocols.arrays"),
        (
            "protocols/party.py",
            "if TYPE_CHECKING:\n    from protocols import federation",
            "protocols.federation",
        ),
        ("protocols/psi/ecdh.py", "from protocols import Message", "protocols.Message"),
        ("protocols/compare/run.py", "import vfl", "vfl"),
        ("protocols/cli/main.py", "importlib.import_module('split.methods')", "split.methods"),
        ("protocols/cli/main.py", "from tests.bench import bench", "tests.bench.bench"),
        ("protocols/cli/psi.py", "import vfl.command", "vfl.command"),
        ("vfl/network/roles.py", "from split.chain import cut", "split.chain.cut"),
        ("vfl/network/roles.py", "from vfl.linear.sgd import step", "vfl.linear.sgd.step"),
        ("horizontal/rounds.py", "import vfl.alignment as align", "vfl.alignment"),
        ("split/x.py", "import examples.split_digits", "examples.split_digits"),
    ],
)
def test_an_import_the_wrong_way_is_found(tmp_path: Path, file: str, text: str, target: str) -> None:
    place = tmp_path / file
    place.parent.mkdir(parents=True)
    place.write_text(text)
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert violations(tmp_path) == [f"{module} -> {target}"]


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
            "import protocols.learning.cut\nfrom vfl import order\nfrom . import layout",
        ),
        ("examples/x.py", "import vfl, split, horizontal, protocols"),
    ],
)
def test_an_import_the_right_way_is_left_alone(tmp_path: Path, file: str, text: str) -> None:
    place = tmp_path / file
    place.parent.mkdir(parents=True)
    place.write_text(text)
    assert violations(tmp_path) == []


@pytest.mark.parametrize("where", ["from vfl.linear import a", "def f():\n    from vfl.linear.a import g"])
def test_modules_that_import_each_other_are_found(tmp_path: Path, where: str) -> None:
    (tmp_path / "vfl/linear").mkdir(parents=True)
    (tmp_path / "vfl/linear/a.py").write_text("import vfl.linear.b")
    (tmp_path / "vfl/linear/b.py").write_text(where)
    assert {*circle(tmp_path)} == {"vfl.linear.a", "vfl.linear.b"}


def test_no_tuple_is_unpacked_in_a_call() -> None:
    """`call(*(a, b))` hides what a and b are; a keyword says it."""
    found = []
    for module, file in modules(ROOT, ("protocols", *PARADIGMS, "examples", "tests")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for given in node.args if isinstance(node, ast.Call) else []:
                if isinstance(given, ast.Starred) and isinstance(given.value, ast.Tuple | ast.List):
                    found.append(f"{module}:{given.lineno}")
    assert found == []
