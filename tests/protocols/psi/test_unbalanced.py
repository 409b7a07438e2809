"""Few ids against many that are prepared: the same rows as pandas', an epoch that ends when it should, and
never a wrong result from what is kept."""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ConfigError, DataError, PartyError, ProtocolError
from protocols.files import leftovers, write_whole
from protocols.party import Party
from protocols.psi import buckets, choose, curve, epochs, unbalanced
from protocols.psi.ecdh import IdKind, Learns, Met, agree
from protocols.psi.epochs import Epoch, digest_of, forget, load_epoch, save_epoch
from protocols.psi.ids import canonical
from protocols.psi.unbalanced import MOST, IdMarks, MarksOffered, PlacesFound, PointsAnswered, PointsAsked
from protocols.wire.codec import decode
from protocols.wire.ledger import Ledger
from protocols.wire.message import Message
from protocols.wire.transport import Network
from tests.protocols.psi.test_ecdh import BAD_POINTS, Role, Tap, bodies, needles, numbers, talk, texts

SMALL, LARGE = [*range(5, 15)], [*range(10, 40)]  # of bank and of shop; five are shared


def role(peer: str, ids: pd.Series, store: Path | None = None, learns: Learns = "both") -> Role:
    known = canonical(ids)
    return lambda me: choose.meet(me, peer, known, learns, "unbalanced", store=store)


def play(
    bank: Sequence[int] = SMALL,
    shop: Sequence[int] = LARGE,
    store: Path | None = None,
    network: Network | None = None,
) -> tuple[dict[str, Any], Tap, Ledger]:
    """One run; each party with its own folder in `store`."""
    own = {party: store / party if store else None for party in ("bank", "shop")}
    return talk(role("shop", numbers(*bank), own["bank"]), role("bank", numbers(*shop), own["shop"]), network)


def right(found: dict[str, Any], bank: Sequence[int] = SMALL, shop: Sequence[int] = LARGE) -> bool:
    """Whether both parties learnt the rows that pandas finds, in the common order."""
    expected = sorted(pd.Index(bank).intersection(pd.Index(shop)), key=lambda i: str(i).encode())
    for name, own in (("bank", bank), ("shop", shop)):
        if [own[row] for row in found[name].rows] != expected or found[name].size != len(expected):
            return False
    return True


M = TypeVar("M", bound=Message)


def read(tap: Tap, kind: type[M]) -> M:
    """The first message of this kind."""
    return decode(kind, bodies(tap, kind)[0], sender="", scope="")


def marks_sent(tap: Tap) -> int:
    return len(bodies(tap, IdMarks))


some = st.lists(st.integers(-5, 40), unique=True, max_size=20)


