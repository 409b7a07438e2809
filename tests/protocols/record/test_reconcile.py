"""Two honest ledgers agree; one that was rewritten or cut is contradicted by the other's, entry by entry."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import DataError
from protocols.federation import simulate
from protocols.network import grpc
from protocols.party import Coordinator, Run
from protocols.record import rows as record_rows
from protocols.record.reconcile import ABORT, Verdict, verify
from protocols.service.role import serve_role
from protocols.wire.message import Message
from tests.support.network import bank_party, bounded, shop_party
from tests.support.records import Act, Entry, entry, rechain, rows, says, scratch, state, write

RUNNING, DONE, FAILED = state("running"), state("done"), state("failed")
CUT = state("done", reason=record_rows.CUT)


class Part(Message, reveals="test: numbers"):
    n: int


def both(folder: Path, what: Sequence[Act]) -> tuple[Path, Path]:
    """The same acts in the ledgers of bank and shop."""
    return write(folder / "bank", "bank", what), write(folder / "shop", "shop", what)


def talk(n: int = 6, **more: Any) -> list[Act]:
    """n messages in turn, in two scopes."""
    return [
        says(
            entry(
                *(("bank", "shop") if i % 2 == 0 else ("shop", "bank")),
                i // 4,
                scope=f"fit/{i // 2 % 2}",
                body=bytes([i]) * (i + 1),
                **more,
            )
        )
        for i in range(n)
    ]


def says_why(verdict: Verdict) -> list[str]:
    return [str(d) for d in verdict.differences]


# Honest ledgers.


async def bank(me: Coordinator) -> int:
    total = 0
    for r in range(3):
        async with me.within(r) as at:
            for n in range(3):
                await at.send("shop", Part(n=int(at.rng(f"{n}").integers(1000))))
            total += (await at.recv("shop", Part)).n
    return total


async def shop(me: Coordinator) -> None:
    for r in range(3):
        async with me.within(r) as at:
            total = 0
            for _ in range(3):
                total += (await at.recv("bank", Part)).n
            await at.send("bank", Part(n=total))


def test_both_ends_of_a_run_agree_and_record_the_same_digest_of_each_line(tmp_path: Path) -> None:
    ledger = simulate({"bank": bank, "shop": shop}).ledger
    verdict = verify(*both(tmp_path, [state("running", "local"), *map(says, ledger), state("done", "local")]))
    assert verdict.agree and not verdict.in_flight
    assert [(v.agree, v.ends) for v in verdict.lines] == [(9, ("done", "done")), (3, ("done", "done"))]
    for line in verdict.lines:
        digest = ledger.line_digest(line.sender, line.receiver).hex()
        assert line.digests == (digest, digest)


def test_the_ledgers_of_two_parties_on_a_network_agree(tmp_path: Path) -> None:
    async def everyone() -> tuple[Run, Run]:
        async with shop_party() as of_shop, bank_party(of_shop.address) as of_bank:
            parties = ("bank", "shop")
            return await asyncio.gather(
                serve_role(of_bank, bank, name="bank", parties=parties),
                serve_role(of_shop, shop, name="shop", parties=parties),
            )

    runs = bounded(everyone())
    files = [
        write(tmp_path / name, name, [*map(says, run.ledger), state("done", "local")])
        for name, run in zip(("bank", "shop"), runs, strict=True)
    ]
    verdict = verify(*files)
    assert verdict.agree and sum(line.agree for line in verdict.lines) == 12
    assert all(line.digests[0] == line.digests[1] for line in verdict.lines)


MESSAGES = st.builds(
    lambda back, job, scope, body, kind: (back, job, scope, body, kind),
    st.booleans(),
    st.sampled_from(("j1", "j2")),
    st.sampled_from(("a", "a/1", "b")),
    st.binary(max_size=3),
    st.sampled_from(("tests.Word/1", "test.Part/1")),
)


@st.composite
def honest(draw: st.DrawFn) -> list[Entry]:
    """A conversation of the two, in any order of directions, jobs and scopes."""
    counts: dict[Any, int] = {}
    said = []
    for back, job, scope, body, kind in draw(st.lists(MESSAGES, min_size=1, max_size=10)):
        ends = ("shop", "bank") if back else ("bank", "shop")
        number = counts[ends, job, scope] = counts.get((ends, job, scope), -1) + 1
        said.append(entry(*ends, number, job=job, scope=scope, body=body, kind=kind))
    return said


@given(honest(), st.data())
def test_whatever_two_say_their_ledgers_agree_in_any_order_of_arrival(
    said: list[Entry], data: st.DataObject
) -> None:
    with scratch() as folder:
        a = write(Path(folder) / "a", "bank", map(says, said))
        # Within a scope a receiver takes in order; scopes and directions come in any order.
        order = data.draw(st.permutations(range(len(said))))
        places = sorted(range(len(said)), key=lambda i: (said[i].sequence, order[i]))
        b = write(Path(folder) / "b", "shop", [says(said[i]) for i in places])
        verdict = verify(a, b)
        assert verdict.agree and sum(line.agree for line in verdict.lines) == len(said)
        assert all(line.digests[0] == line.digests[1] for line in verdict.lines)


# Rewritten ledgers: each is whole by itself.


@given(honest(), st.sampled_from(("drop", "insert", "digest", "bytes", "kind")), st.booleans(), st.data())
def test_what_an_owner_rewrote_is_named_by_the_other_file(
    said: list[Entry], how: str, at_bank: bool, data: st.DataObject
) -> None:
    with scratch() as folder:
        files = both(Path(folder), [*map(says, said), state("done", "j1"), state("done", "j2")])
        mine = files[0 if at_bank else 1]
        kept = rows(mine)
        k = data.draw(st.integers(1, len(said)))
        row = kept[k]
        if how == "drop":
            del kept[k]
        elif how == "insert":
            kept.insert(k, row)
        else:
            kept[k] = {**row, how: {"digest": "0" * 64, "bytes": row["bytes"] + 1, "kind": "x"}[how]}
        rechain(mine, kept)
        verdict = verify(*files)
        assert verdict.faults == (None, None) and not verdict.agree
        (found,) = verdict.differences
        assert (found.job, found.sender, found.receiver) == (row["job"], row["sender"], row["receiver"])
        assert (found.scope, found.sequence) == (row["scope"], row["sequence"])
        owner, other = ("bank", "shop") if at_bank else ("shop", "bank")
        assert found.missing_at == {"drop": owner, "insert": other}.get(how, "")
        where = found.lines if at_bank else found.lines[::-1]
        if how == "insert":  # of two alike, either can be the one too many
            assert where[0] in (k + 1, k + 2) and where[1] is None
        else:
            assert where == (None if how == "drop" else k + 1, k + 1)
            named = {"drop": "missing in", "bytes": "size"}.get(how, how)
            assert found.reason.startswith(named)
        assert sum(line.differ for line in verdict.lines) == 1


@given(honest(), st.data())
def test_a_tail_that_was_cut_off_is_found_through_the_other_file(
    said: list[Entry], data: st.DataObject
) -> None:
    """Even where only the last row is gone, which says that the jobs are done."""
    with scratch() as folder:
        ends = [state("done", job) for job in sorted({e.job for e in said})]
        files = both(Path(folder), [*map(says, said), *ends])
        whole = files[1].read_bytes().splitlines(keepends=True)
        left = data.draw(st.integers(1, len(whole) - 1))
        files[1].write_bytes(b"".join(whole[:left]))
        verdict = verify(*files)
        assert verdict.faults == (None, None) and not verdict.agree
        messages = min(left - 1, len(said))
        assert {d.lines for d in verdict.differences} == {(i + 2, None) for i in range(messages, len(said))}
        assert {d.missing_at for d in verdict.differences} <= {"shop"}
        assert verdict.clashes and {clash.party for clash in verdict.clashes} == {"shop"}


def test_a_rewritten_row_is_described(tmp_path: Path) -> None:
    a, b = both(tmp_path, [*talk(), DONE])
    kept = rows(b)
    kept[3] = {**kept[3], "digest": "0" * 64}
    rechain(b, kept)
    (said,) = says_why(verify(a, b))
    assert said == (
        f"job j1: bank -> shop in 'fit/1' #0 (tests.Word/1): digest {rows(a)[3]['digest'][:20]} at bank, "
        f"{'0' * 20} at shop"
    )


def test_a_row_that_somebody_else_changed_is_found_twice(tmp_path: Path) -> None:
    a, b = both(tmp_path, [*talk(), DONE])
    raw = b.read_bytes().splitlines(keepends=True)
    raw[3] = raw[3].replace(b'"bytes":3', b'"bytes":4')
    b.write_bytes(b"".join(raw))
    verdict = verify(a, b)
    assert verdict.faults[0] is None and verdict.faults[1] is not None and verdict.faults[1].line == 4
    assert [d.lines for d in verdict.differences] == [(4, 4)]


# What was on its way.


@pytest.mark.parametrize(
    "ends",
    [(FAILED, FAILED), (FAILED, RUNNING), (RUNNING, FAILED), (state("cancelled"), RUNNING), (CUT, FAILED)],
)
@pytest.mark.parametrize("left", [0, 2, 5])
def test_the_end_of_a_line_may_be_missing_if_the_job_failed(
    tmp_path: Path, ends: tuple[Act, Act], left: int
) -> None:
    """At whom it was for: all that both had said by then is in both files."""
    sent = talk(6)[:left] + [says(entry("bank", "shop", 9 + i)) for i in range(3)]
    a = write(tmp_path / "a", "bank", [RUNNING, *sent, ends[0]])
    b = write(tmp_path / "b", "shop", [RUNNING, *talk(6)[:left], ends[1]])
    verdict = verify(a, b)
    assert verdict.agree
    assert sorted(d.lines for d in verdict.in_flight) == [(i + 3, None) for i in range(left, left + 3)]
    assert sum(line.in_flight for line in verdict.lines) == 3


@pytest.mark.parametrize("ends", [(DONE, DONE), (DONE, RUNNING), (RUNNING, DONE), (RUNNING, RUNNING)])
def test_it_may_not_if_the_job_is_done_or_goes_on(tmp_path: Path, ends: tuple[Act, Act]) -> None:
    a = write(tmp_path / "a", "bank", [*talk(6), ends[0]])
    b = write(tmp_path / "b", "shop", [*talk(6)[:5], ends[1]])
    verdict = verify(a, b)
    assert not verdict.in_flight
    (said,) = says_why(verdict)
    assert "missing in the file of shop" in said
    assert ("look again when it has" in said) == (ends == (RUNNING, RUNNING))


def test_nothing_may_be_missing_before_the_end_of_a_line(tmp_path: Path) -> None:
    a = write(tmp_path / "a", "bank", [RUNNING, *talk(6), FAILED])
    b = write(tmp_path / "b", "shop", [RUNNING, *talk(6)[:2], *talk(6)[3:], FAILED])
    verdict = verify(a, b)
    assert [d.lines for d in verdict.differences] == [(5, None)] and not verdict.in_flight
    assert says_why(verdict)[0].endswith("missing in the file of shop, which has a later one of this line")


def test_the_message_of_a_failure_overtakes(tmp_path: Path) -> None:
    """The bank fails: what it sent before is never taken, as the shop stops for its word."""
    assert ABORT == grpc.ABORT
    word = says(entry("bank", "shop", scope=ABORT))
    a = write(tmp_path / "a", "bank", [RUNNING, *talk(5), word, FAILED])
    b = write(tmp_path / "b", "shop", [RUNNING, *talk(4), word, FAILED])
    verdict = verify(a, b)
    assert verdict.agree and [d.lines for d in verdict.in_flight] == [(7, None)]
    assert verify(a, write(tmp_path / "c", "shop", [RUNNING, *talk(5), FAILED])).agree


def test_attempts_at_one_job_are_told_apart(tmp_path: Path) -> None:
    """Taken up again from a checkpoint, the same scopes and sequences come again."""
    again = [state("running", attempt=1), *talk(6), state("done", attempt=1)]
    a = write(tmp_path / "a", "bank", [RUNNING, *talk(5), *again])
    b = write(tmp_path / "b", "shop", [RUNNING, *talk(4), *again])
    verdict = verify(a, b)
    assert verdict.agree and len(verdict.in_flight) == 1
    assert {(v.attempt, v.ends) for v in verdict.lines} == {
        (0, ("interrupted", "interrupted")),
        (1, ("done", "done")),
    }
    cut = write(tmp_path / "c", "shop", [RUNNING, *talk(5), *again[:-2], again[-1]])
    assert [(d.attempt, d.lines) for d in verify(a, cut).differences] == [(1, (14, None))]


def test_what_is_said_about_jobs_may_be_lost_but_not_differ(tmp_path: Path) -> None:
    """A party that was restarted counts from 0 again."""
    words = [says(entry("bank", "shop", i % 2, job="", body=bytes([i]))) for i in range(4)]
    a, b = write(tmp_path / "a", "bank", words), write(tmp_path / "b", "shop", [words[0], *words[2:]])
    verdict = verify(a, b)
    assert verdict.agree and [d.lines for d in verdict.in_flight] == [(3, None)]
    kept = rows(b)
    rechain(b, [*kept[:2], {**kept[2], "digest": "0" * 64}, *kept[3:]])
    assert [d.lines for d in verify(a, b).differences] == [(4, 3)]


def test_what_came_too_late_for_a_role_counts_as_received(tmp_path: Path) -> None:
    a = write(tmp_path / "a", "bank", [says(entry("bank", "shop")), DONE])
    b = write(tmp_path / "b", "shop", [says(entry("bank", "shop"), taken=False), DONE])
    assert verify(a, b).agree


def test_what_came_again_too_late_was_said_once(tmp_path: Path) -> None:
    """A network that repeats: the repeat of what was taken, or was late, is no other message."""
    said, late = entry("bank", "shop"), entry("bank", "shop", 1)
    a = write(tmp_path / "a", "bank", [says(said), says(late), DONE])
    again = [says(said), *[says(one, taken=False) for one in (said, late, late)]]
    verdict = verify(a, write(tmp_path / "b", "shop", [*again, DONE]))
    assert verdict.agree and [line.agree for line in verdict.lines] == [2]
    assert verdict.lines[0].digests[0] == verdict.lines[0].digests[1]
    other = says(entry("bank", "shop", body=b"other"), taken=False)
    assert not verify(a, write(tmp_path / "c", "shop", [*again, other, DONE])).agree


# What cannot be compared.


def test_messages_with_others_are_nobodys_business_here(tmp_path: Path) -> None:
    a = write(tmp_path / "a", "bank", [*talk(), says(entry("bank", "telco")), DONE])
    b = write(tmp_path / "b", "shop", [*talk(), says(entry("telco", "shop")), DONE])
    verdict = verify(a, b)
    assert verdict.agree and sum(line.agree for line in verdict.lines) == 6


def test_a_file_whose_first_row_is_gone_is_not_compared(tmp_path: Path) -> None:
    a, b = both(tmp_path, talk())
    b.write_bytes(b"".join(b.read_bytes().splitlines(keepends=True)[1:]))
    verdict = verify(a, b)
    assert verdict.parties == ("bank", "") and not verdict.agree and not verdict.lines
    assert str(verdict.faults[1]) == "line 1: entry 0 is missing before entry 1"


def test_what_is_no_pair_of_ledgers_is_refused(tmp_path: Path) -> None:
    a, _ = both(tmp_path, talk())
    with pytest.raises(DataError, match=r"are both of bank; expected the ledgers of two parties"):
        verify(a, a)
    with pytest.raises(DataError, match=r"none: No such file"):
        verify(a, tmp_path / "none")
    with pytest.raises(DataError, match=r"Is a directory"):
        verify(tmp_path, a)
    for content in (b"", b"id,age\n1,30\n", np.arange(64).tobytes()):
        (tmp_path / "c").write_bytes(content)
        with pytest.raises(DataError, match=r"c: no ledger"):
            verify(a, tmp_path / "c")
