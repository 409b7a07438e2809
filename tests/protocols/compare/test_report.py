"""Laws of the report: ten rows, nothing faked, numbers that survive JSON, a page that needs no network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape
from pathlib import Path

import pandas as pd
import pytest

from protocols.compare import claims
from protocols.compare.claims import LEAKAGE, WAYS, level
from protocols.compare.figures import Figures, amount, grouped, percent, seconds, spread, varied
from protocols.compare.measure import Spread
from protocols.compare.report import Comparison, Report, read_measures
from protocols.compare.rows import Cell, Line, Topic
from protocols.compare.run import compare
from protocols.compare.topics import TOPICS
from protocols.errors import DataError
from protocols.learning.cut import LabelledSmashed
from protocols.wire.message import Message
from tests.support import ROOT, tiny
from tests.support.waiting import HANG

TEN = """core architecture; data movement; primary privacy mechanism; communication pattern; client compute;
server compute; client count and reliability; personalisation; resilience to network latency;
on-device fine-tuning"""


@pytest.fixture(scope="module")
def result() -> Comparison:
    return tiny.compared()


def cell(report: Report, title: str, way: str) -> Cell:
    row = next(row for row in report.rows if row.title == title)
    return next(c for c in row.cells if c.way == way)


def altered(result: Comparison, method: str, **where: object) -> Report:
    """The report, had one method's matching rows been ten million times larger."""
    frame = result.frame.copy()
    hit = frame["method"] == method
    for name, value in where.items():
        hit &= frame[name] == value
    assert hit.any()
    frame.loc[hit, "value"] *= 1e7
    return Report(replace(result, frame=frame))


def test_all_ten_rows_have_a_cell_for_every_way_with_claim_and_finding(result: Comparison) -> None:
    rows = result.report.rows
    assert [row.title for row in rows] == [" ".join(t.split()) for t in TEN.split(";")]
    for row in rows:
        assert [c.way for c in row.cells] == list(WAYS)
        for c in row.cells:
            assert c.claim and c.lines
            assert {line.status for line in c.lines} <= {"measured", "stated", "not yet measured"}


def test_what_cannot_be_measured_yet_says_so_and_nothing_else(result: Comparison) -> None:
    for title in ("personalisation", "on-device fine-tuning"):
        for way in WAYS:
            assert [line.status for line in cell(result.report, title, way).lines] == ["not yet measured"]
    for title in ("primary privacy mechanism", "client count and reliability"):
        for way in WAYS:
            statuses = [line.status for line in cell(result.report, title, way).lines]
            assert "not yet measured" in statuses
    assert LEAKAGE in result.report.html() and "not yet measured" in LEAKAGE


def test_whose_claims_they_are_is_said_wherever_they_are_shown(result: Comparison) -> None:
    guide = ROOT / "docs" / "guides" / "comparison.md"
    for text in (result.report.html(), result.report.text(), guide.read_text("utf-8")):
        assert claims.SOURCE in " ".join(text.split())


def test_a_row_is_one_value_that_appears_wherever_rows_do() -> None:
    weight = Topic(
        "weight of a message",
        {"edge": "that of a feather"},
        lambda f: [Line("measured", f"{f.get('bytes', phase='train').mean:.0f} bytes & more.")],
        lambda f: [("disagrees", f"<{f.name}> weighs more")] if f.name == "edge" else [],
    )
    report = compare(
        tiny.task(), ["edge", "alone: bank"], seeds=1, tune=False, topics=[*TOPICS, weight]
    ).report
    found = cell(report, "weight of a message", "edge")
    sent = report.figures[0].get("bytes", phase="train").mean
    assert (
        sent > 0 and found.claim == "that of a feather" and found.lines[0].text == f"{sent:.0f} bytes & more."
    )
    assert cell(report, "weight of a message", "alone").claim == "no claim"
    shown = " ".join(report.text(width=300).split())
    assert "weight of a message" in shown and "<edge> weighs more" in shown
    *_, last = json.loads(report.to_json())["rows"]
    assert last["title"] == "weight of a message"
    verdicts = [verdict for each in last["cells"] for verdict in each["verdicts"]]
    assert [v["text"] for v in verdicts] == ["<edge> weighs more"]
    page = report.html()
    for text in ("weight of a message", "that of a feather", found.lines[0].text, "<edge> weighs more"):
        assert escape(text) in page


def test_a_way_that_was_not_run_says_so(result: Comparison) -> None:
    some = tuple(m for m in result.methods if m.column != "split")
    report = Report(replace(result, methods=some))
    for row in report.rows:
        found = next(c for c in row.cells if c.way == "split")
        assert [line.status for line in found.lines] == ["not run"] and not found.verdicts


