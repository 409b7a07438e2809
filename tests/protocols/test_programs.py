"""Programs are found by name, and two parties that speak the same messages say so alike."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint

import pytest

from protocols import programs
from protocols.errors import ConfigError
from protocols.programs import GROUP, program, told


@pytest.mark.parametrize("package", ["horizontal", "split", "vfl"])
def test_schemas_are_in_words_that_no_release_of_python_or_numpy_changes(package: str) -> None:
    said = told(package)
    assert said == sorted(said) and {line.partition(".")[0] for line in said} == {package, "protocols"}
    assert not [line for line in said if re.search(r"typing|numpy|pydantic|<class|FieldInfo|metadata", line)]
    assert "protocols.Smashed/1|`h`: float32 \\[b, k]" in said
    if package == "vfl":
        assert "vfl.Columns/1|`count`: int; `width`: int or none" in said


def test_schemas_differ_where_messages_do(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {programs._schemas.__wrapped__(package) for package in ("horizontal", "split", "vfl")}
    assert len(digests) == 3 and program("vertical-net").schemas() in digests
    monkeypatch.setattr(programs, "fields", lambda kind: "another field")
    assert programs._schemas.__wrapped__("vfl") not in digests


def test_a_broken_program_is_in_the_way_of_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("broken", "no_such_package:program", GROUP)
    entries = [broken, EntryPoint("vertical-net", "vfl.program:program", GROUP)]
    monkeypatch.setattr(programs, "entry_points", lambda group: entries)
    programs._registered.cache_clear()
    assert program("vertical-net").package == "vfl"
    with pytest.raises(
        ConfigError, match=r"no method 'brokn' .*; there are broken, vertical-net; did you mean"
    ):
        program("brokn")
    programs._registered.cache_clear()
