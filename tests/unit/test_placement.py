"""Placement: pure, so its promises are checked on anything that Hypothesis can think of."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from coordinator.placement import Candidate, Strategy, place

candidates = st.lists(
    st.builds(
        Candidate,
        host=st.sampled_from(["gpu01", "gpu02", "gpu03"]),
        parent=st.sampled_from(["p0", "p1", "p2"]),
        available=st.integers(-1, 20),
    ),
    unique_by=lambda c: (c.host, c.parent),
    max_size=9,
)


@given(candidates, st.integers(0, 100), st.sampled_from(Strategy))
def test_no_parent_is_given_more_than_it_has(
    parents: list[Candidate], count: int, strategy: Strategy
) -> None:
    """As many are placed as there is room for, and no parent gets more than it has left."""
    placed = place(parents, count, strategy)
    assert len(placed) == count
    used = Counter(spot for spot in placed if spot is not None)
    assert all(n <= spot.available for spot, n in used.items())
    room = sum(max(0, c.available) for c in parents)
    assert sum(used.values()) == min(count, room)


@given(candidates, st.integers(0, 100))
def test_spread_leaves_no_parent_much_fuller_than_another(
    parents: list[Candidate], count: int
) -> None:
    """A parent that was used has, before each use, at least as much left as any other."""
    left = {c: c.available for c in parents}
    for spot in place(parents, count, Strategy.SPREAD):
        if spot is not None:
            assert left[spot] == max(left.values())
            left[spot] -= 1


@given(candidates, st.integers(0, 100))
def test_pack_opens_no_parent_before_the_fuller_one_is_full(
    parents: list[Candidate], count: int
) -> None:
    """A parent that was used has, before each use, the least left of those with any left."""
    left = {c: c.available for c in parents}
    for spot in place(parents, count, Strategy.PACK):
        if spot is not None:
            assert left[spot] == min(n for n in left.values() if n > 0)
            left[spot] -= 1


@given(candidates, st.integers(0, 50), st.sampled_from(Strategy), st.randoms())
def test_the_same_question_gets_the_same_answer(
    parents: list[Candidate], count: int, strategy: Strategy, rng: object
) -> None:
    """The order in which parents are listed does not matter."""
    shuffled = list(parents)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]  # Hypothesis' own Random
    assert place(parents, count, strategy) == place(shuffled, count, strategy)
