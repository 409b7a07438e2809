"""Alignment between processes, and `vfl psi`: the same rows as in one process, in files at each party."""

from __future__ import annotations

import itertools
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from protocols.errors import AlignmentError, ConfigError, DataError, PolicyError
from protocols.federation import Federation
from protocols.parts import digest, load_part
from protocols.policy.history import load_history
from protocols.programs import Seat
from protocols.psi import buckets, choose, id_columns, stored
from protocols.psi.choose import Protocol
from protocols.service.caller import Connected
from tests.support.columns_apart import small
from tests.support.served import lay_out, serving
from vfl import VerticalNetClassifier, align
from vfl.alignment import program
from vfl.alignment.roles import Aligned
from vfl.command import app

POLICY = "min_intersection = 5\n"
EVERY = 'protocols = ["ecdh", "kkrt", "unbalanced"]\n'
TWO = ["--table", "a=a.csv", "--table", "b=b.csv"]
NETWORK = ["--book", "parties.toml", "--me", "a", "--table", "a.csv", "--id", "x"]
PROTOCOLS: tuple[Protocol, ...] = choose.names()
run_cli = CliRunner().invoke


def text_of(table: pd.DataFrame) -> str:
    return table.to_csv(index=False)


@pytest.fixture(scope="module")
def data() -> dict[str, pd.DataFrame]:
    return {party: table.rename(columns={"customer": "id"}) for party, table in small(60, 3).items()}


@pytest.mark.parametrize("reveal", ["all", "label-party", "size"])
def test_the_network_aligns_as_one_process_does(
    data: dict[str, pd.DataFrame], tmp_path: Path, reveal: str
) -> None:
    here = align(data, id="id", label_party="bank", reveal=reveal)  # type: ignore[arg-type]
    book = lay_out(tmp_path, data, POLICY)
    with serving(tmp_path, "shop", "telco"), Connected(book, "bank", data["bank"]) as all_:
        there = align(all_, id="id", label_party="bank", reveal=reveal)  # type: ignore[arg-type]
    assert there.report.size == here.report.size and list(there.tables) == [*here.tables][:1]
    for party in there.tables:
        pd.testing.assert_frame_equal(there.tables[party], here.tables[party])
    assert there.report.learnt["bank"] == here.report.learnt["bank"]
    for party in ("shop", "telco"):
        out = tmp_path / f"{party}.aligned.csv"
        words = ["export", there.run, "--config", str(tmp_path / f"{party}.toml"), "--out", str(out)]
        said = run_cli(app, words)
        if party in here.tables:
            assert said.exit_code == 0, said.output
            assert out.read_text() == text_of(here.tables[party])
        else:
            assert said.exit_code == 2 and "did not learn which rows are common" in said.output