@settings(max_examples=30)
@given(some, st.lists(some, min_size=1, max_size=4), st.booleans())
def test_rows_are_those_of_pandas_with_and_without_a_store(
    shop: list[int], banks: list[list[int]], kept: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for bank in banks:
            found, _, _ = play(bank, shop, Path(folder) if kept else None)
            assert right(found, bank, shop)
        assert bool([*Path(folder).iterdir()]) <= kept


def test_marks_are_sent_once_in_an_epoch(tmp_path: Path) -> None:
    ways = [marks_sent(play(bank, store=tmp_path)[1]) for bank in (SMALL, SMALL, [*range(3)], SMALL[::-1])]
    assert ways == [1, 0, 0, 0]
    assert [marks_sent(play()[1]) for _ in range(2)] == [1, 1]


@pytest.mark.parametrize("shop", [LARGE[:-1], [*LARGE, 99], [*LARGE[:-1], 99], LARGE[::-1]])
def test_other_ids_of_the_large_side_begin_another_epoch(shop: list[int], tmp_path: Path) -> None:
    play(store=tmp_path)
    before = load_epoch(tmp_path / "shop", "bank")
    found, tap, _ = play(shop=shop, store=tmp_path)
    after = load_epoch(tmp_path / "shop", "bank")
    assert right(found, shop=shop) and marks_sent(tap) == 1
    assert before is not None and after is not None and before.key != after.key and before.salt != after.salt


def test_ids_of_another_type_begin_another_epoch(tmp_path: Path) -> None:
    play(store=tmp_path)
    words = role("shop", texts(*map(str, SMALL)), tmp_path / "bank")
    found, tap, _ = talk(words, role("bank", texts(*map(str, LARGE)), tmp_path / "shop"))
    assert marks_sent(tap) == 1 and found["bank"].size == 5


@pytest.mark.parametrize(
    ("days", "goes_on"),
    [(0.0, True), (unbalanced.DAYS - 0.01, True), (unbalanced.DAYS, False), (-1.0, False)],
)
def test_an_epoch_ends_by_age(days: float, goes_on: bool, tmp_path: Path) -> None:
    play(store=tmp_path)
    epoch = load_epoch(tmp_path / "shop", "bank")
    assert epoch is not None
    save_epoch(tmp_path / "shop", "bank", replace(epoch, created=epoch.created - timedelta(days=days)))
    found, tap, _ = play(store=tmp_path)
    assert right(found) and (marks_sent(tap) == 0) == goes_on


@pytest.mark.parametrize(("left", "goes_on"), [(10, True), (9, False), (0, False)])
def test_an_epoch_ends_by_the_ids_that_were_asked_about(left: int, goes_on: bool, tmp_path: Path) -> None:
    play(store=tmp_path)
    epoch = load_epoch(tmp_path / "shop", "bank")
    assert epoch is not None and epoch.asked == len(SMALL)
    save_epoch(tmp_path / "shop", "bank", replace(epoch, asked=MOST - left))
    found, tap, _ = play(store=tmp_path)
    again = load_epoch(tmp_path / "shop", "bank")
    assert right(found) and (marks_sent(tap) == 0) == goes_on
    assert again is not None and again.asked == (MOST - left + 10 if goes_on else 10)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


HARM: dict[str, Callable[[Path], object]] = {
    "a bit flips": flipped,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize(
    "file",
    ["shop/unbalanced/for-bank." + kind for kind in ("epoch", "marks", "owners")]
    + ["bank/unbalanced/from-shop.marks"],
)
def test_what_is_damaged_is_made_again(file: str, harm: str, tmp_path: Path) -> None:
    play(store=tmp_path)
    HARM[harm](tmp_path / file)
    for sent in (1, 0):
        found, tap, _ = play(store=tmp_path)
        assert right(found) and marks_sent(tap) == sent


def test_no_flipped_bit_of_an_epoch_is_overlooked(tmp_path: Path) -> None:
    marks = np.zeros((1, 8), np.uint8)
    key = bytes(32)
    epochs.save_epoch(
        tmp_path, "bank", epochs.Epoch(key, key, key, marks, np.zeros(1, np.uint32), digest_of(marks))
    )
    path = tmp_path / "unbalanced" / "for-bank.epoch"
    whole = path.read_bytes()
    assert load_epoch(tmp_path, "bank") is not None
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        assert load_epoch(tmp_path, "bank") is None


@pytest.mark.parametrize("writes", range(4))
def test_a_kill_in_the_offline_phase_leaves_nothing_that_looks_whole(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(shop=LARGE[::-1], store=tmp_path)  # an epoch that the next one replaces
    done: list[Path] = []

    def killed(path: Path, content: bytes, **how: Any) -> None:
        if len(done) == writes:
            raise RuntimeError("killed")
        done.append(path)
        write_whole(path, content, **how)

    with monkeypatch.context() as patched:
        patched.setattr(epochs, "write_whole", killed)
        with pytest.raises(PartyError, match="RuntimeError: killed"):
            play(store=tmp_path)
    assert [path.name for path in done] == ["for-bank.marks", "for-bank.owners", "for-bank.epoch"][:writes]
    assert (load_epoch(tmp_path / "shop", "bank") is not None) == (writes == 3)
    found, _, _ = play(store=tmp_path)
    assert right(found)


@pytest.mark.parametrize("writes", range(4))
def test_what_a_killed_process_left_is_deleted_at_a_word(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process leaves the file that it was writing: of an epoch, one with the key in it."""
    done: list[Path] = []

    def killed(path: Path, content: bytes, **how: Any) -> None:
        write_whole(path, content, **how)
        done.append(path)
        if len(done) > writes:
            path.rename(path.with_name(f".{path.name}.{'0' * 16}.new"))
            raise RuntimeError("killed")

    monkeypatch.setattr(epochs, "write_whole", killed)
    with pytest.raises(PartyError, match="RuntimeError: killed"):
        play(store=tmp_path)
    assert leftovers(tmp_path / "shop" / "unbalanced") or leftovers(tmp_path / "bank" / "unbalanced")
    for party, peer in (("shop", "bank"), ("bank", "shop")):
        forget(tmp_path / party, peer)
    assert not [*tmp_path.rglob("unbalanced/*")]


def test_runs_at_one_time_all_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(store=tmp_path)
    goes_on, both = unbalanced._goes_on, threading.Barrier(2)

    def together(epoch: Epoch, *args: Any, **more: Any) -> bool:
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # both have read the count before either writes it, unless they take turns
        return goes_on(epoch, *args, **more)

    monkeypatch.setattr(unbalanced, "_goes_on", together)
    with ThreadPoolExecutor() as pool:
        found = [run.result()[0] for run in [pool.submit(play, store=tmp_path) for _ in range(2)]]
    epoch = load_epoch(tmp_path / "shop", "bank")
    assert all(map(right, found)) and epoch is not None and epoch.asked == 3 * len(SMALL)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_count_outlasts_a_loss_of_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the file and its name are flushed before anything leaves."""
    play(store=tmp_path)
    flushed: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.readlink(f"/proc/self/fd/{handle}")))
    play(store=tmp_path)
    folder = tmp_path / "shop" / "unbalanced"
    written, names = flushed
    assert Path(written).name.startswith(".for-bank.epoch.") and names == str(folder)


def test_a_run_does_not_bring_back_what_is_deleted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(store=tmp_path)
    goes_on = unbalanced._goes_on
    deleting = threading.Thread(target=forget, args=(tmp_path / "shop", "bank"))

    def meanwhile(epoch: Epoch, *args: Any, **more: Any) -> bool:
        deleting.start()
        deleting.join(0.5)
        return goes_on(epoch, *args, **more)

    monkeypatch.setattr(unbalanced, "_goes_on", meanwhile)
    assert right(play(store=tmp_path)[0])
    deleting.join()
    assert not [*(tmp_path / "shop" / "unbalanced").iterdir()]


def test_a_disk_that_refuses_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "shop").write_text("a file where the folder would be")
    with pytest.raises(DataError, match=r"^shop/psi: .*unbalanced cannot be written: "):
        play(store=tmp_path)


def test_what_is_kept_is_for_its_owner_and_is_deleted_at_a_word(tmp_path: Path) -> None:
    play(store=tmp_path)
    kept = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    assert kept == ["bank/unbalanced/from-shop.marks"] + [
        f"shop/unbalanced/for-bank.{kind}" for kind in ("epoch", "marks", "owners")
    ]
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
    assert not forget(tmp_path / "shop", "telco")
    assert forget(tmp_path / "shop", "bank") and not forget(tmp_path / "shop", "bank")
    assert load_epoch(tmp_path / "shop", "bank") is None and [*(tmp_path / "shop").rglob("*.*")] == []


@pytest.mark.parametrize("peer", ["..", "../../x", "a/b", "a b", "é", "CON"])
def test_a_peers_name_is_never_a_path(peer: str, tmp_path: Path) -> None:
    marks = np.zeros((1, 8), np.uint8)
    epochs.save_marks(tmp_path / "own", peer, marks)
    assert len([*(tmp_path / "own" / "unbalanced").iterdir()]) == len([*tmp_path.iterdir()]) == 1
    assert epochs.load_marks(tmp_path / "own", peer, (1, 8), digest_of(marks)) is not None


def test_no_secret_is_in_a_repr(tmp_path: Path) -> None:
    play(store=tmp_path)
    epoch = load_epoch(tmp_path / "shop", "bank")
    assert epoch is not None
    for secret in (epoch.key, epoch.salt, epoch.ids, epoch.marks.tobytes()[:8]):
        assert repr(secret)[2:-1] not in repr(epoch) and secret.hex() not in repr(epoch)


def test_points_of_two_runs_in_an_epoch_cannot_be_compared(tmp_path: Path) -> None:
    said = [read(play(store=tmp_path)[1], PointsAsked).points for _ in range(2)]
    assert len(np.unique(np.concatenate(said), axis=0)) == 2 * len(SMALL)


def test_no_id_and_no_hash_of_one_is_ever_sent(tmp_path: Path) -> None:
    names = [secrets.token_hex(16) for _ in range(40)]
    said = b""
    for _ in range(2):
        bank, shop = texts(*names[:15]), texts(*names[10:])
        results, tap, _ = talk(role("shop", bank, tmp_path / "bank"), role("bank", shop, tmp_path / "shop"))
        assert results["bank"].size == 5
        said += b"\0".join(envelope.body for envelope in tap.carried)
    kept = b"\0".join(path.read_bytes() for path in tmp_path.rglob("*.*"))
    for name in names:
        for needle in (*needles(name.encode()), *needles(bytes.fromhex(name))):
            assert needle not in said and needle not in kept


def test_the_order_of_marks_says_nothing_of_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unbalanced, "new_scalar", lambda: bytes(range(32)))
    monkeypatch.setattr(secrets, "token_bytes", bytes)
    one, other = (read(play(shop=order)[1], IdMarks).marks for order in (LARGE, LARGE[::-1]))
    np.testing.assert_array_equal(one, other)
    assert [*map(bytes, one)] == sorted(map(bytes, one))


