"""E-mail addresses: tried at every `@`."""

from __future__ import annotations

import re
from typing import Final

from treadle.redaction._finding import Finding

_LOCAL: Final = re.compile(r"[^\W_][\w.%+'-]{0,63}$|[\w.%+'-]{1,64}$")
_DOMAIN: Final = re.compile(r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9_-]|\.[A-Za-z0-9])")
_NO_LOCAL: Final = frozenset({"git", "hg", "svn"})
_FILES: Final = frozenset(
    {
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "js",
        "ts",
        "css",
        "py",
        "json",
        "html",
        "scss",
        "tsx",
        "jsx",
        "md",
        "txt",
        "lock",
        "tgz",
    }
)


def detect(text: str, at: int) -> Finding | None:
    """The address around the `@` at `at`."""
    local = _LOCAL.search(text[max(0, at - 64) : at])
    if local is None:
        return None
    begin = at - (local.end() - local.start())
    # after an escape sequence (`\nalice@...`) the letter before is none of the address
    if begin > 0 and text[begin - 1] == "\\" and text[begin] in "nrt" and at - begin > 1:
        begin += 1
    while begin < at and text[begin] in ".'%-":
        begin += 1
    if begin == at or text[at - 1] == "." or text[begin:at] in _NO_LOCAL:
        return None
    if begin > 0 and text[begin - 1] in "/:" and text[max(0, begin - 3) : begin] == "://":
        return None  # user@host of a URL; its password is another detector's
    domain = _DOMAIN.match(text, at + 1)
    if domain is None or domain[0].rpartition(".")[2].lower() in _FILES:
        return None
    return Finding(begin, domain.end(), "email")
