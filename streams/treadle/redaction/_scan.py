"""One pass over a text decides whether anything private can be in it at all; only then are detectors tried."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Final

import ahocorasick_rs
from treadle_schemas.pii import SECRET_KINDS, PiiPolicy

from treadle.errors import SdkError
from treadle.redaction import _email, _names
from treadle.redaction._finding import PLACEHOLDER, Finding, disjoint
from treadle.redaction._numbers import Numbers
from treadle.redaction._secrets import DETECTORS, SENSITIVE_KEYS, Detector

# JSON text may hide an ASCII letter as an escape, and a URL its slashes
_ESCAPES: Final = (*(f"\\u00{digit}" for digit in "234567"), "\\/")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_WINDOW: Final = 2048
_OVERLAP: Final = 256
"""Own patterns see windows of the text, so that a slow one costs no more than a bounded time for each character."""
_PATTERNS_BUDGET_S: Final = 2.0


class PatternTooSlow(SdkError):
    """A pattern of the workspace's own took longer over one text than it may. The event is not kept."""


class Scanner:
    """What a policy looks for, compiled once."""

    def __init__(self, policy: PiiPolicy) -> None:
        actions = policy.effective()
        wanted = frozenset(actions)
        self._detectors: list[Detector | None] = []
        literals: list[str] = []
        secrets = bool(wanted.intersection(SECRET_KINDS))
        for literal, (kind, detector) in DETECTORS.items():
            if kind in wanted:
                literals.append(literal)
                self._detectors.append(detector)
        if "email" in wanted:
            literals.append("@")
            self._detectors.append(_email.detect)
        self.keyed_secrets = "secret" in wanted
        if secrets:
            # only a reason to look closer: keys of objects whose value is a secret whatever it looks like
            for key in SENSITIVE_KEYS if self.keyed_secrets else ():
                if not any(literal in key for literal in literals):
                    literals.append(key)
                    self._detectors.append(None)
        if literals:
            literals += _ESCAPES
            self._detectors += [None] * len(_ESCAPES)
        self._automaton = (
            ahocorasick_rs.AhoCorasick(literals, matchkind=ahocorasick_rs.MATCHKIND_STANDARD, store_patterns=False)
            if literals
            else None
        )
        numeric = wanted & {"phone", "card", "iban", "national_id", "ip"}
        self._numbers = Numbers(numeric, policy.phone_regions) if numeric else None
        self._patterns = [(p.name, re.compile(p.regex)) for p in policy.patterns if p.action != "keep"]
        self._names = _names.finder(policy.name_model) if "name" in wanted and policy.name_model else None
        self.looks_for_anything = bool(literals or self._numbers or self._patterns or self._names)

    def may_hold(self, text: str) -> bool:
        """Whether `text` may hold something; false is certain. Texts joined by newlines may be asked about together."""
        if self._patterns or self._names is not None:
            return True
        if self._automaton is not None and _matches(self._automaton, text, False):
            return True
        return self._numbers is not None and self._numbers.may_hold(text)

    def find(self, text: str) -> list[Finding]:
        """Everything that is private in `text`, in order, without overlaps."""
        found = list(self._all(text))
        if not found:
            return found
        if "[" in text:
            kept = [match.span() for match in PLACEHOLDER.finditer(text)]
            found = [f for f in found if not any(start < f.end and f.start < end for start, end in kept)]
        return disjoint(found)

    def _all(self, text: str) -> Iterator[Finding]:
        if self._automaton is not None:
            ended: dict[int, int] = {}
            for number, start, _ in _matches(self._automaton, text, True):
                detector = self._detectors[number]
                # not again inside what the same literal led to: a text full of it would take quadratic time
                if detector is None or start < ended.get(number, 0):
                    continue
                finding = detector(text, start)
                if finding is not None:
                    ended[number] = finding.end
                    yield finding
        if self._numbers is not None:
            yield from self._numbers.find(text)
        if self._patterns:
            yield from self._own(text)
        if self._names is not None:
            yield from self._names(text)

    def _own(self, text: str) -> Iterator[Finding]:
        deadline = time.monotonic() + _PATTERNS_BUDGET_S
        for name, pattern in self._patterns:
            for begin in range(0, max(1, len(text) - _OVERLAP), _WINDOW - _OVERLAP):
                # the whole text with a start, so that \b sees what is before the window
                for match in pattern.finditer(text, begin, begin + _WINDOW):
                    if match.end() > match.start():
                        yield Finding(match.start(), match.end(), name)
                if time.monotonic() > deadline:
                    raise PatternTooSlow(f"pii pattern {name} took more than {_PATTERNS_BUDGET_S:g} s over one text")


def _matches(automaton: ahocorasick_rs.AhoCorasick, text: str, overlapping: bool) -> list[tuple[int, int, int]]:
    lower = _lowered(text)
    try:
        return automaton.find_matches_as_indexes(lower, overlapping=overlapping)
    except UnicodeEncodeError:
        # a lone surrogate has no UTF-8; another character in its place keeps every other where it is
        return automaton.find_matches_as_indexes(_SURROGATE.sub("\ufffd", lower), overlapping=overlapping)


def _lowered(text: str) -> str:
    """`text` in lower case, each character in its place."""
    lower = text.lower()
    if len(lower) == len(text):
        return lower
    # a few letters become two in lower case, which would shift what follows
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)
