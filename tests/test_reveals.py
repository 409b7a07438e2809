"""The page of what leaves is what the code says, and says all of it."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import pytest
from pydantic import Field

from protocols.arrays import Array, Arrays
from protocols.wire.message import OURS, Message, Spec
from protocols.wire.reveals import load_messages, page
from tests.support import ROOT

PAGE = ROOT / "docs" / "what-leaves.md"


class Spill(Message, reveals="everything | nothing"):
    x: Annotated[Array, Spec("int64|float32", ("b", 3))]
    weights: Arrays
    tag: Annotated[int, Field(ge=1)] | list[str] | None


class Empty(Message, reveals="that one is there"):
    pass


def test_the_committed_page_is_what_the_code_says() -> None:
    said = page(load_messages())
    assert PAGE.read_text(encoding="utf-8") == said, (
        "run: python -m protocols.wire.reveals > docs/what-leaves.md"
    )


def test_every_message_of_every_package_is_on_the_page() -> None:
    found = load_messages()
    assert set(found) == set(OURS) and all(found.values())
    listed = {kind.kind for kinds in found.values() for kind in kinds}
    assert listed == {kind for kind in Message.kinds if kind.split(".")[0] in OURS}


@pytest.mark.parametrize("package", OURS)
def test_every_message_says_what_it_reveals_in_words(package: str) -> None:
    for kind in load_messages((package,))[package]:
        assert len(kind.reveals.split()) >= 3 and kind.reveals.strip() == kind.reveals


def test_a_message_is_one_line_with_its_fields() -> None:
    lines = page({"tests": [Empty, Spill], "none": []}).splitlines()
    assert "| `tests.Empty/1` | none | that one is there |" in lines
    shape = r"`x`: int64\|float32 \[b, 3]; `weights`: named arrays; `tag`: int or list of str or none"
    assert rf"| `tests.Spill/1` | {shape} | everything \| nothing |" in lines
    assert "## none" not in lines


def test_primitives_define_no_message_and_are_not_imported_for_the_page() -> None:
    sources = (PAGE.parent.parent / "protocols" / "hazmat").glob("*.py")
    assert not [source.name for source in sources if "Message" in source.read_text(encoding="utf-8")]
    program = """
import sys
from protocols.wire.reveals import load_messages
load_messages()
assert "protocols.psi.kkrt" in sys.modules and "numba" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
