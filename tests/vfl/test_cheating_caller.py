"""A caller that breaks the protocol learns of a served party's ids what the guide says, and no more.

The shop serves 3,000 customers out of 20,000 possible ids. The bank surely knows 60 of them, announces 100.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from protocols.errors import PolicyError, ProtocolError, VflError
from protocols.hazmat.blake2s import row_digests
from protocols.hazmat.cuckoo import third_of
from protocols.hazmat.oblivious import Columns, as_rows, both_seeds, offer
from protocols.party import Party, Role
from protocols.policy.history import load_history
from protocols.programs import Seat, program, registered
from protocols.psi import buckets, choose
from protocols.psi.curve import multiply, new_scalar
from protocols.psi.ecdh import BlindedIds, TwiceBlinded, agree, blind, mark_width
from protocols.psi.ids import canonical
from protocols.psi.kkrt import FunctionValues, MaskedCodes, SeedChoices, SeedOffer, TableHash, ValuesFound
from protocols.psi.oprf import CODE, Own, fill_table, masked, unmask, values_of
from protocols.psi.ring import InAllSize
from protocols.psi.stored import drawer_of
from protocols.service.caller import Connected
from tests.support.served import lay_out, serving
from vfl import VerticalGradientBoostingClassifier, VerticalLogisticRegression, VerticalNetClassifier, align
from vfl.alignment import program as aligning
from vfl.alignment.roles import Aligned

POSSIBLE = pd.Series(np.arange(20_000))
CUSTOMERS = np.sort(np.random.default_rng(5).choice(20_000, 3_000, replace=False))
ANNOUNCED = np.concatenate([CUSTOMERS[:60], np.setdiff1d(POSSIBLE, CUSTOMERS)[:40]])
BANK = pd.DataFrame({"id": ANNOUNCED})
KKRT = 'protocols = ["ecdh", "kkrt"]\n'
Knowledge = set[int]
Cheat = Callable[[Party], Coroutine[Any, Any, Knowledge]]


def trial(folder: Path, policy: str = "") -> Path:
    """What `vfl certs` makes, and the shop's rule, which it leaves as it is, or with `policy` besides."""
    return lay_out(folder, {"bank": BANK, "shop": pd.DataFrame({"id": CUSTOMERS, "visits": 1.0})}, policy)


def play(book: Path, protocol: str, cheat: Cheat) -> tuple[Knowledge, VflError | None]:
    """What the bank knows of the shop's ids after a job in which it plays `cheat`, and how that ended."""
    known: Knowledge = set()

    def prepared(p: aligning.Align, seat: Seat) -> Role:
        async def role(me: Party) -> Aligned:
            async with me.within("align") as at:
                known.update(await cheat(at))
            return Aligned(np.zeros(0, np.int64), len(ANNOUNCED), 0, 0)

        return role

    cheating = replace(aligning.program, prepare={"align": prepared})
    asked = aligning.Align.model_validate({"label_party": "bank", "protocol": protocol})
    both = ("bank", "shop")
    with serving(book.parent, "shop"), Connected(book, "bank", BANK) as all_:
        try:
            all_.execute(cheating, "align", asked, lambda party: Seat(party, both, BANK, "id"), both)
        except VflError as error:
            return known, error
    return known, None


def said_by_shop(book: Path) -> list[str]:
    """The kinds of what the shop sent, by its ledger."""
    rows = map(json.loads, (book.parent / "shop-store" / "ledger.jsonl").read_text().splitlines())
    return [row["kind"] for row in rows if row["entry"] == "message" and row["sender"] == "shop"]