@pytest.mark.parametrize(
    ("title", "way", "method", "where"),
    [
        ("server compute", "federated", "fedavg", {"measure": "flops", "phase": "train", "side": "other"}),
        ("client compute", "federated", "fedavg", {"measure": "flops", "phase": "train", "side": "other"}),
        ("client compute", "split", "split: vanilla", {"measure": "flops", "side": "client"}),
        ("communication pattern", "split", "split: vanilla", {"measure": "messages_in_epochs"}),
        ("server compute", "edge", "edge", {"measure": "flops", "phase": "predict", "side": "client"}),
    ],
)
def test_verdicts_follow_the_numbers(
    result: Comparison, title: str, way: str, method: str, where: dict[str, object]
) -> None:
    changed = cell(altered(result, method, **where), title, way)
    rulings = {v.ruling for v in changed.verdicts if method in v.method}
    if way == "edge":
        assert rulings == {"agrees"}  # a larger forward pass at the device changes nothing
    else:
        assert rulings == {"disagrees"}


def test_what_edge_claims_leaves_out_the_upload_it_was_trained_on(result: Comparison) -> None:
    assert {v.ruling for v in cell(result.report, "data movement", "edge").verdicts} == {
        "agrees",
        "leaves out",
    }
    assert {v.ruling for v in cell(result.report, "data movement", "federated").verdicts} == {"agrees"}


def test_split_says_that_labels_leave_where_they_do(result: Comparison) -> None:
    found = cell(result.report, "data movement", "split").verdicts
    labels = [v for v in found if "every label goes to the server" in v.text]
    assert [(v.method, v.ruling) for v in labels] == [("split: vanilla", "leaves out")]
    sent = result.frame.query("method == 'split: vanilla' and phase == 'train'")
    sent = sent[sent["kind"] == LabelledSmashed.kind]
    messages = sent.loc[sent["measure"] == "messages", "value"].sum() / len(result.seeds)
    assert f"({messages:.0f} messages, " in labels[0].text
    assert "every label goes to the server" in result.report.text(width=300)


@pytest.mark.parametrize(
    ("carries", "rulings"),
    [
        ({"rows"}, ["disagrees"]),
        ({"labels"}, ["agrees", "leaves out"]),
        (set(), ["agrees"]),
        (None, ["not known"]),
    ],
)
def test_the_verdict_follows_what_foreign_messages_say_they_carry(
    result: Comparison, monkeypatch: pytest.MonkeyPatch, carries: set[str] | None, rulings: list[str]
) -> None:
    monkeypatch.setattr(Message, "kinds", dict(Message.kinds))

    class Upload(Message, reveals="test: anything", carries=carries):
        pass

    frame = result.frame.copy()
    frame.loc[(frame["method"] == "fedavg") & frame["kind"].notna(), "kind"] = Upload.kind
    report = Report(replace(result, frame=frame))
    found = cell(report, "data movement", "federated").verdicts
    assert [v.ruling for v in found] == rulings


def test_words_for_shares() -> None:
    words = [level(share) for share in (0.0, 0.004, 0.1, 0.5, 0.9, 1.0)]
    assert words == ["none", "none", "low", "moderate", "high", "very high"]


def test_json_round_trips_to_the_frame(result: Comparison) -> None:
    text = result.report.to_json()
    pd.testing.assert_frame_equal(read_measures(text), result.frame, check_dtype=False)
    document = json.loads(text)
    assert {m["name"] for m in document["methods"]} == set(result.frame["method"])
    assert set(document["reveals"]) == set(result.frame["kind"].dropna())
    assert [row["title"] for row in document["rows"]] == [topic.title for topic in TOPICS]
    for bad in ("", "[]", "{}", '{"schema": 99, "measures": []}'):
        with pytest.raises(DataError):
            read_measures(bad)


def test_every_number_of_the_text_has_its_method_and_every_constant_is_printed(result: Comparison) -> None:
    text = result.report.text(width=300)
    for method in result.methods:
        assert method.name in text
    for said in ("range over 2 paired seeds", "1, 50, 200 ms", "100 Mbit/s", "1e10 FLOP/s", "IID", "20%"):
        assert said in text
    assert all(name in text for name in result.report.constants())
    assert "columns held by: bank: a … c (3); telco: d … f (3)" in text
    assert "the same for every method, but the optimizer of fedavg starts afresh each round" in text
    assert "fedavg: every client starts a fresh optimizer" in text


def test_the_page_is_self_contained(result: Comparison, tmp_path: Path) -> None:
    page = result.report.to_html(tmp_path / "page.html").read_text("utf-8")
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", page)
    assert not re.findall(r"@import|url\(|<script|<link|<img|<iframe", page)
    for title in (topic.title for topic in TOPICS):
        assert title in page
    for f in result.report.figures:
        for t in f.traffic:
            assert t.kind in page
    assert "None" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert "nan" not in re.findall(r'(?:cx|x1|x2|x|width)="([^"]*)%"', page)


