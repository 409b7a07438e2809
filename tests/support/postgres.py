"""A real PostgreSQL server for tests: on a unix socket in a folder of its own, with a password."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PASSWORD = "p4ss/c4n4ry@word"
DEBIAN = Path("/usr/lib/postgresql")


def programs() -> Path | None:
    """The folder of initdb and pg_ctl, or None where PostgreSQL is not installed."""
    found = [path.parent for path in sorted(DEBIAN.glob("*/bin/initdb"))]
    if on_path := shutil.which("initdb"):
        found.append(Path(on_path).resolve().parent)
    return next((folder for folder in reversed(found) if (folder / "pg_ctl").exists()), None)


@contextmanager
def server() -> Iterator[Path]:
    """A running server; the folder of its socket. Its one role is "owner", its one database "postgres"."""
    folder = programs()
    assert folder is not None
    # Short and readable for another user: a socket's path has 107 bytes, and initdb refuses to be root.
    place = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    user = _user()
    try:
        if user is not None:
            os.chown(place, user.pw_uid, user.pw_gid)

        def call(program: str, *arguments: str) -> None:
            who = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            command = [str(folder / program), "-D", str(place / "data"), *arguments]
            with (place / "log").open("ab") as log:
                subprocess.run(command, check=True, cwd=place, stdout=log, stderr=log, **who)  # type: ignore[call-overload]

        (place / "password").write_text(PASSWORD)
        (place / "password").chmod(0o644)
        call("initdb", "-U", "owner", "-A", "scram-sha-256", f"--pwfile={place / 'password'}", "-E", "UTF8")
        options = f"-k {place} -c listen_addresses= -c fsync=off -c shared_buffers=8MB"
        call("pg_ctl", "start", "-w", "-t", "60", "-o", options, "-l", str(place / "data" / "server.log"))
        try:
            yield place
        finally:
            call("pg_ctl", "stop", "-w", "-m", "immediate")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _user() -> pwd.struct_passwd | None:
    """Whom to run it as: nobody in particular unless this is root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AssertionError("root can start no PostgreSQL, and there is neither a user postgres nor nobody")
