"""Laws of saving a run: what all parties saved comes back together, and never mixed with another run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from protocols.arrays import Arrays, prefixed, under
from protocols.data.tables import Scaler, scaler_arrays, scaler_in
from protocols.errors import ConfigError, DataError
from protocols.estimator import load_parts, save_parts, settings_in
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


def test_weights_of_several_models_lie_in_one_part() -> None:
    top, bottom = Arrays({"0.w": np.ones(2)}), Arrays({"0.w": np.zeros(3), "top.w": np.ones(1)})
    scaler = Scaler(np.arange(2.0), np.ones(2))
    together = Arrays(
        prefixed("top", top)
        | prefixed("bottom", bottom)
        | scaler_arrays("target", scaler)
        | scaler_arrays("x", None)
    )
    assert under("top", together) == top and under("bottom", together) == bottom
    back = scaler_in("target", together)
    assert back is not None and back.mean.tolist() == [0, 1] and back.scale.tolist() == [1, 1]
    assert scaler_in("x", together) is None


@pytest.mark.parametrize("label_parties", [(), ("bank", "shop")])
def test_settings_are_those_of_one_label_party(label_parties: tuple[str, ...]) -> None:
    found = parts() | {
        party: Part("split", party, {"settings": {"l2": 1.0}}, Arrays({})) for party in label_parties
    }
    with pytest.raises(DataError, match=f"{len(label_parties)} parts of run 'r' are a label party's"):
        settings_in("r", found)
    assert settings_in(
        "r", parts() | {"bank": Part("split", "bank", {"settings": {"l2": 1}}, Arrays({}))}
    ) == {"l2": 1}
