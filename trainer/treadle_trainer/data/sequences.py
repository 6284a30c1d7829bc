"""From a conversation to the sequences that are trained on: long ones are split at turns, and none is cut at its end."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from treadle_trainer.data.rendering import Encoded, Turn, encode

__all__ = ["Piece", "Rendered", "TokenSequence", "plan", "render", "split"]

CONTEXT_SHARE = 0.5
"""A piece that does not begin at the beginning is filled up to here with turns before its first one to train on.

Less context teaches answers to questions that cannot be seen; more of it is computed again and again: at one half, about twice.
"""


class Piece(NamedTuple):
    """The opening, turns `first` to `last` with all between, and which of them (ordinals) are trained on."""

    first: int
    last: int
    trained: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Token ids, the spans `(start, stop)` of those to train on, ascending and apart, and the message that each span is."""

    ids: list[int]
    spans: list[tuple[int, int]]
    messages: list[int]

    @property
    def trained(self) -> int:
        """Tokens to train on."""
        return sum(stop - start for start, stop in self.spans)


@dataclass(frozen=True, slots=True)
class Rendered:
    """The sequences of one conversation. `too_long` turns fit into none; `step_tokens` is what the steps held apart would cost."""

    sequences: list[TokenSequence]
    too_long: int
    step_tokens: int


def render(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    response: Collection[int],
    tools: list[dict[str, Any]] | None = None,
    *,
    max_length: int | None = None,
    steps: Sequence[int] = (),
) -> Rendered:
    """Encode a conversation and split it into sequences of at most `max_length` tokens.

    `steps` counts the messages of each step that became part of it, as the sft view gives them. Raises TemplateRefused.
    """
    encoded = encode(tokenizer, messages, response, tools)
    sequences, too_long = split(encoded, set(response), max_length)
    ends = [turn.stop for turn in encoded.turns]
    counts = [sum(turn.message < count for turn in encoded.turns) for count in steps]
    step_tokens = sum(ends[count - 1] for count in counts if count)
    return Rendered(sequences, too_long, step_tokens or len(encoded.input_ids))


def split(encoded: Encoded, response: Collection[int], max_length: int | None) -> tuple[list[TokenSequence], int]:
    """The sequences of an encoded conversation, each ending with a turn to train on, and how many such turns fit into none.

    Pieces are cut out of the tokens of the whole, so they are what the template wrote, whatever it would make of a shorter conversation.
    """
    turns = encoded.turns
    wanted = [n for n, turn in enumerate(turns) if turn.message in response and turn.start < turn.stop]
    pieces, too_long = plan(turns, wanted, max_length)
    out = []
    for piece in pieces:
        opening, begin, end = turns[0].start, turns[piece.first].start, turns[piece.last].stop
        shift = begin - opening if piece.first else 0
        ids = encoded.input_ids[:end] if not piece.first else encoded.input_ids[:opening] + encoded.input_ids[begin:end]
        spans = [(turns[n].start - shift, turns[n].stop - shift) for n in piece.trained]
        out.append(TokenSequence(ids, spans, [turns[n].message for n in piece.trained]))
    return out, too_long


def plan(turns: Sequence[Turn], wanted: Sequence[int], max_length: int | None) -> tuple[list[Piece], int]:
    """Pieces in which each turn of `wanted` (ordinals, ascending) is trained on exactly once, and how many fit into none.

    A piece has the opening (all before the first assistant turn: system, tools, task) and a run of turns with what stands between them,
    so calls keep their answers. It holds at most

        opening + stop(last) - start(first) <= max_length

    tokens. All that fits from the beginning is the first piece. A later one begins as early as its first wanted turn leaves room
    for within CONTEXT_SHARE of the length, and always with the turn before that one: an answer is never learned without its question.
    """
    if max_length is None:
        return ([Piece(0, wanted[-1], tuple(wanted))], 0) if wanted else ([], 0)
    pieces: list[Piece] = []
    rest, too_long = list(wanted), 0
    while rest:
        target = rest[0]
        first = _start(turns, target, max_length)
        if first is None:
            too_long += 1
            rest.pop(0)
            continue
        room = max_length - (turns[0].start if first else 0) + (turns[first].start if first else 0)
        trained = [n for n in rest if turns[n].stop <= room]
        # stops ascend, so what fits is a run from the target on
        pieces.append(Piece(first, trained[-1], tuple(trained)))
        rest = rest[len(trained) :]
    return pieces, too_long


def _start(turns: Sequence[Turn], target: int, max_length: int) -> int | None:
    """The turn at which the piece of `target` begins, 0 for the beginning, or None where it does not fit."""
    if turns[target].stop <= max_length:
        return 0
    opening, stop = turns[0].start, turns[target].stop
    for share in (CONTEXT_SHARE, 1.0):
        for first in range(1, target):
            if opening + stop - turns[first].start <= share * max_length:
                return first
    return None
