"""Laws that every program must obey, as test cases for whoever writes a program.

For tests only: here all seeds are known.

    CASE = Case.of("my-method", {"rounds": 3}, {"bank": bank, "shop": shop}, wrong=[{"rounds": 0}])

    @pytest.mark.parametrize("law", LAWS)
    def test_a_law(law, tmp_path):
        law(CASE, tmp_path)

Each law is a function of a `Case` and an empty folder, and raises AssertionError; pytest is not needed.
`docs/guides/testing.md` says what they ask of a program.
"""

from __future__ import annotations

from protocols.testing.case import Case, Outcome
from protocols.testing.laws import LAWS

__all__ = ["LAWS", "Case", "Outcome"]
