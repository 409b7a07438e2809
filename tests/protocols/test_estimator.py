"""Laws of saving a run: what all parties saved comes back together, and never mixed with another run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocols.arrays import Arrays
from protocols.errors import ConfigError, DataError
from protocols.estimator import _settings_in, load_parts, save_parts
from protocols.parts import Part, digest, load_part


def parts(scale: float = 1.0) -> dict[str, Part]:
    weights = Arrays({"w": np.arange(3.0) * scale})
    return {party: Part("split", party, {"of": party}, weights) for party in ("shop", "bank", "telco")}


def test_all_parts_come_back_and_name_each_other(tmp_path: Path) -> None:
    saved = parts()
    run = save_parts(tmp_path, None, saved)
    loaded = load_parts(tmp_path, run, "split")
    assert list(loaded) == ["bank", "shop", "telco"]
    for party, part in loaded.items():
        assert part.weights == saved[party].weights and part.settings == {"of": party}
        assert part.others == {peer: digest(saved[peer]) for peer in saved if peer != party}
        assert part == load_part(tmp_path / party, run)


def test_a_run_that_is_not_named_gets_a_new_id(tmp_path: Path) -> None:
    assert save_parts(tmp_path, None, parts()) != save_parts(tmp_path, None, parts())
    assert save_parts(tmp_path, "mine", parts()) == save_parts(tmp_path, "mine", parts()) == "mine"


def test_one_party_alone_loads_its_own(tmp_path: Path) -> None:
    save_parts(tmp_path, "r", parts())
    for gone in ("bank", "telco"):
        shutil.rmtree(tmp_path / gone)
    assert list(load_parts(tmp_path, "r", "split", ["shop"])) == ["shop"]
    with pytest.raises(ConfigError, match=r"^shop/load: the part of bank in run 'r' is missing"):
        load_parts(tmp_path, "r", "split")
    with pytest.raises(ConfigError, match=r"^bank/load: run 'r' is not in the store"):
        load_parts(tmp_path, "r", "split", ["shop", "bank"])


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    save_parts(tmp_path, "r", parts())
    save_parts(tmp_path / "other", "r", parts(2.0))
    with pytest.raises(ConfigError, match=r"^bank/load: run 'r' is of split, expected vertical"):
        load_parts(tmp_path, "r", "vertical")
    with pytest.raises(ConfigError, match="run 'q' is at no party"):
        load_parts(tmp_path, "q", "split")
    shutil.copytree(tmp_path / "other/shop", tmp_path / "shop", dirs_exist_ok=True)
    for wanted in (None, ["bank", "shop"]):
        with pytest.raises(DataError, match=r"^bank/load: .*the part of shop is not of the same training"):
            load_parts(tmp_path, "r", "split", wanted)


def test_a_party_that_took_no_part_is_refused(tmp_path: Path) -> None:
    save_parts(tmp_path, "r", parts())
    save_parts(tmp_path, "r", {"alien": Part("split", "alien", {}, Arrays())})
    with pytest.raises(DataError, match="is not of the same training"):
        load_parts(tmp_path, "r", "split")


SAID = {"l2": 1.0, "hidden": [4, 2]}


@pytest.mark.parametrize(
    ("said", "count"), [({}, 0), ({"bank": SAID, "shop": {"l2": 2.0}}, 2)], ids=["none", "two that differ"]
)
def test_settings_that_no_part_says_or_two_say_differently(said: dict[str, Any], count: int) -> None:
    found = parts() | {party: Part("split", party, settings, Arrays({})) for party, settings in said.items()}
    found = {party: replace(part, settings=said.get(party, {})) for party, part in found.items()}
    with pytest.raises(DataError, match=f"{count} parts of run 'r' hold settings, expected one, or the same"):
        _settings_in("r", found, lambda name, value: value, {})


def test_settings_are_those_that_parts_say_and_modules_those_that_are_brought() -> None:
    told: dict[str, Any] = {**SAID, "top": {"module": "Linear"}, "bottoms": {"shop": {"module": "Linear"}}}
    found = {
        party: replace(part, settings=told if party != "shop" else {}) for party, part in parts().items()
    }
    given = {"top": object(), "bottoms": {"shop": object()}}
    assert _settings_in("r", found, lambda name, value: value, given) == {**SAID, **given}
    for lacking, wanted in (("top", "pass top=module"), ("bottoms", r"pass bottoms=\{'shop': module\}")):
        with pytest.raises(
            ConfigError, match=f"^bank/load: {lacking} was a network of the caller's own.*{wanted}"
        ):
            _settings_in("r", found, lambda name, value: value, {**given, lacking: None})
