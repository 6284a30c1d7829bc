"""Everything that is made of digits: cards, IBANs, phones, national ids, IP addresses. One pass finds candidates, validators decide.

Validators are python-stdnum and phonenumbers, imported at the first candidate that needs them.
"""

from __future__ import annotations

import importlib
import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final

from treadle.redaction._finding import Finding

_RUN: Final = re.compile(r"[0-9][0-9 ().\-/\u00a0\u2011]{5,34}[0-9]")
"""A run of digits with what people put between them. It begins at a digit: `re` is fast at skipping to one of a small set."""
_DIGIT: Final = re.compile(r"[0-9]")
_TWO_DIGITS: Final = re.compile(r"[0-9][0-9LMNP-V]")
_DOTTED: Final = re.compile(r"[0-9]\.[0-9]{1,3}\.")
_LETTERED: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?P<iban>[A-Z]{2}[0-9]{2}[ -]?(?:[A-Z0-9]{4}[ -]?){2,7}[A-Z0-9]{1,4})"
    r"|(?P<it>[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPRST][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z])"
    r"|(?P<es>(?:[XYZ]-?[0-9]{7}|[0-9]{8})[- ]?[A-Z])"
    r"|(?P<nino>[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D])"
    r"|(?P<pan>[A-Z]{3}[ABCFGHJLPT][A-Z][0-9]{4}[A-Z])"
    r")(?![A-Za-z0-9])"
)
_IPV6: Final = re.compile(r"(?<![0-9A-Za-z:.])(?:[0-9A-Fa-f]{1,4}:{1,2}){1,7}[0-9A-Fa-f]{0,4}(?![0-9A-Za-z:])")
_IPV4: Final = re.compile(r"(?<![0-9.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9]|\.[0-9])")

_CARD_SHAPE: Final = re.compile(
    r"[0-9]{13,19}|[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{1,7}|[0-9]{4}([ -])[0-9]{6}\2[0-9]{4,5}"
)
_CARD_PREFIX: Final = re.compile(r"4|5|6|2(?:2[2-9]|[3-6]|7[01]|720)|3[47]|3(?:0[0-5]|[689])|35(?:2[89]|[3-8])")
_DATE: Final = re.compile(
    r"(?:19|20)[0-9]{2}[-./][01]?[0-9][-./][0-3]?[0-9]|[0-3]?[0-9][-./][01]?[0-9][-./](?:19|20)[0-9]{2}"
)
_US_PHONE: Final = re.compile(r"(?:1[ .-]?)?\(?[2-9][0-9]{2}\)?[ .-]{0,2}[2-9][0-9]{2}[ .-][0-9]{4}")