def test_places_are_told_in_an_order_that_says_nothing_of_the_small_table() -> None:
    _, tap, _ = talk(role("shop", numbers(*range(40))), role("bank", numbers(*range(60))))
    assert (np.diff(read(tap, PlacesFound).places) > 0).all()


def test_large_sets_travel_in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(unbalanced, "SLAB", 7)
    monkeypatch.setattr(buckets, "FROM", 20)  # and not in buckets
    found, tap, ledger = play(store=tmp_path)
    assert right(found) and marks_sent(tap) == 5 and {entry.scope for entry in ledger} == {"psi"}


@pytest.mark.parametrize(("bank", "shop"), [([], LARGE), (SMALL, []), ([], [])])
def test_nothing_against_something(bank: list[int], shop: list[int]) -> None:
    found, tap, _ = play(bank, shop)
    assert right(found, bank, shop) and {e.kind for e in tap.carried} == {IdKind.kind}


def test_of_equal_numbers_the_first_name_is_the_small_side() -> None:
    found, _, ledger = play([1, 2, 3], [2, 3, 4])
    assert right(found, [1, 2, 3], [2, 3, 4])
    assert {e.sender for e in ledger if e.kind == IdMarks.kind} == {"shop"}


def test_the_small_side_may_learn_alone() -> None:
    results, tap, _ = talk(
        role("shop", numbers(*SMALL), learns="me"), role("bank", numbers(*LARGE), learns="peer")
    )
    assert [SMALL[row] for row in results["bank"].rows] == [10, 11, 12, 13, 14]
    assert results["shop"].rows is results["shop"].size is None and not bodies(tap, PlacesFound)


