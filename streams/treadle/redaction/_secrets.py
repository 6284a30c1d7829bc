"""Secrets: keys of the usual vendors, tokens, private keys, passwords in URLs and assignments.

Each detector hangs on a literal that the prefilter looks for, and is tried only where that stands.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Final

from treadle.redaction._finding import PLACEHOLDER, Finding

Detector = Callable[[str, int], Finding | None]
"""Given a text and where its literal begins: what is there."""

_WORD: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")

_KEYS: Final[dict[str, str]] = {
    # literal in lower case -> what follows from the literal on, case as the vendor writes it
    "sk-": r"sk-(?:ant-|proj-|svcacct-|admin-|or-v1-|lf-)?[A-Za-z0-9_-]{16,300}",
    "pk-lf-": r"pk-lf-[0-9a-f-]{36}",
    "ghp_": r"ghp_[A-Za-z0-9]{30,255}",
    "gho_": r"gho_[A-Za-z0-9]{30,255}",
    "ghu_": r"ghu_[A-Za-z0-9]{30,255}",
    "ghs_": r"ghs_[A-Za-z0-9]{30,255}",
    "ghr_": r"ghr_[A-Za-z0-9]{30,255}",
    "github_pat_": r"github_pat_[A-Za-z0-9_]{22,255}",
    "glpat-": r"glpat-[A-Za-z0-9_.-]{18,255}",
    "gldt-": r"gldt-[A-Za-z0-9_-]{18,255}",
    "glrt-": r"glrt-[A-Za-z0-9_-]{18,255}",
    "glptt-": r"glptt-[A-Za-z0-9_-]{18,255}",
    "xox": r"xox[abeoprs](?:\.xox[bp])?-[A-Za-z0-9-]{10,300}",
    "xapp-": r"xapp-[0-9]-[A-Za-z0-9-]{10,300}",
    "hooks.slack.com/": r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_+-]{20,200}",
    "discord.com/api/webhooks/": r"(?i:discord\.com/api/webhooks/)[0-9]{10,25}/[A-Za-z0-9_-]{30,120}",
    "akia": r"AKIA[0-9A-Z]{16}",
    "asia": r"ASIA[0-9A-Z]{16}",
    "aiza": r"AIza[0-9A-Za-z_-]{35}",
    "ya29.": r"ya29\.[0-9A-Za-z_-]{20,600}",
    "gocspx-": r"GOCSPX-[0-9A-Za-z_-]{20,60}",
    "sk_live_": r"sk_live_[0-9A-Za-z]{16,255}",
    "sk_test_": r"sk_test_[0-9A-Za-z]{16,255}",
    "rk_live_": r"rk_live_[0-9A-Za-z]{16,255}",
    "rk_test_": r"rk_test_[0-9A-Za-z]{16,255}",
    "whsec_": r"whsec_[0-9A-Za-z+/=]{16,255}",
    "hf_": r"hf_[A-Za-z0-9]{30,60}",
    "npm_": r"npm_[A-Za-z0-9]{36}",
    "pypi-": r"pypi-[A-Za-z0-9_-]{50,400}",
    "sg.": r"SG\.[A-Za-z0-9_-]{16,40}\.[A-Za-z0-9_-]{30,60}",
    "dop_v1_": r"dop_v1_[0-9a-f]{64}",
    "shpat_": r"shpat_[0-9a-fA-F]{32}",
    "shpss_": r"shpss_[0-9a-fA-F]{32}",
    "gsk_": r"gsk_[A-Za-z0-9]{30,80}",
    "r8_": r"r8_[A-Za-z0-9]{30,50}",
    "xai-": r"xai-[A-Za-z0-9]{40,120}",
    "nvapi-": r"nvapi-[A-Za-z0-9_-]{40,120}",
    "pplx-": r"pplx-[A-Za-z0-9]{30,80}",
    "lin_api_": r"lin_api_[A-Za-z0-9]{30,60}",
    "dckr_pat_": r"dckr_pat_[A-Za-z0-9_-]{20,60}",
    "sntrys_": r"sntrys_[A-Za-z0-9_=+/-]{30,300}",
    "hvs.": r"hvs\.[A-Za-z0-9_-]{20,200}",
    "sq0csp-": r"sq0csp-[A-Za-z0-9_-]{40,60}",
    "figd_": r"figd_[A-Za-z0-9_-]{30,80}",
    "ntn_": r"ntn_[A-Za-z0-9]{30,60}",
    "atatt3": r"ATATT3[A-Za-z0-9_=-]{50,300}",
    "age-secret-key-1": r"AGE-SECRET-KEY-1[0-9A-Z]{58}",
    "pat-na1-": r"pat-na1-[0-9a-f-]{36}",
    "lsv2_": r"lsv2_(?:pt|sk)_[0-9a-f]{32}_[0-9a-f]{10}",
    "tvly-": r"tvly-[A-Za-z0-9-]{20,60}",
    "eaaceda": r"EAACEdEose0cBA[0-9A-Za-z]{20,300}",
    "cfat_": r"cfat_[A-Za-z0-9_-]{30,80}",
}
_KEY_PATTERNS: Final = {literal: re.compile(pattern) for literal, pattern in _KEYS.items()}
_TELEGRAM: Final = re.compile(r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])")
_JWT: Final = re.compile(r"eyJ[A-Za-z0-9_-]{8,2048}\.[A-Za-z0-9_-]{8,16000}(?:\.[A-Za-z0-9_-]{0,16000}){1,3}")
_PEM: Final = re.compile(
    r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:[\s\S]{1,20000}?-----END (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----|[A-Za-z0-9+/=\s\\:,_-]*)"
)
_URL: Final = re.compile(r"://([^\s/:@\"'<>\\]{0,256}):([^\s/@\"'<>\\]{1,256})@(?=[\w\[\$])")
_AZURE: Final = re.compile(r"(?i:AccountKey|SharedAccessKey)=([A-Za-z0-9+/]{40,100}={0,2})")
_BEARER: Final = re.compile(r"(?i:bearer)[ :=]{1,3}([A-Za-z0-9._~+/-]{16,}={0,2})")
_BASIC: Final = re.compile(r"(?i:basic) {1,2}([A-Za-z0-9+/]{8,}={0,2})(?![A-Za-z0-9+/=])")

_ASSIGNED: Final = re.compile(
    # the rest of the name, the sign between, and a value: quoted (quotes of JSON in JSON carry backslashes) or one word
    r"(?P<rest>[A-Za-z0-9_-]{0,40})(?P<close>\\*[\"'`]|\*\*)?\]?[ \t]{0,4}"
    r"(?P<sign>=>|:=|={1,3}|:|\bis(?: now| still|:)?(?= )|\bwas(?= )|)[ \t]{0,4}"
    r"(?:(?P<escape>\\*)(?P<quote>[\"'`])(?P<quoted>(?:(?!(?P=escape)(?P=quote))[^\n\r]){1,400})(?P=escape)(?P=quote)"
    r"|(?P<bare>[^\s\"'`,;<>\\]{1,400}))"
)
_FLAG: Final = re.compile(r"(?P<rest>[a-z-]{0,20})[ =](?P<bare>[^\s\"'`,;<>\\]{4,400})")
_STOP: Final = frozenset(
    {
        "string", "str", "none", "null", "nil", "true", "false", "undefined", "required", "optional", "password", "secret", "token",
        "redacted", "hidden", "masked", "removed", "example", "placeholder", "todo", "text", "bytes", "number", "integer", "boolean",
        "any", "object", "secretstr", "varchar", "invalid", "incorrect", "wrong", "missing", "expired", "changed", "reset", "default",
        "your_password", "your-password", "yourpassword", "your_api_key", "your-api-key", "your_token", "your_secret", "enabled",
        "disabled", "unknown", "empty", "value", "password123?", "filtered", "n/a", "function", "const", "self",
    }
)  # fmt: skip
_TEMPLATE: Final = re.compile(
    r"\$\{?[A-Za-z_(]|\{\{|<[^>]*>|%\(|%s|\{[a-z_.]*\}|\*{3,}|x{4,}$|X{4,}$|\.{3,}|•|\[[A-Z]|(?i:your[_-])|(?i:os\.environ|process\.env|getenv|env\.|secrets\.|vault:)"
)
_CODE: Final = re.compile(r"[A-Za-z_][\w.]*(?:\(|\[|\.[A-Za-z_]|->|::)|[A-Za-z_]+\)|[&|=!+\[{(]|lambda\b|await\b")


def _outside(text: str, start: int) -> bool:
    return start == 0 or text[start - 1] not in _WORD


def _key(literal: str) -> Detector:
    pattern = _KEY_PATTERNS[literal]
    loose = literal in ("sk-", "hf_", "npm_", "r8_", "gsk_", "sg.", "xox", "pplx-", "tvly-")

    def detect(text: str, start: int) -> Finding | None:
        # after an escape sequence (`\nsk-...`) the letter before is none of the text's own
        if not _outside(text, start) and not (start > 1 and text[start - 2] == "\\" and text[start - 1] in "nrt"):
            return None
        found = pattern.match(text, start)
        if found is None or (loose and not keyish(found[0][len(literal) :])):
            return None
        return Finding(start, found.end(), "api_key")

    return detect


def _telegram(text: str, start: int) -> Finding | None:
    begin = start
    while begin > 0 and start - begin < 11 and text[begin - 1].isdigit():
        begin -= 1
    found = _TELEGRAM.match(text, begin)
    # in the address of the bot API it follows the word bot
    apart = _outside(text, begin) or text.endswith("bot", 0, begin)
    return Finding(begin, found.end(), "api_key") if found is not None and apart else None


def _jwt(text: str, start: int) -> Finding | None:
    if start > 0 and text[start - 1] in _WORD and not (start > 1 and text[start - 2] == "\\"):
        return None
    found = _JWT.match(text, start)
    return None if found is None else Finding(start, found.end(), "jwt")


def _pem(text: str, start: int) -> Finding | None:
    found = _PEM.match(text, start)
    return None if found is None else Finding(start, found.end(), "private_key")


def _url(text: str, start: int) -> Finding | None:
    found = _URL.match(text, start)
    if found is None or _is_template(found[2]):
        return None
    # user and password go, scheme and host stay: they say what was reached
    return Finding(found.start(1), found.end(2), "url_credentials")


def _azure(text: str, start: int) -> Finding | None:
    found = _AZURE.match(text, start)
    return None if found is None else Finding(found.start(1), found.end(1), "secret")


def _bearer(text: str, start: int) -> Finding | None:
    found = _BEARER.match(text, start) if _outside(text, start) else None
    if found is None or not keyish(found[1]) or _is_template(found[1]):
        return None
    return Finding(found.start(1), found.end(1), "secret")


def _basic(text: str, start: int) -> Finding | None:
    found = _BASIC.match(text, start) if _outside(text, start) else None
    if found is None:
        return None
    try:
        decoded = base64.b64decode(found[1], validate=True)
    except (binascii.Error, ValueError):
        return None
    if b":" not in decoded or not all(32 <= byte < 127 for byte in decoded):
        return None
    return Finding(found.start(1), found.end(1), "secret")


def _assigned(literal: str, *, password: bool) -> Detector:
    def detect(text: str, start: int) -> Finding | None:
        found = _ASSIGNED.match(text, start + len(literal))
        if found is None:
            return None
        name_before = start > 0 and text[start - 1] in _WORD
        quoted, bare, sign = found["quoted"], found["bare"], found["sign"]
        value = quoted if quoted is not None else bare
        if found["rest"].lower().strip("_-").startswith(_NO_SECRET) or (
            found["rest"][:1].isupper() and name_before and literal == "auth"
        ):
            return None
        if quoted is None:
            value = value.rstrip(".)]}")
        group = "quoted" if quoted is not None else "bare"
        begin = found.start(group)
        if _worthless(value) or PLACEHOLDER.match(value):
            return None
        if not sign:
            # nothing but a blank between: only what can hardly be a word
            apart = text[found.end("close" if found["close"] else "rest")] in " \t"
            likely = (
                (password and len(value) >= 6 and _mixed(value))
                if quoted is not None
                else (len(value) >= 20 and keyish(value))
            )
            return Finding(begin, begin + len(value), "secret") if apart and likely else None
        if literal in _SHORT_WORDS and (found["rest"] or name_before or sign.startswith(("is", "was"))):
            return None
        if not password:
            ok = keyish(value)
        elif quoted is not None:
            ok = len(value) >= 4 and not (sign[0] in "iw" and value.isalpha() and value.islower())
            ok = ok and (" " not in value or len(value) < 80) and not value.endswith((":", "."))
        elif sign.startswith(("is", "was")) or (sign == ":" and found["close"] is None):
            # prose: a plain word after it is a sentence going on
            ok = len(value) >= 5 and _mixed(value)
        else:
            ok = len(value) >= 4 and not _CODE.match(value) and (_mixed(value) or len(value) >= 6)
        if ok and quoted is None and _CODE.match(value) and not keyish(value):
            ok = False
        return Finding(begin, begin + len(value), "secret") if ok else None

    return detect


def _flag(text: str, start: int) -> Finding | None:
    """`--password hunter2` of a command line."""
    begin = start + 2
    for name in (
        "password",
        "passwd",
        "token",
        "secret",
        "api-key",
        "auth-token",
        "access-token",
        "client-secret",
        "pass",
    ):
        if text.startswith(name, begin):
            found = re.compile(r"[ =]([^\s\"'`,;<>\\|-][^\s\"'`,;<>\\|]{3,400})").match(text, begin + len(name))
            if found is None or _worthless(found[1]) or _CODE.match(found[1]) or not _mixed(found[1]):
                return None
            return Finding(found.start(1), found.end(1), "secret")
    return None


_NO_SECRET: Final = (
    "length", "len", "count", "hash", "reset", "policy", "field", "input", "type", "name", "id", "file", "path", "url", "uri", "min", "max",
    "expires", "expiry", "ttl", "limit", "usage", "format", "hint", "label", "manager", "rules", "error", "s_used", "izer", "ize", "age",
    "ary", "ity", "entic", "or", "ored",
)  # fmt: skip


def _mixed(value: str) -> bool:
    """Whether it looks chosen as a secret: letters with digits or signs, or capitals within."""
    letters = any(c.isalpha() for c in value)
    digits = any(c.isdigit() for c in value)
    signs = any(not c.isalnum() and c not in "-_.'/" for c in value)
    return (letters and digits) or (letters and signs) or (digits and len(value) >= 6 and value.isdigit()) or (
        any(c.isupper() for c in value[1:]) and any(c.islower() for c in value) and len(value) >= 8
    )  # fmt: skip


def _worthless(value: str) -> bool:
    plain = value.strip("\"'`*_ ").lower()
    return len(plain) < 4 or plain in _STOP or _is_template(value) or len(set(plain)) < 3


def _is_template(value: str) -> bool:
    return _TEMPLATE.match(value) is not None


def keyish(value: str) -> bool:
    """Whether it looks random: long enough, no path or sentence, letters with digits, and as mixed as a random text of its length."""
    if len(value) < 12 or " " in value or _is_template(value):
        return False
    digits = sum(c.isdigit() for c in value)
    if digits == 0:
        upper = sum(c.isupper() for c in value)
        return len(value) >= 20 and 3 <= upper <= len(value) - 3 and entropy(value) >= 3.8 and not _CODE.match(value)
    if digits == len(value) or (value.count("-") > len(value) / 5 and digits < 6):
        return False
    if digits < 3 and any(sep in value for sep in "./-_") and value == value.lower():
        return False
    return entropy(value) >= (2.6 if len(value) < 20 else 3.0)


def entropy(value: str) -> float:
    """Shannon entropy of the characters, bits each: -sum p log2 p."""
    n = len(value)
    return -sum(c / n * math.log2(c / n) for c in Counter(value).values())


SENSITIVE_KEYS: Final = frozenset(
    {
        "password", "passwd", "pwd", "passphrase", "secret", "client_secret", "clientsecret", "secret_key", "secretkey", "api_key",
        "apikey", "api_secret", "access_token", "accesstoken", "auth_token", "authtoken", "refresh_token", "refreshtoken", "private_key",
        "privatekey", "access_key", "secret_access_key", "aws_secret_access_key", "id_token", "session_token", "db_password",
        "user_password", "new_password", "old_password", "current_password", "pin_code", "cvv", "cvc",
    }
)  # fmt: skip
"""Keys of JSON objects whose value is a secret, whatever it looks like. Compared in lower case, `-` as `_`."""


def secret_under(key: str, value: str) -> bool:
    """Whether a value is a secret because of the key that it stands under."""
    if key.lower().replace("-", "_") not in SENSITIVE_KEYS or PLACEHOLDER.fullmatch(value):
        return False
    return len(value) >= 3 and value.lower() not in _STOP and not _is_template(value)


_SHORT_WORDS: Final = ("pass", "pw")
"""Words that stand for a password only alone and right before a sign."""
_PASSWORDS: Final = ("password", "passwd", "passphrase", "passcode", "pwd", "secret", *_SHORT_WORDS)
_TOKENS: Final = (
    "token", "api_key", "api-key", "apikey", "api key", "access_key", "access-key", "accesskey", "access key", "private_key", "secret_key",
    "secretkey", "signing_key", "encryption_key", "authorization", "x-api-key", "credential", "client_id_secret", "sessionid", "session_id",
    "license_key", "_key", "auth",
)  # fmt: skip

DETECTORS: Final[dict[str, tuple[str, Detector]]] = {
    **{literal: ("api_key", _key(literal)) for literal in _KEYS},
    ":aa": ("api_key", _telegram),
    "eyj": ("jwt", _jwt),
    "-----begin": ("private_key", _pem),
    "://": ("url_credentials", _url),
    "accountkey=": ("secret", _azure),
    "sharedaccesskey=": ("secret", _azure),
    "bearer": ("secret", _bearer),
    "basic ": ("secret", _basic),
    "--": ("secret", _flag),
    **{word: ("secret", _assigned(word, password=True)) for word in _PASSWORDS},
    **{word: ("secret", _assigned(word, password=False)) for word in _TOKENS},
}
"""Literal (lower case) -> the kind it may lead to, and how to tell."""
