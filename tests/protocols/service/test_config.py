"""The two files: what is written is what is meant, or an error names the file, the place and the nearest."""

from __future__ import annotations

import os
import traceback
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError
from protocols.network.tls import Credentials
from protocols.policy.rules import Bound, Rule
from protocols.service.config import Parties, PartyConfig, read_config

CANARY = "s3cr3t-c4n4ry"
BOOK = """
[parties]
bank = "localhost:7001"
telco = ""
[tls]
authority = "authority.pem"
certificate = "{me}.pem"
key = "keys/{me}.key"
"""
PARTY = """
name = "telco"
parties = "parties.toml"
store = "telco-store"
[tables.main]
path = "telco.csv"
id = "id"
[[policy]]
peers = ["bank"]
methods = ["*"]
actions = ["fit"]
columns = ["*"]
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("VFL_")]:
        monkeypatch.delenv(name)


def write(folder: Path, party: str = PARTY, book: str = BOOK) -> Path:
    (folder / "parties.toml").write_text(book)
    file = folder / "telco.toml"
    file.write_text(party)
    return file


def told(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(file)
    return str(caught.value)


def test_two_files_make_a_party(tmp_path: Path) -> None:
    config, parties = read_config(write(tmp_path))
    assert (config.name, config.base, config.store) == ("telco", tmp_path, tmp_path / "telco-store")
    assert config.parties == tmp_path / "parties.toml"
    assert parties.book == {"bank": "localhost:7001", "telco": None}
    keys = [tmp_path / name for name in ("authority.pem", "telco.pem", "keys/telco.key")]
    assert parties.credentials("telco") == Credentials(*keys)
    assert parties.revoked == frozenset()
    assert config.tables["main"].path == Path("telco.csv") and config.tables["main"].columns is None
    assert (config.listen, config.insecure, config.log, config.retention_days) == (None, False, "info", None)


def test_what_a_rule_does_not_say_is_not_granted(tmp_path: Path) -> None:
    party = PARTY[: PARTY.index("methods")]
    (rule,) = read_config(write(tmp_path, party))[0].policy
    assert rule == Rule(peers=("bank",))
    assert (rule.methods, rule.actions, rule.columns) == ((), (), ())
    assert not rule.show_columns and not rule.allow_plain
    assert rule.consent == rule.consent_predict == "ask"
    assert min(rule.min_intersection, rule.min_group, rule.min_difference) >= 10
    assert rule.max_predictions and rule.max_distinct_ids and rule.max_fits
    assert rule.max_asked_job and rule.max_asked_day and rule.max_asked
    assert rule.protocols == ("ecdh",)
    assert (rule.consent_hours, rule.consent_attempts) == (24, 5)
    assert read_config(write(tmp_path, party[: party.index("[[")]))[0].policy == ()


def test_every_clause_is_read(tmp_path: Path) -> None:
    more = """tables = ["main"]
    show_columns = true
    consent = "grant"
    consent_predict = "grant"
    consent_hours = 6
    consent_attempts = 7
    max_fits = 8
    protocols = ["ecdh", "kkrt"]
    max_asked_job = 9
    max_asked_day = 10
    max_asked = 11
    min_intersection = 1
    min_group = 2
    allow_plain = true
    max_predictions = 3
    max_distinct_ids = 4
    min_difference = 5
    expires = 2027-01-01
    [policy.parameters."*".epochs]
    max = 100
    [policy.parameters.fedavg.rule]
    values = ["mean", 1, true]
    [[policy]]
    peers = ["*"]
    """
    rule, other = read_config(write(tmp_path, PARTY + more))[0].policy
    assert other == Rule(peers=("*",))
    assert rule.model_dump() == {
        "peers": ("bank",),
        "tables": ("main",),
        "methods": ("*",),
        "actions": ("fit",),
        "columns": ("*",),
        "show_columns": True,
        "consent": "grant",
        "consent_predict": "grant",
        "consent_hours": 6,
        "consent_attempts": 7,
        "max_fits": 8,
        "protocols": ("ecdh", "kkrt"),
        "max_asked_job": 9,
        "max_asked_day": 10,
        "max_asked": 11,
        "min_intersection": 1,
        "min_group": 2,
        "allow_plain": True,
        "max_predictions": 3,
        "max_distinct_ids": 4,
        "min_difference": 5,
        "expires": date(2027, 1, 1),
        "parameters": {
            "*": {"epochs": Bound(max=100).model_dump()},
            "fedavg": {"rule": Bound(values=("mean", 1, True)).model_dump()},
        },
    }


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("store =", "stoer =", "telco.toml: stoer: unknown key; did you mean 'store'?"),
        ("id =", "idd =", "telco.toml: tables.main.idd: unknown key; did you mean 'id'?"),
        ("methods", "metods", "telco.toml: policy 1, metods: unknown key; did you mean 'methods'?"),
        ("id =", "zzzz =", "tables.main.zzzz: unknown key; known are id, path, url, url_env, query, columns"),
        ("store = ", "_env_file = 'x'\nstore = ", "telco.toml: _env_file: unknown key"),
        ('store = "telco-store"', "", "telco.toml: store: is missing"),
        ("[[policy]]", '[[policy]]\npeers = ["bank"]\n[[policy]]\nlog = 1', "policy 2, log: unknown key"),
        ('peers = ["bank"]', "", "policy 1, peers: is missing"),
        ('peers = ["bank"]', "peers = []", "policy 1, peers: tuple should have at least 1 item"),
        ('["fit"]', '["fit", "train"]', "policy 1, actions 2: input should be 'fit', 'predict' or 'align'"),
        ('["fit"]', '["fit"]\nmin_group = true', "policy 1, min_group: input should be a valid integer"),
        ('["fit"]', '["fit"]\nmin_group = -1', "policy 1, min_group: input should be greater than or equal"),
        ('["fit"]', '["fit"]\nallow_plain = "yes"', "policy 1, allow_plain: input should be a valid boolean"),
        ('["fit"]', '["fit"]\nexpires = "soon"', "policy 1, expires: input should be a valid date"),
        ('methods = ["*"]', 'methods = ["*", "fedavg"]', "policy 1: methods should be names, or"),
        ('methods = ["*"]', 'methods = ["fed*"]', "policy 1: methods should be names, or"),
        ('methods = ["*"]', 'methods = ["a", "a"]', "policy 1: methods names one of them twice"),
        (
            '["bank"]',
            '["bnak"]',
            "policy 1, peers: 'bnak' is not in parties.toml; there are: bank, telco; did",
        ),
        ('["bank"]', '["bank"]\ntables = ["mian"]', "no table 'mian'; there are: main; did you mean 'main'?"),
        ('columns = ["*"]', 'columns = ["a", "id"]', "policy 1, columns: 'id' is the id, which no job uses"),
        (
            'name = "telco"',
            'name = "telko"',
            "name: 'telko' is not in parties.toml; there are: bank, telco; di",
        ),
        ('name = "telco"', 'name = "tel.co"', "name: 'tel.co' cannot name a party on a network"),
        ('name = "telco"', 'name = "telco"\nlisten = "x"', "listen: 'x' is no address; expected host:port"),
        ('name = "telco"', 'name = "telco"\ninsecure = true', "insecure = true, but parties.toml has [tls]"),
        ('name = "telco"', 'name = "telco"\nlog = "loud"', "log: input should be 'debug', 'info', 'warning'"),
        ('name = "telco"', 'name = "telco"\nretention_days = 0', "retention_days: input should be greater"),
        ('name = "telco"', "name = ", "telco.toml: is no TOML: Invalid value (at line 2"),
        ("[tables.main]", '[tables."a/b"]', "tables: 'a/b' should be 1 to 63 letters, digits, '-' and '_'"),
        ("[tables.main]", '[tables.MAIN]\npath = "x.csv"\nid = "i"\n[tables.main]', "differ in case only"),
        ('path = "telco.csv"', "", "tables.main: needs exactly one of path, url and url_env, got none"),
        (
            'path = "telco.csv"',
            'path = "x.csv"\nurl_env = "X"',
            "exactly one of path, url and url_env, got path",
        ),
        ('path = "telco.csv"', 'path = "x.xlsx"', "tables.main: path should end in .csv or .parquet"),
        ('path = "telco.csv"', 'path = "x.csv"\nquery = "q"', "tables.main: has a path and a query"),
        ('path = "telco.csv"', 'url_env = "X"', "tables.main: needs a query beside url_env"),
        ('id = "id"', 'id = "id"\ncolumns = ["a", "id"]', "tables.main: columns holds the id 'id'"),
        ('id = "id"', 'id = ["a", "id"]\ncolumns = ["id"]', "tables.main: columns holds the id 'id'"),
        ('id = "id"', "id = []", "tables.main.id: should be a column's name, or a list of those that make"),
        ('id = "id"', 'id = ["a", 1]', "tables.main.id: should be a column's name, or a list of those that"),
        (
            'id = "id"',
            'id = ["a", "a"]',
            "tables.main.id: should be 1 to 16 columns, none of them named twice",
        ),
        ('id = "id"', 'id = "id"\ncolumns = ["a", "a"]', "tables.main: columns names one of them twice"),
    ],
)
def test_a_fault_names_its_place_and_the_nearest_valid_name(
    old: str, new: str, said: str, tmp_path: Path
) -> None:
    assert old in PARTY
    assert said in told(write(tmp_path, PARTY.replace(old, new, 1)))


def test_a_policy_names_columns_that_its_tables_let_methods_use(tmp_path: Path) -> None:
    party = PARTY.replace('id = "id"', 'id = "id"\ncolumns = ["age", "calls"]')
    read_config(write(tmp_path, party.replace('columns = ["*"]', 'columns = ["calls"]')))
    said = told(write(tmp_path, party.replace('columns = ["*"]', 'columns = ["callls"]')))
    assert "policy 1, columns: 'callls' is not among the columns of its tables; did you mean 'calls'?" in said
    other = '[tables.other]\npath = "other.csv"\nid = "id"\n[[policy]]'
    party = party.replace("[[policy]]", other).replace('columns = ["*"]', 'columns = ["callls"]')
    read_config(write(tmp_path, party))  # the other table may have it
    with pytest.raises(ConfigError, match="'callls' is not among"):
        read_config(write(tmp_path, party.replace('peers = ["bank"]', 'peers = ["bank"]\ntables = ["main"]')))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("authority =", "autority =", "parties.toml: tls.autority: unknown key; did you mean 'authority'?"),
        ("[tls]", "[tsl]", "parties.toml: tsl: unknown key; did you mean 'tls'?"),
        ('"localhost:7001"', '"localhost"', "parties: 'localhost' is no address; expected host:port"),
        ("telco =", "Bank =", "parties: Bank and bank differ in case only; rename one"),
        ("bank =", "localhost =", "'localhost' cannot name a party on a network"),
        ('key = "', 'revoked = ["abc"]\nkey = "', "tls.revoked: should be SHA-256 fingerprints, 64 hex"),
        (BOOK[BOOK.index("[tls]") :], "", "parties.toml: [tls] is missing; see vfl certs"),
        (BOOK, "[parties]", "parties.toml: parties: dictionary should have at least 1 item"),
    ],
)
def test_a_fault_of_the_book_is_named_too(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert old in BOOK
    message = told(write(tmp_path, book=BOOK.replace(old, new, 1)))
    assert said in message and message.startswith("telco/configuration: ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert told(tmp_path / "none.toml") == f"{tmp_path / 'none.toml'}: No such file or directory"
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    assert told(tmp_path / "bytes.toml").endswith("bytes.toml: is not UTF-8 text")


def test_without_tls_everybody_is_on_loopback(tmp_path: Path) -> None:
    plain, party = BOOK[: BOOK.index("[tls]")], PARTY.replace("store =", "insecure = true\nstore =")
    _, parties = read_config(write(tmp_path, party, plain))
    assert parties.credentials("telco") is None
    far = plain.replace("localhost:7001", "bank.example:7001")
    assert "loopback addresses only, not bank.example:7001" in told(write(tmp_path, party, far))
    listening = party.replace("store =", 'listen = "0.0.0.0:1"\nstore =')
    assert "loopback addresses only, not 0.0.0.0:1" in told(write(tmp_path, listening, plain))


def test_fingerprints_are_read_however_they_are_written(tmp_path: Path) -> None:
    plain = "ab" * 32
    colons = ":".join(["AB"] * 32)
    for written in (plain, colons, plain.upper()):
        write(tmp_path, book=f'{BOOK}revoked = ["{written}"]')
        assert Parties.read(tmp_path / "parties.toml").revoked == {plain}


def test_the_environment_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path)
    monkeypatch.setenv("VFL_STORE", "/elsewhere")
    monkeypatch.setenv("VFL_TABLES__MAIN__ID", "customer")
    monkeypatch.setenv("VFL_LOG", "")
    config = PartyConfig.read(file)
    assert (config.store, config.log) == (Path("/elsewhere"), "info")
    assert config.tables["main"].id == "customer" and config.tables["main"].path == Path("telco.csv")


def test_the_environment_cannot_change_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path)
    monkeypatch.setenv("VFL_POLICY", "[]")
    assert "VFL_POLICY in the environment: the policy is read from" in told(file)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("VFL_LOG", CANARY, "VFL_LOG in the environment: input should be 'debug'"),
        ("VFL_TABLES__MAIN__PAHT", CANARY, "VFL_TABLES__MAIN__PAHT in the environment: unknown key"),
        ("VFL_TABLES", CANARY, 'error parsing value for field "tables"'),
    ],
)
def test_a_fault_of_the_environment_names_the_variable(
    variable: str, value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    message = told(write(tmp_path))
    assert said in message and CANARY not in message


URL = f"postgresql+psycopg://telco:{CANARY}@db/customers"


@pytest.mark.parametrize(
    "line",
    [
        f'url = "{URL}"',
        f'url = ["{URL}"]',
        f'url = "{URL}"\nurll = 1',
        f'urll = "{URL}"',
        f'url = "{URL}"\npath = "x.csv"',
        f'url = "{URL}"\nquery = ""',
        f'url = "{URL}" x',
        f'url = "{URL}\nquery = "select 1"',
        f"query = {URL}",
        f'path = {{ url = "{URL}" }}',
    ],
)
def test_no_error_shows_a_secret(line: str, tmp_path: Path) -> None:
    file = write(tmp_path, PARTY.replace('path = "telco.csv"', line))
    with pytest.raises(ConfigError) as caught:
        read_config(file)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_no_repr_shows_a_secret(tmp_path: Path) -> None:
    lines = f'url = "{URL}"\nquery = "select \'{CANARY}\'"'
    config = PartyConfig.read(write(tmp_path, PARTY.replace('path = "telco.csv"', lines)))
    assert CANARY not in f"{config!r} {config} {config.tables!r}"
    secret = config.tables["main"].url
    assert secret is not None and secret.get_secret_value() == URL


_numbers = st.integers(-50, 50) | st.floats(-50, 50)


@given(_numbers, _numbers, _numbers)
def test_a_bound_holds_what_is_between_its_ends(low: float, high: float, value: float) -> None:
    low, high = sorted((low, high))
    inside = low <= value <= high
    assert Bound(min=low, max=high).holds(value) == inside
    assert Bound(max=high).holds(value) == (value <= high) and Bound(min=low).holds(value) == (value >= low)
    assert Bound(max=high).holds([low, value]) == (value <= high)
    assert Bound(values=(low, high)).holds(value) == (value in (low, high))


@pytest.mark.parametrize("value", [float("nan"), True, "7", None, {"a": 1}, [1, "x"], [[1, True]]])
def test_what_cannot_be_compared_is_outside_a_bound(value: object) -> None:
    assert not Bound(min=-1e300).holds(value) and not Bound(max=1e300).holds(value)


def test_values_are_compared_with_their_type() -> None:
    bound = Bound(values=("mean", 1, False))
    assert all(map(bound.holds, ("mean", 1, 1.0, False, ["mean", 1])))
    assert not any(map(bound.holds, ("Mean", "1", True, 0, None, ["mean", 2])))
    assert not Bound(min=0, values=(-1, 1)).holds(-1) and Bound(min=0, values=(-1, 1)).holds(1)


@pytest.mark.parametrize(
    ("bound", "said"),
    [("", "says nothing"), ("min = 2\nmax = 1", "has min 2 above max 1"), ("max = nan", "")],
)
def test_a_bound_that_cannot_be_meant_is_refused(bound: str, said: str, tmp_path: Path) -> None:
    party = f'{PARTY}[policy.parameters."*".epochs]\n{bound}'
    assert f"policy 1, parameters.*.epochs{'.max' * (not said)}: {said}" in told(write(tmp_path, party))


def test_a_bound_says_what_it_expects() -> None:
    assert str(Bound(min=1, max=100)) == "at least 1 and at most 100"
    assert str(Bound(values=("a", 2))) == "one of 'a', 2"