@pytest.mark.parametrize(("bank", "shop"), [("peer", "me"), ("size", "size")])
def test_the_large_side_cannot_learn_alone_nor_anybody_the_size(bank: Learns, shop: Learns) -> None:
    said = (
        r"with (10 ids at bank and 30 at shop|30 ids at shop and 10 at bank) let bank be the label party, or"
    )
    with pytest.raises(ConfigError, match=said):
        talk(role("shop", numbers(*SMALL), learns=bank), role("bank", numbers(*LARGE), learns=shop))


def test_a_small_side_that_is_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unbalanced, "MOST", 9)
    with pytest.raises(ConfigError, match='is for at most 9 ids at one side, got .*; "auto" fits any number'):
        play()


def test_marks_are_wide_enough_for_all_that_is_asked_in_an_epoch() -> None:
    for n in (1, 10**6, 10**7, 10**8):
        assert 8 * unbalanced._width(n) >= 40 + np.log2(n) + np.log2(MOST)


def test_the_work_is_declared_and_small_online(tmp_path: Path) -> None:
    network = Network(latency=0.05)
    for offline in (30, 0):
        _, _, ledger = play(store=tmp_path, network=network)
        work = {party: ledger.compute[party] for party in ("bank", "shop")}
        assert work["bank"].unpriced == work["shop"].unpriced == 0
        assert work["bank"].operations["x25519"] == 10 + 10 + 2
        assert work["shop"].operations["x25519"] == offline + 10 + 2


def test_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unbalanced, "SLAB", 16)
    seen: list[tuple[str, int, int]] = []

    async def watched(me: Party) -> Met:
        me.desk.on_progress = lambda *said: seen.append(said)
        return await choose.meet(me, "bank", canonical(numbers(*LARGE)), "both", "unbalanced")

    talk(role("shop", numbers(*SMALL)), watched)
    made, sent = "marks made (once in an epoch)", "marks sent to bank"
    assert seen == [(made, 16, 30), (made, 30, 30), (sent, 16, 30), (sent, 30, 30)]


def test_a_fingerprint_is_of_ids_and_order_and_nothing_else() -> None:
    key = bytes(32)
    whole = canonical(texts("ab", "c", "de", "f"))
    part = replace(whole, values=whole.values.slice(1, 2))
    again = replace(whole, values=pa.array([b"c", b"de"], pa.large_binary()))
    assert unbalanced.fingerprint(part, key) == unbalanced.fingerprint(again, key)
    others = [canonical(texts("a", "bc")), canonical(texts("c", "ab")), canonical(texts("ab", "c"))]
    others += [replace(others[0], tag="int")]
    said = [unbalanced.fingerprint(ids, key) for ids in others]
    assert len({*said, unbalanced.fingerprint(others[0], bytes([1] * 32))}) == 5