def break_kkrt(protocol: str) -> Cheat:
    """KKRT's receiver with altered codes, which then tries every id that there could be."""

    async def cheat(at: Party) -> Knowledge:
        ids = canonical(BANK["id"])
        agreed = await agree(at, "shop", ids, protocol)
        own = Own.of(ids, agreed.key, mark_width(len(ids), agreed.count))
        offered = offer()
        await at.send("shop", SeedOffer(point=np.frombuffer(offered[1], np.uint8)))
        zeros, ones = both_seeds(offered, (await at.recv("shop", SeedChoices)).points)
        digests, table, tried = fill_table(own, None)
        await at.send("shop", TableHash(tried=tried))
        mine = np.empty((len(ids), own.width), np.uint8)
        rows = masked(own, digests, table, 0, (Columns(zeros), Columns(ones)), mine, None)
        # Eight places of the code of each of 56 customers: of 256 tries for those bits of s one comes back.
        bins = [int(np.flatnonzero(table == item)[0]) for item in range(CODE // 8)]
        rows[bins] ^= (255 * np.eye(CODE // 8, dtype=np.uint8)).view(np.uint64)
        await at.send("shop", MaskedCodes(rows=rows))
        values = (await at.recv("shop", FunctionValues)).values
        await at.send("shop", ValuesFound(mask=np.zeros(agreed.count, np.bool_)))
        await at.send("shop", InAllSize(count=0))
        said = {value.tobytes() for value in values.reshape(-1, own.width)}
        t, s = as_rows(Columns(zeros).take(-(-len(table) // 64))), np.zeros(CODE // 8, np.uint8)
        for place, j in enumerate(bins):
            tries = np.zeros((256, CODE // 8), np.uint8)
            tries[:, place] = range(256)
            found = row_digests(b"vfl oprf", t[j] ^ tries.view(np.uint64), np.full(256, j, np.uint64))
            (s[place],) = [k for k in range(256) if found[k].tobytes()[: own.width] in said]
        bits, q = np.unpackbits(s, bitorder="little")[:, None], np.empty((len(table), CODE // 64), np.uint64)
        unmask(Columns(np.where(bits, ones, zeros)), rows, s.view(np.uint64), q, None)
        guess = Own.of(canonical(POSSIBLE), agreed.key, own.width)
        of = guess.digests(None)
        tested = values_of(guess, of, guess.bins(of, third_of(len(ids)), tried), q, s.view(np.uint64), None)
        return {int(i) for i in POSSIBLE if any(tested[part, i].tobytes() in said for part in range(3))}

    return cheat


@pytest.mark.parametrize("protocol", ["kkrt", "unbalanced"])
def test_a_protocol_that_costs_more_is_not_the_callers_choice(tmp_path: Path, protocol: str) -> None:
    """The policy is the trial's, untouched. By KKRT the bank would know all customers."""
    book = trial(tmp_path)
    known, error = play(book, protocol, break_kkrt(protocol))
    assert known == set() and said_by_shop(book) == []
    assert isinstance(error, PolicyError) and error.clause == "protocols"
    assert f"ids may not be compared by {protocol}; granted are ecdh" in str(error)


@pytest.mark.parametrize(("policy", "large"), [("", 50), (KKRT, 101)])
def test_auto_stands_for_ecdh_unless_the_policy_names_kkrt_and_both_sets_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, large: int
) -> None:
    monkeypatch.setattr(choose, "LARGE", large)
    monkeypatch.setattr(choose, "RATIO", 1000)
    book = trial(tmp_path, policy)
    known, error = play(book, "auto", break_kkrt("auto"))
    assert known == set() and isinstance(error, ProtocolError)
    assert {*said_by_shop(book)} <= {"protocols.IdKind/1", "protocols.BlindedIds/1", "protocols.Abort/1"}


def test_a_policy_that_names_kkrt_shows_a_cheat_every_id_that_can_be_listed(tmp_path: Path) -> None:
    """What the guide says that it costs: no more than this, since it is all."""
    known, error = play(trial(tmp_path, KKRT), "kkrt", break_kkrt("kkrt"))
    assert known == {*CUSTOMERS.tolist()}
    assert isinstance(error, PolicyError) and error.clause == "min_intersection"  # too late


async def guesses(
    at: Party, key: bytes, m: int, announced: int, chosen: pd.Series, runs: int = 1
) -> Knowledge:
    """ECDH with these guesses, whatever was announced, and no answer of use to the shop."""
    order, points = blind(key, scalar := new_scalar(), canonical(chosen))
    await at.send("shop", BlindedIds(points=points))
    theirs, width = await at.recv("shop", BlindedIds), mark_width(announced, m, runs)
    shop = {mark.tobytes() for mark in multiply(scalar, theirs.points)[:, :width]}
    marks = (await at.recv("shop", TwiceBlinded)).marks
    await at.send("shop", TwiceBlinded(marks=np.zeros((m, width), np.uint8)))
    return {int(chosen.iloc[order[i]]) for i in range(len(marks)) if marks[i].tobytes() in shop}


def ask_about(chosen: pd.Series) -> Cheat:
    """Announces 100 ids."""

    async def cheat(at: Party) -> Knowledge:
        agreed = await agree(at, "shop", canonical(BANK["id"]), "ecdh")
        found = await guesses(at, agreed.key, agreed.count, len(BANK), chosen)
        await at.send("shop", InAllSize(count=0))
        return found

    return cheat


@pytest.mark.parametrize("asked", [100, 101, 20_000])
def test_by_ecdh_a_caller_asks_about_as_many_ids_as_it_announced(tmp_path: Path, asked: int) -> None:
    """It announces 100, and sends so many points, of guesses."""
    chosen, book = POSSIBLE.iloc[:asked], trial(tmp_path)
    known, error = play(book, "ecdh", ask_about(chosen))
    if asked == 100:
        assert known == {*chosen} & {*CUSTOMERS.tolist()}
        assert isinstance(error, PolicyError) and error.clause == "min_intersection"  # the shop saw no match
    else:
        assert known == set() and "protocols.TwiceBlinded/1" not in said_by_shop(book)
        assert f"expected the 100 points announced, got {asked}" in str(error)


@pytest.mark.parametrize("clause", ["max_asked_day", "max_asked"])
def test_job_after_job_a_caller_asks_about_no_more_ids_than_granted(tmp_path: Path, clause: str) -> None:
    """Each job is about other ids, and is refused afterwards, since the shop is made to see no match."""
    book, known = trial(tmp_path, f"{clause} = 250\n"), set[int]()
    for at, expected in ((0, "min_intersection"), (100, "min_intersection"), (200, clause), (300, clause)):
        found, error = play(book, "ecdh", ask_about(POSSIBLE.iloc[at : at + 100]))
        assert isinstance(error, PolicyError) and error.clause == expected
        known |= found
    assert known == {*range(200)} & {*CUSTOMERS.tolist()}
    assert said_by_shop(book).count("protocols.TwiceBlinded/1") == 2


@pytest.mark.parametrize(("most", "granted"), [(0, True), (960, True), (959, False)])
def test_places_that_are_filled_up_in_buckets_count_as_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, granted: bool
) -> None:
    """Of a caller that announces 100 ids each of 30 buckets has 32 places, so that its size says nothing: a
    cheat fills them with guesses."""
    monkeypatch.setattr(buckets, "FROM", 1000)
    monkeypatch.setattr(buckets, "BUCKET", 100)
    every, places = canonical(POSSIBLE), buckets.capacity(100, 30)

    async def cheat(at: Party) -> Knowledge:
        agreed = await agree(at, "shop", canonical(BANK["id"]), "ecdh")
        drawers = drawer_of(every.values, buckets._expand(agreed.key, "places"), 30, 3000)
        known: Knowledge = set()
        for bucket in range(30):
            async with at.within(f"bucket {bucket}") as one:
                key, chosen = buckets._expand(agreed.key, f"bucket {bucket}"), POSSIBLE[drawers == bucket]
                m = buckets.capacity(agreed.count, 30)
                known |= await guesses(one, key, m, places, chosen.iloc[:places], 30)
        await at.send("shop", InAllSize(count=0))
        return known

    book = trial(tmp_path, f"max_asked_job = {most}\n")
    known, error = play(book, "ecdh", cheat)
    assert isinstance(error, PolicyError)
    if granted:
        assert error.clause == "min_intersection" and 90 < len(known) < 200
        (asked,) = load_history(tmp_path / "shop-store", "bank", "main").aligned["announced"]
        assert asked == 30 * places == 960  # each of which had an answer
    else:
        assert error.clause == "max_asked_job" and known == set()


# Every other way to ask for more.


def vertical(rows: int = 60) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    whole = pd.DataFrame(rng.normal(size=(rows, 2)), columns=["a", "b"]).assign(id=np.arange(rows))
    return {"bank": whole[["id", "a"]].assign(y=(whole["b"] > 0).astype(int)), "shop": whole[["id", "b"]]}


ESTIMATORS: dict[str, Callable[..., Any]] = {
    "vertical-net": lambda **how: VerticalNetClassifier(epochs=1, **how),
    "vertical-linear": lambda **how: VerticalLogisticRegression(max_iter=1, **how),
    "vertical-boosting": lambda **how: VerticalGradientBoostingClassifier(n_estimators=1, **how),
}


@pytest.mark.parametrize("method", ESTIMATORS)
def test_no_estimator_takes_kkrt_where_the_served_party_does_not_name_it(tmp_path: Path, method: str) -> None:
    data = vertical()
    book = lay_out(tmp_path, data, "min_intersection = 5\n")
    with serving(tmp_path, "shop"), Connected(book, "bank", data["bank"]) as all_:
        with pytest.raises(PolicyError, match="ids may not be compared by kkrt; granted are ecdh"):
            ESTIMATORS[method](protocol="kkrt").fit(all_, target="bank.y", id="id")
        if method != "vertical-boosting":
            return
        # What it may choose anew for each prediction, too.
        model = ESTIMATORS[method](min_samples_split=40).fit(all_, target="bank.y", id="id")
        for name, value in (("protocol", "kkrt"), ("predict_protocol", "bitmask")):
            with pytest.raises(PolicyError, match=r"protocols: ids may|predict_protocol should be one of"):
                model.set_params(**{name: value}).predict(all_)
            model.set_params(protocol="auto")
    assert "protocols.SeedChoices/1" not in said_by_shop(book)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            {"normalise": "digits"},
            "parameters: normalise should be one of 'strip', 'casefold'; a rule grants",
        ),
        ({"duplicates": "many"}, "parameters: duplicates should be one of 'error', 'first'; a rule grants"),
    ],
)
def test_what_shows_more_of_the_ids_than_who_is_here_is_named_by_the_policy(
    tmp_path: Path, how: dict[str, Any], said: str
) -> None:
    data = {party: table.assign(id=table["id"].astype(str) + "x") for party, table in vertical().items()}
    (name, value), book = *how.items(), lay_out(tmp_path, data, "min_intersection = 5\n")
    config = tmp_path / "shop.toml"
    text = config.read_text()
    for refused in (True, False):
        with serving(tmp_path, "shop"), Connected(book, "bank", data["bank"]) as all_:
            if refused:
                with pytest.raises(PolicyError, match=said):
                    align(all_, id="id", label_party="bank", **how)
                assert said_by_shop(book) == []
            else:
                assert align(all_, id="id", label_party="bank", **how).report.size == 60
        config.write_text(f'{text}[policy.parameters.align.{name}]\nvalues = ["{value}"]\n')


@pytest.mark.parametrize("name", sorted(registered()))
def test_every_program_that_aligns_is_careful(name: str) -> None:
    """Of a parameter that could ask for more, it bounds what a policy does not: the default is within."""
    found = program(name)
    for parameter, wide in (("normalise", "digits"), ("duplicates", "many"), ("predict_protocol", "bitmask")):
        known = found.parameters.model_fields.get(parameter)
        if known is not None and wide in str(found.parameters.model_json_schema()):
            bound = found.careful[parameter]
            assert bound.holds(known.default) and not bound.holds(wide) and not bound.holds([wide])