def test_names_are_escaped(result: Comparison) -> None:
    task = replace(result.task, name="<script>alert(1)</script>")
    page = Report(replace(result, task=task)).html()
    assert "<script>" not in page and "&lt;script&gt;" in page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here to open the page in")
@pytest.mark.parametrize("width", [1200, 400])
def test_a_browser_opens_it_without_a_complaint_and_without_scrolling_sideways(
    result: Comparison, tmp_path: Path, width: int
) -> None:
    probe = "<script>top.document.title = 'wide ' + document.documentElement.scrollWidth</script></body>"
    page = escape(result.report.html().replace("</body>", probe))  # in a frame: no window is below 500 wide
    frame = f'<iframe srcdoc="{page}" style="width: {width}px; border: 0"></iframe>'
    (tmp_path / "page.html").write_text(f"<!doctype html><body>{frame}</body>", "utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    home = f"--user-data-dir={tmp_path / 'profile'}"
    command = ["chromium", *options, home, "--window-size=1300,900", f"file://{tmp_path / 'page.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=True)
    assert "CONSOLE" not in done.stderr
    title = re.search(r"<title>wide (\d+)</title>", done.stdout)
    assert title and int(title[1]) <= width


def test_the_page_tells_nothing_from_next_to_nothing(result: Comparison) -> None:
    page = re.sub(r"<[^>]*>", " ", result.report.html())  # not the positions of the plots
    assert not re.findall(r"[+−]0\.000|\b0\.0+%|\b100\.0+%", page)
    for way, said in {"centralised": "none at an owner of data", "federated": "up to "}.items():
        assert said in " ".join(line.text for line in cell(result.report, "core architecture", way).lines)
    (work,) = cell(result.report, "client compute", "centralised").lines
    assert work.text == "Training: nothing to compute. Predicting the test rows: nothing to compute."


def test_numbers_for_people() -> None:
    assert [amount(v) for v in (0, 7, 1234, 5.6e7)] == ["0", "7", "1.23 k", "56 M"]
    assert [seconds(v) for v in (0.0123, 2.5, 150, 9000)] == ["12.3 ms", "2.5 s", "2 min 30 s", "2 h 30 min"]
    assert spread(Spread(0.5, 0.4, 0.6)) == "0.500 ± 0.100"
    assert spread(Spread(-0.5, -0.9, 0.0), 1, sign=True) == "−0.5 (−0.9 to 0.0)"
    assert spread(Spread(0.5, float("nan"), float("nan"))) == "0.500"
    assert spread(Spread(-0.0004, -0.0005, -0.0003), sign=True) == spread(Spread(0.0, 0.0, 0.0), sign=True)
    assert spread(Spread(-0.0006, -0.0006, -0.0006), sign=True) == "−0.001 ± 0.000"
    assert [percent(v) for v in (0, 1e-5, 0.001, 0.318, 0.999, 0.99999, 1)] == [
        *("0%", "less than 0.1%", "0.1%", "31.8%", "99.9%", "more than 99.9%", "100%")
    ]
    assert varied(Spread(100, 90, 110)) == "100 ± 10 %"
    assert varied(Spread(100, 99.9, 100.1)) == "100"
    assert grouped(["client0", "client1", "server"]) == {
        "2 × client": ["client0", "client1"],
        "server": ["server"],
    }


def test_the_spread_is_explained_as_it_is_written(result: Comparison) -> None:
    name, a, b = result.methods[0].name, *result.frame.query("measure == 'score'")["value"].iloc[:2]
    said = "± is the range over 2 paired seeds: half the distance between the two. Costs without ± vary by 1%"
    assert said in " ".join(result.report.text(width=300).split()) and said in result.report.html()
    assert f"{name} " in result.report.text() and f"± {abs(a - b) / 2:.3f}" in result.report.text()
    cases = {
        (False, (0, 1, 2)): "± is the 95% t-interval over 3 paired seeds. Costs",
        (True, (0, 1, 2)): "In brackets is the range over 3 paired seeds, ± is half of it. Costs",
        (True, (0,)): "One seed, so no spread.",
    }
    for (quick, seeds), begins in cases.items():
        assert Report(replace(result, quick=quick, seeds=seeds)).spread_said.startswith(begins)


@pytest.mark.parametrize(
    ("half", "said"), [(0.0, "200"), (2.0, "200"), (2.1, "200 ± 1 %"), (50.0, "200 ± 25 %")]
)
def test_only_a_cost_that_varies_has_a_spread_and_a_score_always(half: float, said: str) -> None:
    assert varied(Spread(200, 200 - half, 200 + half)) == said
    assert spread(Spread(200, 200 - half, 200 + half), 0) == f"200 ± {half:.0f}"


def test_a_measure_without_rows_is_zero(result: Comparison) -> None:
    alone = next(f for f in result.report.figures if f.name == "alone: bank")
    assert isinstance(alone, Figures)
    assert alone.get("bytes", phase="train").mean == 0
    assert claims.level(alone.share("client")) == "very high"
