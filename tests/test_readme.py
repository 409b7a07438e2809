"""The README keeps its word: its example runs in a notebook, its commands exist."""

from __future__ import annotations

import re

import nbformat
from nbclient import NotebookClient
from typer.main import get_command

from protocols.cli.main import app
from tests.support import ROOT
from tests.support.waiting import HANG

README = (ROOT / "README.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_readme_example_and_the_tutorial_run_in_a_notebook() -> None:
    example, network = blocks("python")  # the second needs other processes: examples/over_the_network.py
    assert "Federation.connect" in network
    assert len(example.strip().splitlines()) <= 12
    lines = [example, *blocks("python", TUTORIAL)]
    assert len(lines) >= 7
    cells = [nbformat.v4.new_code_cell(code) for code in lines]  # type: ignore[no-untyped-call]
    notebook = nbformat.v4.new_notebook(cells=cells)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=HANG, kernel_name="python3").execute()
    shown = ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells]
    assert "patient" in shown[0] and "protocols.Smashed/1" in shown[0]
    assert any("protocols.TwiceBlinded/1" in text for text in shown[1:])
    assert any("hospital4" in text for text in shown[1:])


def test_its_make_targets_and_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    console = "\n".join(blocks("console"))
    for target in re.findall(r"^make (\w+)", console, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for command in re.findall(r"`vfl (\w+)|vfl (\w+) -", README):
        assert "".join(command) in commands
    for file in re.findall(r"`(docs/[\w./-]+)`", README):
        assert (ROOT / file).exists()


def test_it_explains_each_row_of_the_table_that_it_shows() -> None:
    (tables,) = blocks("text")
    explained = " ".join(re.findall(r"^\| (.*?) \|", README, flags=re.MULTILINE)[1:])
    shown = re.findall(r"^│ (\w.*?) +│", tables, flags=re.MULTILINE)
    methods = [re.split(r"[:,] ?", name)[0] for name in shown if name != "method"]
    assert (
        {"centralised", "fedavg", "split", "vertical", "alone"}
        <= {*methods}
        <= {*re.findall(r"\w+", explained)}
    )