# What an honest peer does not send.

GOOD = curve.encode_points(bytes(32), [b"1", b"2"])


def crooked_small(asked: curve.Points, places: list[int] | None = None) -> Role:
    """A bank of two ids that asks about `asked`, then says which places it found."""

    async def role(me: Party) -> None:
        await agree(me, "shop", canonical(numbers(1, 2)), "unbalanced")
        await me.recv("shop", MarksOffered)
        await me.send("shop", PointsAsked(points=asked, held=True))
        await me.recv("shop", PointsAnswered)
        await me.send("shop", PlacesFound(places=np.array(places, np.int64)))

    return role


@pytest.mark.parametrize(("wrong", "reason"), BAD_POINTS)
def test_points_that_no_honest_small_side_sends(wrong: curve.Points, reason: str, tmp_path: Path) -> None:
    play([1, 2], store=tmp_path)
    expected = f"^shop/psi: protocols.PointsAsked/1 from bank in 'psi': {reason}"
    with pytest.raises(ProtocolError, match=expected):
        talk(crooked_small(wrong), role("bank", numbers(*LARGE), tmp_path / "shop"))
    epoch = load_epoch(tmp_path / "shop", "bank")
    assert epoch is not None and epoch.asked == 4  # a run that fails has counted


@pytest.mark.parametrize("places", [[0, 0], [1, 0], [0, 1, 2], [-1], [30]])
def test_places_that_no_honest_small_side_sends(places: list[int]) -> None:
    with pytest.raises(ProtocolError, match="PlacesFound/1 from bank .*at most 2 ascending places among 30"):
        talk(crooked_small(GOOD, places), role("bank", numbers(*LARGE)))


def crooked_large(
    marks: np.ndarray[Any, Any], answered: curve.Points, offered: bytes = b"", salt: bytes = bytes(32)
) -> Role:
    """A shop of 30 ids; offered: another digest."""

    async def role(me: Party) -> None:
        key = (await agree(me, "bank", canonical(numbers(*LARGE)), "unbalanced")).key
        digest = np.frombuffer(offered or digest_of(marks), np.uint8)
        wrapped = ChaCha20Poly1305(key).encrypt(bytes(12), salt, None) if salt else bytes(48)
        await me.send("bank", MarksOffered(digest=digest, wrapped=wrapped))
        await me.recv("bank", PointsAsked)
        await me.send("bank", IdMarks(marks=marks))
        await me.send("bank", PointsAnswered(points=answered))
        await me.recv("bank", PlacesFound)

    return role


SORTED = np.arange(30, dtype=np.uint8)[:, None] * np.ones(9, np.uint8)


@pytest.mark.parametrize(
    ("shop", "reason"),
    [
        (crooked_large(SORTED, GOOD, salt=b""), "MarksOffered/1 from shop in 'psi': its key does not open"),
        (crooked_large(SORTED, GOOD, salt=b"short"), "MarksOffered/1 .* expected a key of 32 bytes, got 5"),
        (crooked_large(SORTED, GOOD, bytes(32)), "IdMarks/1 .*not the marks that were offered"),
        (crooked_large(SORTED[::-1], GOOD), "IdMarks/1 .*expected sorted marks"),
        (crooked_large(SORTED[1:], GOOD), r"IdMarks/1 .*marks of shape \(30, 9\), got \(29, 9\)"),
        (crooked_large(SORTED[:, 1:], GOOD), r"IdMarks/1 .*marks of shape \(30, 9\), got \(30, 8\)"),
    ],
)
def test_marks_that_no_honest_large_side_sends(shop: Role, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match=f"^bank/psi: protocols.{reason}"):
        talk(role("shop", numbers(1, 2), tmp_path), shop)
    assert not [*tmp_path.rglob("*.*")]


@pytest.mark.parametrize(("wrong", "reason"), BAD_POINTS)
def test_answers_that_no_honest_large_side_sends(wrong: curve.Points, reason: str) -> None:
    expected = f"^bank/psi: protocols.PointsAnswered/1 from shop in 'psi': {reason}"
    with pytest.raises(ProtocolError, match=expected):
        talk(role("shop", numbers(1, 2)), crooked_large(SORTED, wrong))


def test_made_up_answers_match_nothing() -> None:
    results, _, _ = talk(role("shop", numbers(1, 2)), crooked_large(SORTED, GOOD))
    assert results["bank"].size == 0