def test_two_parties_align_by_the_protocol_that_the_caller_names(
    data: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    two = {party: data[party] for party in ("bank", "shop")}
    here = align(two, id="id", label_party="bank", protocol="ecdh")
    book = lay_out(tmp_path, two, POLICY + EVERY)
    with serving(tmp_path, "shop"), Connected(book, "bank", data["bank"]) as all_:
        there = align(all_, id="id", label_party="bank", protocol="kkrt")
    pd.testing.assert_frame_equal(there.tables["bank"], here.tables["bank"])
    assert "protocols.FunctionValues/1" in {entry.kind for entry in there.ledger}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_id_of_several_columns_over_the_network(tmp_path: Path, kind: str) -> None:
    """Two columns by which neither party's rows could be told apart alone, called otherwise at each party."""
    every = pd.DataFrame({"branch": ["7", "x"] * 12, "number": np.repeat(np.arange(12), 2)})
    tables = {
        "bank": every[:18].sample(frac=1, random_state=1).assign(a=np.arange(18.0)),
        "shop": every[6:].rename(columns={"branch": "place", "number": "card"}).assign(b=np.arange(18.0)),
    }
    names = {"bank": ["branch", "number"], "shop": ["place", "card"]}
    here = align(tables, id=names, label_party="bank").tables
    book = lay_out(tmp_path, tables, POLICY)
    config = tmp_path / "shop.toml"
    text = config.read_text().replace('id = "id"', 'id = ["place", "card"]')
    config.write_text(text.replace('"shop.csv"', f'"shop.{kind}"'))
    tables["shop"].to_parquet(tmp_path / "shop.parquet")
    tables["bank"].to_parquet(tmp_path / "bank.parquet")
    with serving(tmp_path, "shop"):
        with Connected(book, "bank", tables["bank"]) as all_:
            there = align(all_, id=names["bank"], label_party="bank")
            one = tables["bank"].drop(columns="branch")
            net = VerticalNetClassifier(epochs=1, duplicates="first")
            with pytest.raises(ConfigError, match="^shop/fit: the id has 2 columns, expected one: .*; join"):
                net.fit(all_.holding(one.assign(y=[0, 1] * 9)), target="bank.y", id="number")
        pd.testing.assert_frame_equal(there.tables["bank"], here["bank"])
        words = ["--book", str(book), "--me", "bank", "--table", f"{tmp_path}/bank.parquet"]
        words += ["--id", "branch,number", "--out", f"{tmp_path}/bank.aligned.csv"]
        said = run_cli(app, words)
    assert said.exit_code == 0, said.output
    assert (tmp_path / "bank.aligned.csv").read_text() == text_of(here["bank"])
    out = tmp_path / "shop.aligned.csv"
    said = run_cli(app, ["export", there.run, "--config", str(config), "--out", str(out)])
    assert said.exit_code == 0 and out.read_text() == text_of(here["shop"]), said.output


def test_each_party_keeps_an_epoch_in_its_own_store_and_deletes_it_at_a_word(
    data: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    two = {"bank": data["bank"].iloc[:20], "shop": data["shop"]}
    here = align(two, id="id", label_party="bank")
    book = lay_out(tmp_path, two, POLICY + EVERY)
    forget = ["forget", "bank", "--config", str(tmp_path / "shop.toml")]
    with serving(tmp_path, "shop"), Connected(book, "bank", two["bank"]) as all_:
        for sent in (True, False, True):
            there = align(all_, id="id", label_party="bank", protocol="unbalanced")
            pd.testing.assert_frame_equal(there.tables["bank"], here.tables["bank"])
            assert ("protocols.IdMarks/1" in {entry.kind for entry in there.ledger}) == sent
            if not sent:
                said = run_cli(app, forget)
                assert said.exit_code == 0 and "deleted what was kept of comparisons with bank" in said.output
                assert not [*(tmp_path / "shop-store" / "unbalanced").iterdir()]
    assert [path.name for path in (tmp_path / "bank-store" / "unbalanced").iterdir()] == ["from-shop.marks"]
    run_cli(app, forget)
    said = run_cli(app, forget)
    assert said.exit_code == 2 and "nothing is kept in" in " ".join(said.output.split())


def test_a_policy_may_refuse_to_keep_a_key(data: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    two = {party: data[party] for party in ("bank", "shop")}
    book = lay_out(tmp_path, two, 'protocols = ["ecdh", "kkrt"]\n')
    served = serving(tmp_path, "shop")
    refused = pytest.raises(PolicyError, match="compared by unbalanced; granted are ecdh, kkrt")
    with served, Connected(book, "bank", data["bank"]) as all_, refused:
        align(all_, id="id", label_party="bank", protocol="unbalanced")


def test_over_a_network_the_stores_are_the_parties_own(data: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    book = lay_out(tmp_path, {party: data[party] for party in ("bank", "shop")})
    refused = pytest.raises(ConfigError, match="each party keeps its cache in its own store; leave cache out")
    with Connected(book, "bank", data["bank"]) as all_, refused:
        align(all_, id="id", label_party="bank", protocol="unbalanced", cache=tmp_path)


def test_a_part_of_an_alignment_cannot_be_guessed_from_its_digest(
    data: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    book = lay_out(tmp_path, data, POLICY)
    with serving(tmp_path, "shop", "telco"), Connected(book, "bank", data["bank"]) as all_:
        runs = [align(all_, id="id", label_party="bank").run for _ in range(2)]
    parts = [load_part(tmp_path / "bank-store" / "parts", run) for run in runs]
    np.testing.assert_array_equal(parts[0].weights["rows"], parts[1].weights["rows"])
    assert parts[0].others["shop"] != parts[1].others["shop"]


def test_a_table_that_has_changed_is_not_exported(data: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    book = lay_out(tmp_path, data, POLICY)
    with serving(tmp_path, "shop", "telco"), Connected(book, "bank", data["bank"]) as all_:
        run = align(all_, id="id", label_party="bank").run
    data["shop"].iloc[::-1].to_csv(tmp_path / "shop.csv", index=False)
    said = run_cli(
        app, ["export", run, "--config", str(tmp_path / "shop.toml"), "--out", str(tmp_path / "a.csv")]
    )
    assert said.exit_code == 2 and "the table has changed since it was aligned" in said.output


def test_rows_of_a_file_that_changed_meanwhile_are_not_written(
    data: dict[str, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {party: data[party] for party in ("bank", "shop")}
    book, file, out = lay_out(tmp_path, two, POLICY), tmp_path / "bank.parquet", tmp_path / "out.parquet"
    data["bank"].to_parquet(file)
    words = ["--book", str(book), "--me", "bank", "--table", str(file), "--id", "id", "--out", str(out)]
    real = program.align_ids

    def meanwhile(*args: Any) -> Any:
        found = real(*args)
        data["bank"].iloc[::-1].to_parquet(file, index=False)
        return found

    with serving(tmp_path, "shop"):
        with monkeypatch.context() as patched:
            patched.setattr(program, "align_ids", meanwhile)
            said = run_cli(app, words)
        assert said.exit_code == 2 and "bank/align: the table has changed since it was aligned" in said.output
        assert not out.exists()
        assert run_cli(app, words).exit_code == 0
    expected = align(two, id="id", label_party="bank").tables["bank"]
    pd.testing.assert_frame_equal(pd.read_parquet(out), expected.reset_index(drop=True))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("reveal", [["size"], ["label-party", "--label-party", "shop"]])
def test_rows_that_will_not_be_learnt_are_refused_before_anything_leaves(
    data: dict[str, pd.DataFrame], tmp_path: Path, kind: str, reveal: list[str]
) -> None:
    book = lay_out(tmp_path, {party: data[party] for party in ("bank", "shop")}, POLICY)
    data["bank"].to_parquet(tmp_path / "bank.parquet")
    words = ["--book", str(book), "--me", "bank", "--table", f"{tmp_path}/bank.{kind}", "--id", "id"]
    said = run_cli(app, [*words, "--out", f"{tmp_path}/out.{kind}", "--reveal", *reveal])  # and nobody serves
    assert said.exit_code == 2 and "bank does not learn the rows" in " ".join(said.output.split())


@pytest.mark.parametrize("most", [25, 30])
def test_in_a_ring_the_ids_of_each_peer_count_with_it(tmp_path: Path, most: int) -> None:
    """The shop hears of the telco's 30 ids through the bank; they count as the telco's all the same."""
    counts = {"bank": 20, "shop": 40, "telco": 30}
    tables = {party: pd.DataFrame({"id": np.arange(n), party: 0.0}) for party, n in counts.items()}
    book = lay_out(tmp_path, tables, POLICY)
    config = tmp_path / "shop.toml"
    config.write_text(config.read_text() + f"max_asked_job = {most}\n")
    with serving(tmp_path, "shop", "telco"), Connected(book, "bank", tables["bank"]) as all_:
        if most == 30:
            assert align(all_, id="id", label_party="bank").report.size == 20
        else:
            with pytest.raises(
                PolicyError, match="^shop/align: max_asked_job: a peer may ask about 25 ids in one"
            ):
                align(all_, id="id", label_party="bank")
    for peer in ("bank", "telco"):
        asked = load_history(tmp_path / "shop-store", peer, "main").aligned["announced"].tolist()
        assert asked == ([counts[peer]] if counts[peer] <= most else [])


def test_the_policy_bounds_an_alignment(data: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    book = lay_out(tmp_path, data, "min_intersection = 1000\n")
    served = serving(tmp_path, "shop", "telco")
    refused = pytest.raises(PolicyError, match="min_intersection")
    with served, Connected(book, "bank", data["bank"]) as all_, refused:
        align(all_, id="id", label_party="bank")


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([1, 1, 2], r"^shop/align: 1 of 3 ids are duplicated; pass duplicates=\"first\""),
        ([1, None, 2], "^shop/align: 1 of 3 ids are missing; drop those rows"),
    ],
)
def test_the_caller_hears_what_is_wrong_with_the_ids_of_another_party(
    data: dict[str, pd.DataFrame], tmp_path: Path, ids: list[int | None], said: str
) -> None:
    shop = pd.DataFrame({"id": pd.array(ids, "Int64"), "visits": 1.0})
    book = lay_out(tmp_path, {"bank": data["bank"], "shop": shop}, POLICY)
    wrong = pytest.raises(DataError, match=said)
    with serving(tmp_path, "shop"), Connected(book, "bank", data["bank"]) as all_, wrong:
        align(all_, id="id", label_party="bank")


def test_files_in_and_files_out(data: dict[str, pd.DataFrame], tmp_path: Path) -> None:
    data["bank"].to_csv(tmp_path / "bank.csv", index=False)
    data["shop"].rename(columns={"id": "card"}).to_parquet(tmp_path / "shop.parquet")
    words = ["--table", f"bank={tmp_path}/bank.csv", "--table", f"shop={tmp_path}/shop.parquet"]
    words += ["--id", "bank=id", "--id", "shop=card", "--out", str(tmp_path / "out"), "--format", "csv"]
    words += ["--protocol", "kkrt"]
    said = run_cli(app, words)
    assert said.exit_code == 0, said.output
    assert "bank learns which of its own ids shop also has" in said.output
    expected = align({p: data[p] for p in ("bank", "shop")}, id="id", label_party="bank").tables
    assert (tmp_path / "out" / "bank.csv").read_text() == text_of(expected["bank"])
    assert (tmp_path / "out" / "shop.csv").read_text() == text_of(
        expected["shop"].rename(columns={"id": "card"})
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--table", "bank=a.csv"], "give --table PARTY=FILE once for each of two parties or more"),
        (["--table", "a.csv", "--table", "b.csv"], "--table a.csv: expected PARTY=FILE"),
        (["--me", "bank"], "--book and --me are both needed"),
        (["--table", "a=a.csv", "--table", "b=b.csv"], "give --id COLUMN, or --id PARTY=COLUMN for every"),
        (["--table", "a=a.csv", "--table", "b=b.csv", "--id", "a=x"], "give --id COLUMN"),
        (["--table", "a=a.csv", "--table", "a=b.csv"], "--table is given twice for a"),
        ([*TWO, "--id", "a=x"], "for every party: b has none"),
        ([*TWO, "--id", "a=x", "--id", "bb=x"], "there is no party 'bb'; did you mean 'b'?"),
        ([*TWO, "--id", "x,"], "--id x,: expected 1 to"),
        ([*TWO, "--id", "x"], "a/align: a.csv: no such file"),
        (["--table", "a=a.xlsx", "--table", "b=b.csv", "--id", "x"], "a/align: a.xlsx: expected a file that"),
        ([*TWO, "--id", "x", "--out", f"{__file__}/x"], f"{__file__} is a file; expected a folder"),
        ([*TWO, "--id", "x", "--out", "o", "--reveal", "size"], "nobody learns which rows are common; leave"),
        ([*NETWORK, "--parties", "b,c"], "--parties b,c: a, which --me says this is, should be one of them"),
        (
            [*NETWORK, "--label-party", "b", "--reveal", "label-party", "--out", "x.csv"],
            "a does not learn the rows",
        ),
        (["export", "r", "--out", "x.txt"], "expected a file that ends in .csv or .parquet"),
        (["export", "r", "--out", "nowhere/x.csv"], "there is no directory"),
    ],
)
def test_what_a_person_may_get_wrong_is_said(words: list[str], said: str) -> None:
    found = run_cli(app, words)
    assert found.exit_code == 2 and said in " ".join(found.output.split())


@pytest.mark.parametrize(
    ("reveal", "shown"),
    [
        ("all", ["bank 3 2 1 0", "shop 3 2 1 0"]),
        ("label-party", ["bank 3 2 1 0", "shop 3 0"]),
        ("size", ["bank 3 0", "shop 3 0"]),
    ],
)
def test_a_party_is_shown_nothing_in_place_of_what_it_did_not_learn(
    tmp_path: Path, reveal: str, shown: list[str]
) -> None:
    (tmp_path / "bank.csv").write_text("id,a\n1,1\n2,2\n3,3\n")
    (tmp_path / "shop.csv").write_text("id,b\n2,2\n3,3\n4,4\n")
    words = [f"--table={party}={tmp_path}/{party}.csv" for party in ("bank", "shop")]
    said = run_cli(app, [*words, "--id", "id", "--reveal", reveal])
    assert said.exit_code == 0, said.output
    rows = [" ".join(line.replace("│", " ").split()) for line in said.output.splitlines()]
    assert [row for row in rows if row.startswith(("bank ", "shop ")) and row[5].isdigit()] == shown


def test_ids_in_a_file_are_what_they_are_at_a_party_that_serves_it(tmp_path: Path) -> None:
    """Leading zeros stay, gaps are counted as such, and no column takes the place of another."""
    (tmp_path / "shop.csv").write_text("visits,id\n4,007\n2,8\n")
    shop = f"--table=shop={tmp_path}/shop.csv"

    def with_bank(text: str, *more: str) -> str:
        (tmp_path / "bank.csv").write_text(text)
        said = run_cli(app, [f"--table=bank={tmp_path}/bank.csv", shop, "--id", "id", *more])
        return " ".join(said.output.split())

    out = tmp_path / "out"
    assert "wrote 1 rows" in with_bank("x,id\n1,007\n2,07\n", "--out", str(out), "--format", "csv")
    assert (out / "bank.csv").read_text() == "x,id\n1,007\n"
    assert (out / "shop.csv").read_text() == "visits,id\n4,007\n"
    assert "are text, those of bank are integers" in with_bank("id\n7\n8\n")
    assert "bank/align: 1 of 2 ids are missing" in with_bank("id,x\n7,1\n,2\n")
    assert "bank/align: 2 of 2 ids are missing" in with_bank("id,x\n,1\n,2\n")
    assert "two columns are called 'id'" in with_bank("id,id\n7,1\n8,2\n")
    assert "cannot be read as CSV" in with_bank("id,x\n7,1,1\n8,2,2\n")
    (tmp_path / "bank.csv").write_bytes("id,x\nM\xfcller,1\n".encode("latin-1"))
    said = run_cli(app, [f"--table=bank={tmp_path}/bank.csv", shop, "--id", "id"])
    assert "is not UTF-8 text; save it as UTF-8" in " ".join(said.output.split())


def test_where_nothing_may_be_written_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda place, mode: place != tmp_path)  # for root all may be written
    for out, words in (("new/folder", [*TWO, "--id", "x"]), ("x.csv", NETWORK)):
        said = run_cli(app, [*words, "--out", str(tmp_path / out)])
        assert said.exit_code == 2 and f"may not write in {tmp_path}" in " ".join(said.output.split())


IDS = {
    "integers": st.integers(-(2**62), 2**62) | st.integers(-5, 20),
    "text": st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
}


@pytest.mark.parametrize("kind", IDS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), on_disk=st.booleans(), bucketed=st.booleans())
def test_every_protocol_gives_the_intersection_of_pandas(
    kind: str, monkeypatch: pytest.MonkeyPatch, data: st.DataObject, on_disk: bool, bucketed: bool
) -> None:
    """All protocols, with ids in memory or on disk, in one piece or in buckets, in whatever order they come,
    and what is kept in a first run used or not in a second."""

    def normal(value: object) -> str:
        return unicodedata.normalize("NFC", str(value))

    for module, name, value in (
        *((id_columns, "CHUNK", 7), (stored, "PART", 5), (stored, "FROM", 0 if on_disk else 10**6)),
        *((buckets, "BUCKET", 8), (buckets, "FROM", 1 if bucketed else 10**6)),
    ):
        monkeypatch.setattr(module, name, value)
    pool = data.draw(st.lists(IDS[kind], unique_by=normal, min_size=1, max_size=40))
    sets = {party: data.draw(st.lists(st.sampled_from(pool), unique=True)) for party in ("bank", "shop")}
    shared = pd.Index(sets["bank"], dtype=object).intersection(pd.Index(sets["shop"], dtype=object))
    expected = sorted(shared, key=lambda value: normal(value).encode())
    other = {party: data.draw(st.permutations(ids)) for party, ids in sets.items()}
    with TemporaryDirectory() as folder:
        for protocol, own in itertools.product(PROTOCOLS, (sets, sets, other)):
            dtype = "int64" if kind == "integers" else "str"
            tables = {p: pd.DataFrame({"id": pd.Series(ids, dtype=dtype)}) for p, ids in own.items()}
            found = aligned(tables, protocol, Path(folder))
            for party, table in tables.items():
                assert table["id"].iloc[found[party]].tolist() == expected, protocol


def aligned(tables: dict[str, pd.DataFrame], protocol: Protocol, folder: Path) -> dict[str, Any]:
    """The common rows of each party, which has its store in `folder`."""

    def seat(party: str) -> Seat:
        own = folder / party
        return Seat(party, tuple(tables), tables[party], "id", scratch=own / "scratch", store=own / "store")

    asked = program.Align(label_party="bank", protocol=protocol)
    try:
        run = Federation(tables).execute(program.program, "align", asked, seat, list(tables))
    except AlignmentError:  # none is shared
        return {party: np.zeros(0, np.int64) for party in tables}
    return {party: found.rows for party, found in run.results.items()}


def test_all_attempts_at_a_job_keep_the_same_part_and_its_digest_is_nobodys_to_guess(tmp_path: Path) -> None:
    """An attempt may be cut off when one party has kept the others' digests, and one has not."""
    asked = program.program.read({"label_party": "bank"})
    result = Aligned(np.arange(3), 3, 0, 3)
    table = pd.DataFrame({"id": [5, 6, 7]})

    def kept(job: str, party: str) -> str:
        seat = Seat(party, ("bank", "shop"), table, "id", store=tmp_path / party, job=job)
        return digest(program.keep(asked, seat, result))

    assert kept("a" * 16, "bank") == kept("a" * 16, "bank")
    assert len({kept(job * 16, party) for job in "ab" for party in ("bank", "shop")}) == 4
