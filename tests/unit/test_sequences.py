"""Long trajectories are split at turns: each turn is learned once, with its question, and none is cut."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from treadle_trainer.data.rendering import Encoded, Turn
from treadle_trainer.data.sequences import CONTEXT_SHARE, Piece, plan, split


def laid_out(opening: int, lengths: list[tuple[int, int]]) -> list[Turn]:
    """Turns of (length, gap behind it) tokens after an opening."""
    turns, at = [], opening
    for n, (length, gap) in enumerate(lengths):
        turns.append(Turn(2 * n + 1, at, at + length))
        at += length + gap
    return turns


TURNS = laid_out(10, [(10, 10)] * 10)  # turn n is 10 + 20 n .. 20 + 20 n


def test_what_fits_is_one_piece_whatever_follows_the_last_turn() -> None:
    assert plan(TURNS, [1, 3], 80) == ([Piece(0, 3, (1, 3))], 0)
    assert plan(TURNS, list(range(10)), None) == ([Piece(0, 9, tuple(range(10)))], 0)
    assert plan(TURNS, [], 80) == plan(TURNS, [], None) == ([], 0)


def test_later_pieces_begin_with_the_opening_and_half_of_the_context() -> None:
    pieces, too_long = plan(TURNS, list(range(10)), 100)
    # 0..4 end at 100; for turn 5 the context begins at turn 4: 10 + 120 - 90 = 40 of 50; then turns up to 10 + 90
    assert pieces[:2] == [Piece(0, 4, (0, 1, 2, 3, 4)), Piece(4, 8, (5, 6, 7, 8))]
    assert too_long == 0


def test_a_turn_that_does_not_fit_with_the_one_before_is_left_out_and_counted() -> None:
    turns = laid_out(10, [(10, 5), (200, 5), (10, 5), (10, 5)])
    pieces, too_long = plan(turns, [0, 1, 2, 3], 100)
    assert too_long == 2  # the long one, and the one whose question it is
    assert pieces == [Piece(0, 0, (0,)), Piece(2, 3, (3,))]


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Turn], list[int], int]:
    lengths = draw(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 20)), min_size=1, max_size=25))
    turns = laid_out(draw(st.integers(0, 20)), lengths)
    wanted = sorted(draw(st.sets(st.integers(0, len(turns) - 1))))
    return turns, wanted, draw(st.integers(5, 200))


@settings(max_examples=300, deadline=None)
@given(conversations())
def test_each_turn_is_learned_once_or_counted_and_nothing_is_longer_than_allowed(
    case: tuple[list[Turn], list[int], int],
) -> None:
    turns, wanted, limit = case
    pieces, too_long = plan(turns, wanted, limit)
    learned = [n for piece in pieces for n in piece.trained]
    assert learned == sorted(set(learned))
    assert set(learned) <= set(wanted)
    assert len(learned) + too_long == len(wanted)
    ids = list(range(turns[-1].stop + 3))
    encoded = Encoded(ids, [], turns)
    sequences, _ = split(encoded, {turns[n].message for n in wanted}, limit)
    assert len(sequences) == len(pieces)
    for piece, sequence in zip(pieces, sequences, strict=True):
        assert len(sequence.ids) <= limit
        assert sequence.ids[: turns[0].start] == ids[: turns[0].start]
        if piece.first:
            assert piece.first < piece.trained[0]  # the turn before is there
            assert sequence.ids[turns[0].start :] == ids[turns[piece.first].start : turns[piece.last].stop]
        # the trained tokens are those of the turns, whole, and the last one ends the sequence
        found = [sequence.ids[start:stop] for start, stop in sequence.spans]
        assert found == [ids[turns[n].start : turns[n].stop] for n in piece.trained]
        assert sequence.spans[-1][1] == len(sequence.ids)


@settings(max_examples=100, deadline=None)
@given(st.integers(40, 400), st.integers(60, 200))
def test_splitting_costs_a_bounded_multiple(count: int, limit: int) -> None:
    """Equal turns that fit four times into half of a piece: at most about 1 / (1 - CONTEXT_SHARE) times the tokens, the openings aside."""
    turns = laid_out(4, [(4, 2)] * count)
    pieces, too_long = plan(turns, list(range(count)), limit)
    total = sum(turns[piece.last].stop - turns[piece.first].start for piece in pieces)
    assert too_long == 0
    assert total <= 1.4 / (1 - CONTEXT_SHARE) * turns[-1].stop
