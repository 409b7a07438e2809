"""Files are written whole, in one way, and nothing is left behind after an error."""

from __future__ import annotations

import ast
import errno
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from protocols.errors import ConfigError, DataError
from protocols.files import (
    leftovers,
    make_folder,
    remove,
    remove_folder,
    sealed,
    unsealed,
    whole_file,
    write_folder,
    write_out,
    write_whole,
)
from tests.support import ROOT

WRITERS = ("write_text", "write_bytes", "NamedTemporaryFile", "mkstemp")


def writes(tree: ast.Module) -> list[str]:
    """The calls in a module that would write a file in another way."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        of = node.func.value if isinstance(node.func, ast.Attribute) else None
        modes = {
            arg.value
            for arg in (*node.args, *(word.value for word in node.keywords))
            if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
        }
        opens = name in ("open", "fdopen") and modes & {"w", "wb", "x", "xb", "w+", "w+b"}
        moves = name in ("replace", "rename") and isinstance(of, ast.Name) and of.id == "os"
        moves |= name == "move" and isinstance(of, ast.Name) and of.id == "shutil"
        if opens or moves or name in WRITERS:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def test_no_other_module_writes_a_whole_file() -> None:
    found = {}
    for package in ("protocols", "vfl", "horizontal", "split"):
        for path in (ROOT / package).rglob("*.py"):
            file = path.relative_to(ROOT).as_posix()
            if file != "protocols/files.py":
                found[file] = writes(ast.parse(path.read_text(encoding="utf-8")))
    assert {file: calls for file, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "code",
    ["os.replace(a, b)", "path.write_text('')", "open(p, 'wb')", "p.open(mode='w')", "os.fdopen(h, 'xb')"],
)
def test_one_that_did_would_be_found(code: str) -> None:
    assert writes(ast.parse(code))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("write", [write_whole, write_out])
def test_a_failure_leaves_the_file_before_and_nothing_else(
    write: object, call: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(write)
    write(tmp_path / "file", b"before")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises((DataError, ConfigError, KeyboardInterrupt), match="cannot .*No space left|^$"):
        write(tmp_path / "file", b"after")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"before"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_folder_that_fails_leaves_nothing(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_folder(tmp_path / "folder", {"a": b"1", "b": b"2"})
    assert list(tmp_path.iterdir()) == []


def test_what_a_party_keeps_is_its_owners_and_what_a_person_asked_for_is_as_usual(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a" / "b" / "kept", b"")
        write_folder(tmp_path / "part", {"x": b""})
        write_out(tmp_path / "report", "words")
    finally:
        os.umask(before)
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == mode(tmp_path / "part") == 0o700
    assert mode(tmp_path / "a" / "b" / "kept") == mode(tmp_path / "part" / "x") == 0o600
    assert mode(tmp_path / "report") == 0o640 and (tmp_path / "report").read_text() == "words"
    with pytest.raises(ConfigError, match="cannot write .*nowhere"):
        write_out(tmp_path / "nowhere" / "report", "x")


def test_two_that_write_one_file_at_a_time_each_write_it_whole(tmp_path: Path) -> None:
    both = threading.Barrier(2)

    def write(content: bytes) -> None:
        with whole_file(tmp_path / "file") as file:
            file.write(content[:5])
            both.wait()
            file.write(content[5:])

    threads = [threading.Thread(target=write, args=(letter * 10,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_bytes() in (b"a" * 10, b"b" * 10)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_left_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("file", "other [1]"):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
            with pytest.raises(KeyboardInterrupt):
                write_whole(tmp_path / name, b"secret")
    assert len(leftovers(tmp_path)) == 2 and len(leftovers(tmp_path, "other [1]")) == 1
    assert remove(leftovers(tmp_path)) and not remove(leftovers(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_cannot_flush_folders_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, refused = os.fsync, [errno.EINVAL]

    def files_only(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(refused[0], os.strerror(refused[0]))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    write_whole(tmp_path / "new" / "file", b"x")
    refused[0] = errno.EIO
    with pytest.raises(DataError, match="file cannot be written: Input/output error"):
        write_whole(tmp_path / "new" / "file", b"y")


def test_a_folder_that_is_deleted_is_gone_from_its_place_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "part", {"a": b"1"})

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(tmp_path / "part")
    assert not (tmp_path / "part").exists() and len([*tmp_path.iterdir()]) == 1


def test_a_seal_tells_the_whole_from_the_torn() -> None:
    content = bytes(range(256))
    whole = sealed(content)
    assert unsealed(whole) == content and unsealed(sealed(b"")) == b""
    torn = [whole[:size] for size in range(len(whole))] + [whole[:-9] + bytes(9), bytes(len(whole))]
    assert [unsealed(each) for each in torn] == [None] * len(torn)


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_folder(tmp_path)
    assert mode(tmp_path) == 0o755