_PHONE_WORDS: Final = re.compile(
    r"(?i)(?:phone|tel|call|mobile|cell|fax|sms|text|whatsapp|contact|reach|dial|number is|handy|anruf|rufnummer|portable|ring)\b"
    r"[^\n]{0,24}$"
)
_ID_WORDS: Final[dict[str, re.Pattern[str]]] = {
    "us.ssn": re.compile(r"(?i)(?:\bssn|social[ -]security|\btax ?id)[^\n]{0,24}$"),
    "de.idnr": re.compile(r"(?i)(?:steuer|\bidnr|identifikationsnummer|\btin\b|tax)[^\n]{0,32}$"),
    "nl.bsn": re.compile(r"(?i)(?:\bbsn\b|burgerservice|sofi)[^\n]{0,32}$"),
    "br.cpf": re.compile(r"(?i)\bcpf\b[^\n]{0,24}$"),
    "ca.sin": re.compile(r"(?i)(?:\bsin\b|social insurance)[^\n]{0,24}$"),
    "in_.aadhaar": re.compile(r"(?i)(?:aadhaar|aadhar|\buidai)[^\n]{0,24}$"),
    "pl.pesel": re.compile(r"(?i)pesel[^\n]{0,24}$"),
    "gb.nhs": re.compile(r"(?i)\bnhs\b[^\n]{0,24}$"),
    "fr.nir": re.compile(r"(?i)(?:\bnir\b|s[ée]cu|social)[^\n]{0,32}$"),
}
_PAN_WORDS: Final = re.compile(r"(?i)\bpan\b[^\n]{0,24}$")
_NOT_A_PHONE: Final = re.compile(
    r"(?i)(?:order|invoice|ticket|tracking|isbn|issn|sku|ref(?:erence)?|serial|part|model|version|build|case|booking|confirmation|doi[:/]|po)"
    r"\b[ #:no.]{0,8}$|[#$€£]$"
)
_IMEI_WORDS: Final = re.compile(r"(?i)\b(?:imei|iccid|serial)[^\n]{0,12}$")
_VERSION_WORDS: Final = re.compile(
    r"(?i)(?:\bv|version|release|build|ver|section|chapter|§|oid|firmware|driver)[ .:=]{0,3}$"
)
_SSN_SHAPE: Final = re.compile(r"[0-9]{3}([- ])[0-9]{2}\1[0-9]{4}")
_GROUPED: Final[tuple[tuple[str, re.Pattern[str], int], ...]] = (
    # module of stdnum, its written form with separators, digits in all
    ("fr.nir", re.compile(r"[12] [0-9]{2} (?:0[1-9]|1[0-2]|[2-9][0-9]) [0-9]{2} [0-9]{3} [0-9]{3} [0-9]{2}"), 15),
    ("br.cpf", re.compile(r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}"), 11),
    ("de.idnr", re.compile(r"[0-9]{2} [0-9]{3} [0-9]{3} [0-9]{3}"), 11),
    ("in_.aadhaar", re.compile(r"[2-9][0-9]{3}([ -])[0-9]{4}\1[0-9]{4}"), 12),
)
_PLAIN: Final[tuple[tuple[str, int], ...]] = (
    ("us.ssn", 9), ("nl.bsn", 9), ("ca.sin", 9), ("gb.nhs", 10), ("de.idnr", 11), ("br.cpf", 11), ("pl.pesel", 11), ("in_.aadhaar", 12),
    ("fr.nir", 15),
)  # fmt: skip


class Numbers:
    """Finds the kinds of `wanted` in a text. `regions` are the countries of national phone numbers."""

    def __init__(self, wanted: frozenset[str], regions: tuple[str, ...]) -> None:
        self._wanted = wanted
        self._regions = regions
        self._lettered = bool(wanted & {"iban", "national_id"})
        self._runs = bool(wanted & {"phone", "card", "national_id"})

    def may_hold(self, text: str) -> bool:
        """Whether `text` has a candidate at all."""
        if self._runs and _RUN.search(text):
            return True
        if self._lettered and _TWO_DIGITS.search(text) and _LETTERED.search(text):
            return True
        if "ip" not in self._wanted:
            return False
        return _DOTTED.search(text) is not None or (text.count(":") >= 2 and _IPV6.search(text) is not None)

    def find(self, text: str) -> Iterator[Finding]:
        """Every finding, in no order; they may overlap."""
        taken: list[tuple[int, int]] = []
        if self._lettered and _TWO_DIGITS.search(text):
            for found in _LETTERED.finditer(text):
                finding = self._letters(text, found)
                if finding is not None:
                    taken.append(finding[:2])
                    yield finding
        if "ip" in self._wanted:
            yield from self._addresses(text)
        if self._runs:
            for found in _RUN.finditer(text):
                begin, stop = found.span()
                while begin > 0 and text[begin - 1] in "+(" and found.start() - begin < 2:
                    begin -= 1
                if not any(start < stop and begin < end for start, end in taken):
                    yield from self._digits(text, begin, stop)

    def _letters(self, text: str, found: re.Match[str]) -> Finding | None:
        group = found.lastgroup
        start, value = found.start(), found[0]
        if group == "iban" and "iban" in self._wanted:
            # the candidate may run on into the next words: shorten it by one group until the check digits agree
            while len(value) >= 15:
                if _valid("iban", value.replace("-", "")):
                    return Finding(start, start + len(value), "iban")
                cut = max(value.rfind(" "), value.rfind("-"))
                if cut < 0:
                    return None
                value = value[:cut]
            return None
        if "national_id" not in self._wanted or group == "iban":
            return None
        before = text[max(0, start - 40) : start]
        ok = {
            "it": lambda: _valid("it.codicefiscale", value),
            "es": lambda: _valid("es.nie" if value[0] in "XYZ" else "es.dni", value.replace(" ", "")),
            "nino": lambda: value[:2] not in ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ"),
            "pan": lambda: _PAN_WORDS.search(before) is not None,
        }[group or "it"]()
        return Finding(start, found.end(), "national_id") if ok else None

    def _addresses(self, text: str) -> Iterator[Finding]:
        for pattern, likely in ((_IPV4, "." in text), (_IPV6, text.count(":") >= 2)):
            for found in pattern.finditer(text) if likely else ():
                try:
                    address = ipaddress.ip_address(found[0])
                except ValueError:
                    continue
                if address.is_loopback or address.is_unspecified or address.is_multicast or found[0].startswith("255."):
                    continue
                if pattern is _IPV6 and (len(found[0].partition(":")[0]) < 3 or not _DIGIT.search(found[0])):
                    continue  # a::b is an operator, bad::cafe a name of a program
                if pattern is _IPV4 and _VERSION_WORDS.search(text[max(0, found.start() - 12) : found.start()]):
                    continue
                yield Finding(found.start(), found.end(), "ip")

    def _digits(self, text: str, start: int, end: int) -> Iterator[Finding]:
        """What a run of digits is. A run may hold two numbers, so where the whole is nothing its blank-separated parts are tried."""
        if self._glued(text, start, end):
            return
        kind = self._kind(text, start, end)
        if kind is not None:
            yield Finding(start, end, kind)
            return
        for begin, stop in _parts(text, start, end):
            kind = self._kind(text, begin, stop)
            if kind is not None:
                yield Finding(begin, stop, kind)

    @staticmethod
    def _glued(text: str, start: int, end: int) -> bool:
        # inside a word, a decimal or an identifier it is no number of a person
        before = text[start - 1] if start else " "
        after = text[end] if end < len(text) else " "
        return before.isalnum() or before in "_." or after.isalpha() or after == "_"

    def _kind(self, text: str, start: int, end: int) -> str | None:
        value = text[start:end]
        digits = _only_digits(value)
        count = len(digits)
        if not 8 <= count <= 19:
            return None
        bare = value[0] not in "+("
        if "card" in self._wanted and bare and _is_card(value, digits):
            # an IMEI has Luhn's digit too
            return None if _IMEI_WORDS.search(text[max(0, start - 24) : start]) else "card"
        if len(set(digits)) < 3:
            return None
        before = text[max(0, start - 40) : start]
        if "national_id" in self._wanted and bare and _is_national_id(value, digits, before):
            return "national_id"
        if "phone" in self._wanted and count <= 15 and self._is_phone(value, digits, before):
            return "phone"
        return None

    def _is_phone(self, value: str, digits: str, before: str) -> bool:
        if _DATE.match(value) or _NOT_A_PHONE.search(before) or value.count("(") != value.count(")"):
            return False
        if value[0] == "+" or value.startswith("00"):
            international = "+" + digits.removeprefix("00") if value[0] != "+" else value
            return _phone(international, None)
        named = _PHONE_WORDS.search(before) is not None
        if value.isdigit() and not named:
            return False
        for region in self._regions:
            if region == "US":
                # without a word before it, only in the ways people write it
                if (named or _US_PHONE.fullmatch(value)) and len(digits) in (10, 11) and _phone(value, region):
                    return True
            elif (named or (digits[0] == "0" and "." not in value)) and _phone(value, region):
                return True
        return False


def _parts(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Smaller stretches of a run between blanks: all that begin and end at a blank, the longest first, none overlapping."""
    cuts = [start] + [i + 1 for i in range(start, end) if text[i] in " \u00a0"] + [end + 1]
    if len(cuts) == 2 or len(cuts) > 16:
        return
    begin = 0
    while begin < len(cuts) - 1:
        for stop in range(len(cuts) - 1, begin, -1):
            low, high = cuts[begin], cuts[stop] - 1
            piece = text[low:high]
            if (
                (low, high) != (start, end)
                and piece
                and piece[-1].isdigit()
                and (piece[0].isdigit() or piece[0] in "+(")
            ):
                yield low, high
        begin += 1


def _only_digits(value: str) -> str:
    return "".join(c for c in value if "0" <= c <= "9")


def _is_card(value: str, digits: str) -> bool:
    if not 13 <= len(digits) <= 19 or not _CARD_SHAPE.fullmatch(value) or not _CARD_PREFIX.match(digits):
        return False
    if len(set(digits)) < 2:
        return False
    if digits[0] in "34" and len(digits) > 16 and digits[0] != "4":
        return False
    total = 0
    for i, digit in enumerate(reversed(digits)):
        n = int(digit) * (1 + i % 2)
        total += n - 9 if n > 9 else n
    return total % 10 == 0


def _is_national_id(value: str, digits: str, before: str) -> bool:
    if _SSN_SHAPE.fullmatch(value):
        return _valid("us.ssn", digits)
    for module, shape, count in _GROUPED:
        if len(digits) == count and shape.fullmatch(value) and _valid(module, digits):
            return True
    for module, count in _PLAIN:
        if len(digits) == count and _ID_WORDS[module].search(before) and _valid(module, digits):
            return True
    # the French number is long and checked by two digits: it needs no word before it
    return len(digits) == 15 and value.isdigit() and digits[0] in "12" and _valid("fr.nir", digits)


@lru_cache(maxsize=64)
def _validator(module: str) -> Callable[..., bool]:
    check: Callable[..., bool] = importlib.import_module(f"stdnum.{module}").is_valid
    return check


def _valid(module: str, value: str) -> bool:
    if module == "iban":
        # the account's own check digits differ from bank to bank; mod 97, length and form are enough
        return _validator(module)(value, check_country=False)
    return _validator(module)(value)


_phonenumbers: Any = None


def _phone(value: str, region: str | None) -> bool:
    global _phonenumbers
    if _phonenumbers is None:
        _phonenumbers = importlib.import_module("phonenumbers")
    try:
        number = _phonenumbers.parse(value, region)
        # after a + the country is certain, and a length that exists there is enough: numbers reserved for fiction are none otherwise
        return bool((_phonenumbers.is_possible_number if region is None else _phonenumbers.is_valid_number)(number))
    except _phonenumbers.NumberParseException:
        return False
