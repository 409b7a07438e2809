"""The lower bounds of pyproject.toml are the versions that the oldest environment has, and are old enough."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.support import ROOT

# No newer than: what many environments have already.
AGREED = {
    "grpcio": "1.72.1",  # the first of 1.72 that was not withdrawn
    "numpy": "2.0",
    "pandas": "2.2.2",  # the first of 2.2 for numpy 2
    "protobuf": "6.31",
    "pyarrow": "16.0",
    "pydantic": "2.8",
    "scikit-learn": "1.5",
    "torch": "2.4",
}


def numbers(version: str) -> tuple[int, ...]:
    """As far as they say something: 2.0 and 2.0.0 are one."""
    found = [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]
    while found and not found[-1]:
        found.pop()
    return tuple(found)


def key(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def bounds() -> dict[str, str]:
    """Of what the package needs to run, with the extra for databases."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    said = [*project["dependencies"], *project["optional-dependencies"]["sql"]]
    parts = [re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", one) for one in said]
    assert all(parts), said
    return {key(part[1]): part[2] for part in parts if part}


def pinned(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    return {key(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line}


def test_the_oldest_environment_has_the_lower_bounds() -> None:
    oldest = pinned("constraints-oldest.txt")
    assert {name: numbers(bound) for name, bound in bounds().items()} == {
        name: numbers(oldest[name]) for name in bounds()
    }


def test_the_newest_environment_is_within_the_bounds() -> None:
    newest = pinned("constraints.txt")
    for name, bound in bounds().items():
        assert numbers(newest[name]) >= numbers(bound), name


@pytest.mark.parametrize("name", AGREED)
def test_no_bound_is_newer_than_was_agreed(name: str) -> None:
    assert numbers(bounds()[name]) <= numbers(AGREED[name])


def test_the_generated_code_asks_for_no_newer_protobuf_than_the_bound() -> None:
    text = (ROOT / "protocols/network/parties_pb2.py").read_text()
    said = re.search(r"Protobuf Python Version: ([\d.]+)", text)
    assert said and numbers(said[1]) <= numbers(bounds()["protobuf"])
