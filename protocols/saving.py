"""All parties' parts of one run, saved and loaded together; see `protocols.parts` for a part of its own.

Takes part: every party of a run, in one process. Each part holds the digests of the others, so that parts of
different trainings are not put together; a digest is all that one party's part says of another's.
"""

from __future__ import annotations
