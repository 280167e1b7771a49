"""Card numbers, account numbers and secrets out of whatever is kept, sent or logged.

How it works. Names and log bodies are looked at once, on first sight, before anything is made of them: `Redactor` gives
the text with what must not be kept replaced. What a text cannot hold (too few digits, none of the words that announce a
secret) is not looked for in it. Card numbers are found by the kernel that also masks requests (kernels/redact.py).
`Masker` does the same to a whole request before it reaches the journal, in place and length by length: the kernel masks
card numbers and attributes, and points out the few texts in which a secret may stand, which are then looked at here.
`redacted_event` is a step of structlog's: our own log lines, tracebacks too, go through a `Redactor`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import MutableMapping
from functools import partial
from typing import Any, Final

import numpy as np

from collector_processor.config import RedactionConfig
from collector_processor.kernels import redact as kernel
from collector_processor.model import U8, U64, Signal

MARK: Final = "<redacted>"
_DIGITS: Final = re.compile(r"\d(?:\D{0,9}\d){12}")  # as many digits as a card number has, near enough
_DIGIT: Final = re.compile(r"[0-9]")
_IBAN: Final = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{1,4}){3,8}", re.IGNORECASE)
_EMAIL: Final = re.compile(r"[\w.+-]+@\w+(?:[.-]\w+)+")

# Secrets that announce themselves. The group `secret` is what must not be kept.
_ANNOUNCED: Final = (
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?P<s1>.*?)(?:-----END|\Z)",
    r"\b(?:bearer|basic|apikey)\s+(?P<s2>(?=[^\s\"',;]*(?:[0-9=]|(?-i:[a-z][A-Z]))|[^\s\"',;]{16})[^\s\"',;]{6,})",
    r"\b(?P<s3>eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{2,}(?:\.[A-Za-z0-9_-]*)?)",
    r"://[^/\s:@\"']*:(?P<s4>[^/\s@\"']+)@",
    (
        r"\b(?P<s5>(?:AKIA|ASIA)[0-9A-Z]{16}|gh[opsur]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
        r"|xox[abeoprs]-[\w-]{10,}|[spr]k_(?:live|test)_\w{10,}|sk-[\w-]{20,}|AIza[\w-]{35})"
    ),
)
_HINTS: Final = re.findall(  # for the kernel: four characters of each, blanks left out
    r"\S+",
    """
    bear asic apik vate eyja eyjb eyjc eyje eyjh eyji eyjj eyjk eyjl eyjr eyj0 eyj4 eyj6 akia asia aiza sk-a sk-p sk-s
    ghp_ gho_ ghs_ ghu_ ghr_ pat_ lpat xoxa xoxb xoxe xoxo xoxp xoxr xoxs ive_ est_
    """,
)
# One of these stands, in lower case, in whatever _ANNOUNCED finds something in: a sign, and words that hold it.
_WORDS: Final = (
    *((scheme, tuple(scheme + blank for blank in " \t\n\r\f\v")) for scheme in ("bearer", "basic", "apikey")),
    *((word, (word,)) for word in ("private key", "eyj", "akia", "asia", "aiza")),
    ("-", ("glpat-", "xox", "sk-")),
    ("_", ("k_live_", "k_test_", "github_pat_", "gho_", "ghp_", "ghs_", "ghu_", "ghr_")),
)
_SEPARATORS: Final = str.maketrans("", "", "_.-")


def _pattern(config: RedactionConfig) -> str | None:
    """One pattern for all that the config wants out and that is not found by its digits."""
    parts: list[str] = []
    if config.secrets:
        parts += _ANNOUNCED
    if config.attributes:
        names = "|".join(_name(name) for name in sorted(config.attributes, key=len)[::-1])
        value = r"(?:(?:bearer|basic|digest|token|apikey)\s+)?(?P<s6>[^\s\"',;&)\]}]+)"
        quoted = r"\\?\"(?P<s7>[^\"\\]*)|'(?P<s8>[^']*)"
        parts.append(rf"(?:{names})\\?[\"']?\s*[:=]\s*(?:{quoted}|{value})")
    return "|".join(f"(?:{part})" for part in parts) if parts else None


def _name(name: str) -> str:
    """A pattern for a name in a text; a short one must not be the end of a word (`pin` of `mapping`)."""
    pattern = re.sub(r"_|\\-", "[_.-]?", re.escape(name))
    return pattern if len(name) > 4 else f"(?<![A-Za-z]){pattern}"


class Redactor:
    """Gives texts without what must not be kept. A pure function of the text, once made."""

    def __init__(self, config: RedactionConfig) -> None:
        self._config = config
        pattern = _pattern(config)
        self._pattern = None if pattern is None else re.compile(pattern, re.IGNORECASE | re.DOTALL | re.ASCII)
        self._own = [re.compile(pattern) for pattern in config.patterns]
        # What a text in lower case holds if `_pattern` finds something: a word; or a name, joined up, with `=` or `:`.
        self._words = _WORDS if config.secrets else ()
        names = {name.casefold().translate(_SEPARATORS) for name in config.attributes}
        self._names = [(name, re.compile(re.escape(name) + r"[\s\"'\\]*[:=]").search) for name in sorted(names)]

    def __call__(self, text: str, mark: str = MARK) -> str:
        """`text` with `mark` for each card number, account number, secret and whatever else the config names."""
        config = self._config
        if config.cards and _DIGITS.search(text):
            text = _without_cards(text, mark)
        if config.ibans and _DIGIT.search(text):
            text = _IBAN.sub(partial(_without_iban, mark=mark), text)
        return self.words(text, mark)

    def words(self, text: str, mark: str = MARK) -> str:
        """The same for what is not found by its digits, in a text that has none left but those of other scripts."""
        if self._config.cards and not text.isascii() and _DIGITS.search(text):
            text = _without_cards(text, mark)
        if self._pattern is not None and self._may_hold(text):
            text = self._pattern.sub(partial(_without_secret, mark=mark), text)
        if self._config.emails and "@" in text:
            text = _EMAIL.sub(mark, text)
        for pattern in self._own:
            text = pattern.sub(mark, text)
        return text

    def _may_hold(self, text: str) -> bool:
        if "@" in text and "://" in text:
            return True
        lower = text.casefold()
        for sign, words in self._words:
            if sign in lower:
                for word in words:
                    if word in lower:
                        return True
        joined = lower.replace("_", "").replace("-", "").replace(".", "")
        named = [assigned for name, assigned in self._names if name in joined]
        return any(assigned(joined) for assigned in named)


def _without_cards(text: str, mark: str) -> str:
    """Digits of every script count, as a reader would take them."""
    plain = text
    if not text.isascii():
        plain = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    data = plain.encode("utf-8", "replace")
    buffer = np.frombuffer(data, np.uint8)
    out, shown, start = [], 0, 0
    while True:
        start, end = kernel.find_card(buffer, start, len(data))
        if start < 0:
            break
        first, last = (len(data[:at].decode("utf-8", "replace")) for at in (start, end))
        out += [text[shown:first], mark]
        shown, start = last, end
    return "".join([*out, text[shown:]])


def _without_iban(found: re.Match[str], mark: str) -> str:
    """The longest part of the match, of whole groups, whose check digits are right (ISO 13616) is replaced."""
    text = found[0]
    for end in (len(text), *(at for at in range(len(text) - 1, 14, -1) if text[at] in " -")):
        compact = re.sub(r"[ -]", "", text[:end]).upper()
        if 15 <= len(compact) <= 34 and int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1:
            return mark + text[end:]
    return text


def _without_secret(found: re.Match[Any], mark: Any) -> Any:
    """The whole match with its secret replaced."""
    start, end = found.span(found.lastgroup or 0)
    return found[0][: start - found.start()] + mark + found[0][end - found.start() :]


def _stars(found: re.Match[bytes]) -> bytes:
    start, end = found.span(found.lastgroup or 0)
    return _without_secret(found, b"*" * (end - start))  # type: ignore[no-any-return]  # of the match's own type


class Masker:
    """Masks whole requests, byte by byte, so that nothing in them moves. One may be used by any number of threads."""

    def __init__(self, config: RedactionConfig) -> None:
        pattern = _pattern(config)
        self._cards = config.cards
        self._pattern = None if pattern is None else re.compile(pattern.encode(), re.IGNORECASE | re.DOTALL | re.ASCII)
        names = [name.encode() for name in config.attributes]
        hashes = [kernel.name_hash(np.frombuffer(name, np.uint8), 0, len(name)) for name in names]
        self._names: U64 = np.array(hashes, np.uint64)
        tails = {name[-3:].lower() for name in names}
        hints = [*(hint.encode() for hint in _HINTS if config.secrets), *(t + c for t in tails for c in (b"=", b":"))]
        self._hints: U64 = np.array(sorted({int.from_bytes(hint, "big") for hint in hints}), np.uint64)
        self._hint_table: U8 = np.zeros(4096, np.uint8)
        for hint in self._hints:
            self._hint_table[int(hint) * 0x9E3779B1 % 2**32 >> 20] = 1

    def __call__(self, data: bytes, signal: Signal) -> bytes:
        """The request with every card number, secret and named attribute overwritten; as it is when it is malformed."""
        buffer = np.frombuffer(bytearray(data), np.uint8)
        table = kernel.LOGS_TABLE if signal == Signal.LOGS else kernel.SPANS_TABLE
        stack = np.empty((kernel.DEPTH, 3), np.int64)
        flagged = np.empty((256, 2), np.int64)
        while True:
            masked, found = kernel.mask(
                *(buffer, table, self._names, self._cards, self._hint_table, self._hints, flagged, stack)
            )
            if found <= len(flagged):
                break
            flagged = np.empty((found, 2), np.int64)
        out = buffer.tobytes() if masked > 0 else data
        if found and self._pattern is not None:
            return self._without_secrets(out, flagged[:found].tolist())
        return out

    def _without_secrets(self, data: bytes, places: list[list[int]]) -> bytes:
        assert self._pattern is not None
        parts, shown = [], 0
        for start, end in places:
            text = self._pattern.sub(_stars, data[start:end])
            if text != data[start:end]:
                parts += [data[shown:start], text]
                shown = end
        return b"".join([*parts, data[shown:]]) if parts else data


def redacted_event(redactor: Redactor, _logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
    """A step of structlog's: every text of the event redacted; what is neither text nor number becomes text first."""
    for key, value in event.items():
        if not isinstance(value, bool | int | float | None):
            event[key] = redactor(value if isinstance(value, str) else str(value))
    return event
