"""`vfl` with smaller buckets, as a process: what large sets do is seen with small ones.

python -m tests.protocols.bucketed <ids from which on> <ids in a bucket> <arguments of vfl>
"""

from __future__ import annotations

import sys

from protocols.cli import main
from protocols.psi import buckets, choose, stored

if __name__ == "__main__":
    _, start, size, *words = sys.argv
    stored.FROM = buckets.FROM = choose.LARGE = int(start)
    stored.PART = buckets.BUCKET = int(size)
    sys.argv = ["vfl", *words]
    main()
