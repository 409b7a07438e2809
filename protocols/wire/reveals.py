"""What leaves, as a page: `python -m protocols.wire.reveals > docs/what-leaves.md`.

No party: it reads every installed message's own words. The packages are found through the entry points of
`vfl.methods`, so nothing above the wire is imported by name here.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from protocols.arrays import Arrays
from protocols.wire.message import OURS, Message

_MUTE = "protocols.hazmat"

HEAD = """\
# What leaves

Every message that one party can send another, generated from the code by
`python -m protocols.wire.reveals > docs/what-leaves.md`; a test compares. Nothing leaves a party but these.
The last column is what a curious receiver learns from the message by itself; what follows from many of them
is on the page about the [threat model](threat-model.md). In a shape, a letter stands for one size throughout
the message.
"""


def load_messages(packages: tuple[str, ...] = OURS) -> dict[str, list[type[Message]]]:
    """Load the messages of those of `packages` that offer a method, sorted by package, then by name."""
    offering = {entry.value.partition(".")[0] for entry in entry_points(group="vfl.methods")}
    found: dict[str, list[type[Message]]] = {}
    for package in packages:
        if package not in offering:
            continue
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            # Primitives send nothing, and their kernels take a second to import.
            if not module.name.endswith(".__main__") and not module.name.startswith(_MUTE):
                importlib.import_module(module.name)
        kinds = (kind for kind in Message.kinds.values() if kind.__module__.startswith(f"{package}."))
        found[package] = sorted(kinds, key=lambda kind: kind.kind)
    return found


def page(messages: dict[str, list[type[Message]]]) -> str:
    """Return the page in Markdown, one line for each message, so that a changed message is one line."""
    lines = [HEAD]
    for package, kinds in messages.items():
        if kinds:
            lines += [f"## {package}\n", "| message | fields | what it reveals |", "|---|---|---|"]
            lines += [
                " | ".join(("| " + f"`{kind.kind}`", fields(kind), _cell(kind.reveals) + " |"))
                for kind in kinds
            ]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def fields(kind: type[Message]) -> str:
    """Describe the fields of `kind` in the words of the page."""
    said = [f"`{name}`: {_cell(_type(kind, name, field))}" for name, field in kind.model_fields.items()]
    return "; ".join(said) or "none"


def _type(kind: type[Message], name: str, field: FieldInfo) -> str:
    if name in kind.specs:
        return str(kind.specs[name]) + ("" if field.is_required() else ", or none")
    return _words(field.annotation)


def _words(annotation: Any) -> str:
    """Describe a type in words: `list[int | str]` is "list of int or str"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(inner[0])
    if origin in (Union, UnionType):
        return " or ".join(map(_words, inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if inner:
        return f"{origin.__name__} of {', '.join(_words(word) for word in inner if word is not ...)}"
    names = {Arrays: "named arrays", type(None): "none", Any: "any JSON value"}
    return names.get(annotation) or str(annotation.__name__)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("[", r"\[")


if __name__ == "__main__":
    print(page(load_messages()), end="")
