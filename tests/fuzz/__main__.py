"""Fuzz each target for a while, in a process of its own, one after another.

Exit code: 0 if nothing was found, 1 if something was (and it says how to see it again), 2 for a name that
there is not. What is learnt is kept in `.fuzz/`, so that the next run goes on from there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tests.fuzz import discover

KEPT = Path(".fuzz")


def main() -> int:
    known = discover()
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of {', '.join(known)}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.targets) - set(known))
    if unknown:
        print(f"no target is named {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    found = [name for name in chosen.targets or known if not _fuzz(name, chosen.seconds)]
    for name in found:
        print(
            f"{name}: found something; see it again with `python -m tests.fuzz.run {name} FILE`",
            file=sys.stderr,
        )
    return 1 if found else 0


def _fuzz(name: str, seconds: int) -> bool:
    """Whether nothing was found."""
    corpus = KEPT / name
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(discover()[name].seeds()):
        (corpus / f"seed-{i}").write_bytes(seed)
    limits = (f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10", "-rss_limit_mb=4096")
    kept = f"-artifact_prefix={KEPT}/{name}-"
    print(f"{name}: {discover()[name].check.__doc__}", flush=True)
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.run",
        name,
        *limits,
        kept,
        "-verbosity=0",
        "-print_final_stats=1",
    ]
    return subprocess.run([*command, str(corpus)], check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
