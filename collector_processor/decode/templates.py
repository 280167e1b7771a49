"""Log bodies -> templates: the text with its variables masked, whose content hash is the event.

How it works. Called once per *distinct* masked hash of the decode kernel, so it may take tens of microseconds.
1. Every word that holds a digit becomes one variable, exactly as the kernel counts it; all that follows reads only this
   normalised text, so two bodies that the kernel takes for one have one template.
2. Structure: a JSON body stands for its message field, a stack trace for its first line and exception class.
3. Masking: dates, addresses, paths, quoted strings, and values of `key=value` pairs, dumps and lists. A word that says
   how something went (`status=FAILED`, `error: no route`) stays: that is what a template is read for.
4. A small Drain (He et al., ICWS 2017): lines of one service that agree in everything but some plain words form a
   cluster. A place where a cluster has shown `distinct_min` different words is a variable from then on. Until then the
   masked text is the template, so ids depend on the order of arrival only while a variable place is being learned.
"""

from __future__ import annotations

import re
import string
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import orjson

VARIABLE: Final = "<*>"
TEMPLATE_CHARS_MAX: Final = 480
BODY_CHARS_MAX: Final = 4096
CLUSTERS_OF_SHAPE_MAX: Final = 32
MASKED_MAX: Final = 1024  # masked texts kept
SNAPSHOT_VERSION: Final = 2
DEPTH_MAX: Final = 12  # of groups: deeper than anybody reads
HIDDEN: Final = "\0"  # stands for a group or quoted string in what holds it; no control character is left then
MESSAGE_FIELDS: Final = ("message", "msg", "body", "event", "log")

# In the normalised text a word is a run of these, as in the kernel: every non-ASCII character counts as a letter.
# Written as what it is not, because `re` takes milliseconds over each range that goes beyond ASCII.
_W: Final = r"[^\x00-/:-@\[-^`{-\x7f]"
_DIGIT_WORD: Final = re.compile(rf"(?<!{_W})[^\x00-@\[-^`{{-\x7f]*+[0-9]{_W}*+")
_DIGITS_JOINED: Final = re.compile(rf"[0-9]{_W}*+(?:[-.:/+,@%][^\x00-@\[-^`{{-\x7f]*+[0-9]{_W}*+|-{_W}++)*+")
_JOINED: Final = re.compile(rf"0(?!{_W})(?<!{_W}0)(?:[-.:/+,@%]0(?!{_W})|-{_W}++)*+")  # the same of words `0`
_WORD_SIGNS: Final = string.ascii_letters + string.digits + "_"
_NO_WORD: Final = frozenset(("", *map(chr, range(128)))).difference(_WORD_SIGNS)
_MONTH: Final = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}"
# What is masked as a whole: (what a text with such a thing contains, pattern). Earlier ones win at the same place.
_ATOMS: Final = (
    (
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"),
        rf"\b(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]{{0,6}},? )?(?:0[ -])?{_MONTH}[ -]+0(?:,? 0)*(?: [A-Z]{{2,5}} 0)?",
    ),  # date
    (("://",), r"[A-Za-z][A-Za-z0-9+.-]{1,15}://[^\s\"'<>()\[\]{},]+"),  # URL
    (("@",), r"(?<![\w.+-])[\w.+-]++@\w++(?:[.-]\w++)++"),  # e-mail
    # path of two segments or more
    (("/",), r"(?<![\w./<])(?:/[\w.@%+~:$-]+){2,}/?(?:\?[^\s\"'\])}]*)?"),
    ((":\\",), r"(?<!\w)[A-Za-z]:\\[^\s\"']+"),  # Windows path
)
_HEX: Final = r"(?<!\w)[a-fA-F]{12,}(?!\w)"  # hexadecimal without a digit
_HEX_RUN: Final = re.compile(r"[a-fA-F]{12}")
_ATOM_SIGN: Final = re.compile(r"/|@|:\\|Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec")  # stands in every other one
_ZERO: Final = re.compile(rf"0(?!{_W})(?<!{_W}0)")  # the word `0`
_ANSI: Final = re.compile(r"\x1b\[0?m?")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]+")
_VALUE: Final = re.compile(rf"{HIDDEN}|=(?:{_W}++)|:(?:{_W}++)")
# A key of at most nine words and signs, and what it is set off by.
_PAIR: Final = re.compile(rf"(\s*+{_W}++|(?:{_W}++|\s++|[{HIDDEN}!-/:-@\[-^`{{-~]){{1,9}}?)([=:])")
_WORD: Final = re.compile(rf"{_W}+\Z")
# A word that can be a variable: a plain one, not an identifier, not part of a dotted name, not a level or a key.
_PLACE: Final = re.compile(rf"(?<!{_W})(?<![.$#])([A-Z]?[^\x00-`{{-\x7f]++|[A-Z]++)(?!{_W})(?![$#(=:])(?!\.[^ ])")
_EXCEPTION: Final = re.compile(
    rf"^\s*(?:Caused by: |\[.{{0,40}}\] )?((?:{_W}+[.$])*{_W}*(?:Exception|Error|Failure|Fault|Panic|Interrupt))"
    rf"(?!{_W})",
    re.MULTILINE,
)
_MESSAGE: Final = re.compile(r'"(?:' + "|".join(MESSAGE_FIELDS) + r')"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)')


Redact = Callable[[str, str], str]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Keys whose value tells how it went, and words that tell it themselves: never masked, never a variable.
_OUTCOME_KEYS: Final = _words(
    """
    status state result outcome success error err exception reason cause msg message level severity lvl event
    action decision code ok valid verdict phase warning fatal failure failed
    """
)
_OUTCOME_WORDS: Final = _words(
    """
    success successful successfully succeeded ok fail fails failed failing failure error errors exception
    invalid denied declined rejected refused unauthorized forbidden timeout expired aborted cancelled canceled
    missing lost unavailable unreachable unknown wrong null none nil nan true false no not never cannot unable
    without retry retrying retried rollback rolled duplicate conflict mismatch corrupt corrupted overflow
    underflow exceeded insufficient blocked trace debug info notice warn warning fatal critical severe
    """
)
_NULLS: Final = frozenset(("null", "none", "nil", "nan", "undefined"))
_OPEN: Final = {"[": "]", "(": ")", "{": "}"}


def _stops(is_prose: bool) -> re.Pattern[str]:
    """What the reader stops at: strings as a whole, a group as a whole that has no other in it, other brackets.

    `[.` is an abbreviated logger name (`o.a.c.c.C.[.[.[/]`), not a group. In prose, a group stays that holds neither
    a pair nor a list. (`re` is fast at finding patterns whose every choice starts with a certain sign.)"""
    choices = [r'"[^"\\]*(?:\\.[^"\\]*)*"?', rf"'(?<!{_W}')[^']*'(?!{_W})"]
    for opening, closing in _OPEN.items():
        stays = rf"|(?!\s)[^=:,;()\[\]{{}}\"']*+(?<!\s)\{closing}" if is_prose else ""
        choices.append(rf"\{opening}(?!\.{stays})(?:[^()\[\]{{}}\"']*+\{closing})?")
        choices += [] if is_prose else [rf"\{closing}"]
    return re.compile("|".join(choices), re.DOTALL)


_IN_PROSE: Final = _stops(is_prose=True)
_IN_GROUP: Final = _stops(is_prose=False)


class _Group:
    """A bracketed group that is being read, or the prose around all of them, which has no brackets."""

    __slots__ = ("closing", "inside", "opening", "text")

    def __init__(self, opening: str) -> None:
        self.opening = opening
        self.closing = _OPEN.get(opening)
        self.text = ""  # what was read of it, with HIDDEN for each group and quoted string in it
        self.inside: list[str] = []  # what HIDDEN stands for: groups masked, strings as they are


def _read(text: str) -> str:
    """Masks normalised text that holds pairs, dumps and lists. It jumps from one bracket or quote to the next."""
    group = _Group("")
    stack = [group]
    shown = at = 0
    while found := (_IN_GROUP if len(stack) > 1 else _IN_PROSE).search(text, at):
        start, at = found.span()
        sign = text[start]
        if sign in _OPEN and len(stack) > DEPTH_MAX:
            group.text += text[shown:start] + VARIABLE
            at = start + 1
        elif sign in _OPEN:
            group.text += text[shown:start]
            if at == start + 1:
                group = _Group(sign)
                stack.append(group)
            else:  # all of a group with no other in it
                group.text += HIDDEN
                group.inside.append(sign + _items(text[start + 1 : at - 1], [], len(stack)) + text[at - 1])
        elif sign == group.closing:
            group.text += text[shown:start]
            group = _end_group(stack)
        elif at > start + 1:
            group.text += text[shown:start] + HIDDEN
            group.inside.append(found[0])
        else:
            continue
        shown = at
    group.text += text[shown:]
    while len(stack) > 1:
        group = _end_group(stack, is_cut=True)
    return _prose(group.text, group.inside)


def _end_group(stack: list[_Group], is_cut: bool = False) -> _Group:
    """Masks the innermost group; returns the one around it."""
    group = stack.pop()
    masked = _items(group.text, group.inside, len(stack), is_cut)
    stack[-1].text += HIDDEN
    stack[-1].inside.append(f"{group.opening}{masked}{group.closing}")
    return stack[-1]


def _prose(text: str, inside: list[str]) -> str:
    """Prose stays, pairs keep their keys: a quoted string, and a word right behind `key=` or `key:`, is a variable."""
    out: list[str] = []
    hidden = iter(inside)
    shown = 0
    last, last_at = "", 0  # the value that was read last as it is shown, and where it began
    for found in _VALUE.finditer(text):
        start, end = found.span()
        is_hidden = text[start] == HIDDEN
        sign = start - 1 if is_hidden else start
        key, key_at = "", 0
        if sign > 0 and text[sign] in "=:":
            if sign == shown:
                key, key_at = last.strip("\"'"), last_at
            else:
                key = _last_word(text[shown:sign])
                key_at = sign - len(key)
                if text[key_at - 1 : key_at] == " ":
                    key = key.lstrip()  # blanks that are not ASCII are letters, but not right behind one that is
        if is_hidden:
            value = next(hidden)
            is_fixed = value[0] in _OPEN or text[end : end + 1] == ":" or _tells(key, value)
        else:
            start += 1
            value = text[start:end]
            is_method = text[sign] == ":" and key_at > 0 and text[key_at - 1] == ":"  # `Class::method`
            is_fixed = is_method or not _WORD.match(key) or _tells(key, value)
        last, last_at = value if is_fixed else VARIABLE, start
        out += (text[shown:start], last)
        shown = end
    out.append(text[shown:])
    return "".join(out)


def _tells(key: str, value: str) -> bool:
    """Whether `value` says how something went, so that it must stay readable."""
    value = value.strip().strip("\"'")
    if value.lower() in _NULLS:
        return True
    name = key.lower()
    if name not in _OUTCOME_KEYS and not name.endswith(("exception", "error", "status")):
        return False
    return len(value) <= 120 and "=" not in value and VARIABLE not in value


def _items(text: str, inside: list[str], depth: int, is_cut: bool = False) -> str:
    """The inside of a group: pairs keep their keys at the first level, deeper only what tells an outcome. `is_cut`: the
    length limit cut it off."""
    items = text.replace(";", ",").split(",")
    if is_cut and len(items) > 1:
        items.pop()
    if depth > 2:
        return VARIABLE if any(items) else ""
    hidden = iter(inside)
    parts: list[str] = []
    masked = False
    words = 0
    for item in items:
        pair = _PAIR.match(item)
        if pair is None:
            plain = _revealed(item, hidden).strip()
            if plain:
                words += bool(_WORD.match(plain))
                parts.append(_unquoted(plain))
            continue
        key = _revealed(pair[1], hidden).strip().strip("\"'")
        value = _revealed(item[pair.end() :], hidden).strip()
        last = key.rsplit(" ", 1)[-1].rsplit(".", 1)[-1]
        if _tells(last, value):
            parts.append(f"{key}{pair[2]}{value}")
        elif depth > 1:
            masked = True
        else:
            nested = value.endswith(("]", ")", "}")) and not value.startswith(VARIABLE)
            parts.append(f"{key}{pair[2]}{_nested(value) if nested else VARIABLE}")
    if words and words == len(parts) == len(items) and (words > 1 or depth > 1):
        return VARIABLE
    unique = list(dict.fromkeys(parts))
    if depth > 1 and len(unique) > 3:
        unique, masked = [], True
    return ", ".join([*unique, VARIABLE] if masked else unique)


def _revealed(text: str, hidden: Iterator[str]) -> str:
    """`text` with the next of `hidden` for each HIDDEN."""
    if HIDDEN not in text:
        return text
    first, *rest = text.split(HIDDEN)
    return first + "".join(next(hidden) + piece for piece in rest)


def _nested(value: str) -> str:
    """A value that ends in a group: the group, with what stands before it when that is a type name."""
    head = value[: min((value.find(c) for c in _OPEN if c in value), default=0)]
    return value if not head or _WORD.match(head) else VARIABLE + value[len(head) :]


def _unquoted(text: str) -> str:
    return VARIABLE if text[0] in "\"'" and len(text) > 1 else text


def _normalise(body: str) -> str:
    """`body` with every variable word as `0`: the only thing later steps read, so they agree with the kernel's hash."""
    text = body[:BODY_CHARS_MAX]
    if "\x1b" in text:
        text = _ANSI.sub("", _DIGIT_WORD.sub("0", text))
        return _joined(text, _JOINED)
    return _joined(text, _DIGITS_JOINED)


def _joined(text: str, variables: re.Pattern[str]) -> str:
    """`text` with `0` for each of `variables`, which begins at a digit, and what it ends: a word and what `-` joins."""
    pieces = variables.split(text)
    for i in range(len(pieces) - 1):
        piece = pieces[i]
        if piece[-1:] not in _NO_WORD:
            piece = _without_last_word(piece)
        while piece[-1:] == "-" and (shorter := _without_last_word(piece[:-1])) != piece[:-1]:
            piece = shorter
        pieces[i] = piece
    return "0".join(pieces)


def _without_last_word(text: str) -> str:
    """`text` up to the word that it ends with; all of it when it ends with none."""
    shorter = text.rstrip(_WORD_SIGNS)
    while shorter[-1:] > "\x7f":
        shorter = shorter[:-1].rstrip(_WORD_SIGNS)
    return shorter


def _last_word(text: str) -> str:
    """The word that `text` ends with, or nothing."""
    return text[len(_without_last_word(text)) :]


def _without_atoms(text: str) -> str:
    """`text` with `0` for each date, address, path and hexadecimal number. Only what can be there is looked for."""
    is_hex = _HEX_RUN.search(text) is not None
    if not is_hex and not _ATOM_SIGN.search(text):
        return text
    there = tuple(any(sign in text for sign in signs) for signs, _ in _ATOMS)
    pattern = _atoms(there, is_hex)
    return pattern.sub("0", text) if pattern is not None else text


@cache
def _atoms(there: tuple[bool, ...], is_hex: bool) -> re.Pattern[str] | None:
    """One pattern for the chosen of _ATOMS and, with `is_hex`, hexadecimal numbers; None when nothing is chosen."""
    chosen = [pattern for (_, pattern), wanted in zip(_ATOMS, there, strict=True) if wanted] + [_HEX] * is_hex
    return re.compile("|".join(chosen)) if chosen else None


def _message(text: str) -> str:
    """What a structured body says: its message field, else its sorted keys; other text as it is."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = _MESSAGE.search(text)
        return found.group(1) if found else text
    for _ in range(3):
        if not isinstance(value, dict):
            break
        lowered = {str(key).lower(): item for key, item in value.items()}
        inner = next((lowered[name] for name in MESSAGE_FIELDS if lowered.get(name) not in (None, "")), None)
        if inner is None:
            return "{" + ", ".join(f"{key}={_scalar(value[key])}" for key in sorted(value)[:32]) + "}"
        value = inner
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _scalar(value: Any) -> str:
    """A JSON value as the masking wants to see it: words stay (it decides by the key), all else is a variable."""
    return value if isinstance(value, str) and re.fullmatch(rf"{_W}+(?: {_W}+)*", value) else "0"


def _first_line(text: str) -> str:
    """The first line that says something, and for a stack trace the class of the exception."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2:
        return lines[0] if lines else ""
    names = _EXCEPTION.findall("\n".join(lines[1:]))
    if not names:
        return lines[0]
    name = names[-1] if lines[0].startswith("Traceback") else names[0]
    return lines[0] if name in lines[0] else f"{lines[0]} | {name}"


def mask(body: str, redact: Redact | None = None) -> str:
    """The masked text of a log body: at most `TEMPLATE_CHARS_MAX` characters, variables as `<*>`, blanks squeezed.

    redact(text, mark): the text with `mark` for what must not be kept; it gets the normalised text."""
    return _masked(_normalise(body), redact)


def _masked(text: str, redact: Redact | None) -> str:
    """`mask` of what `_normalise` gave."""
    if redact is not None:
        text = redact(text, "0")
    text = _first_line(_message(text))
    if not text.isprintable():
        text = _CONTROL.sub(" ", text)
    text = _without_atoms(text)
    text = _joined(text, _JOINED) if "-0" in text else _JOINED.sub("0", text)
    text = _ZERO.sub(VARIABLE, " ".join(_read(text).split()))
    while f"{VARIABLE}, {VARIABLE}" in text:
        text = text.replace(f"{VARIABLE}, {VARIABLE}", VARIABLE)
    if len(text) > TEMPLATE_CHARS_MAX:
        text = text[:TEMPLATE_CHARS_MAX].rsplit(" ", 1)[0]
    return text


@dataclass(slots=True)
class _Cluster:
    """Lines that agree in all but plain words. `words[i]`: what place i has shown; None once it is a variable."""

    service: int
    shape: tuple[str, ...]  # what stands before, between and after the places
    words: list[set[str] | None]

    def likeness(self, words: list[str]) -> float:
        """Share of the places whose word is known there; 0 when no fixed place agrees."""
        fixed = free = 0
        for word, seen in zip(words, self.words, strict=True):
            if seen is None:
                free += 1
            elif word in seen:
                fixed += 1
        return (fixed + free) / len(words) if fixed else 0.0


class Templates:
    """Templates of all services. `limit` bounds the clusters kept; the one unused longest goes first.

    `distinct_min`: different words in one place before that place counts as a variable. Fewer would take the handful of
    verbs of a state machine (`order created`, `order paid`, ...) for a variable.
    """

    def __init__(self, limit: int, distinct_min: int = 8, redact: Redact | None = None) -> None:
        self.limit = limit
        self._redact = redact
        self.distinct_min = distinct_min
        self._clusters: OrderedDict[int, _Cluster] = OrderedDict()
        self._shapes: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        self._next = 0
        self._masked: dict[str, list[str]] = {}  # by normalised text: several hashes of the kernel share one

    def __len__(self) -> int:
        return len(self._clusters)

    def template(self, service_key: int, body: str) -> str:
        """The template of `body` as logged by the service whose content hash is `service_key`."""
        parts = self._parts(body).copy()
        words = parts[1::2]
        if len(words) < 2:
            return "".join(parts)
        shape = tuple(parts[::2])
        cluster = self._most_like(service_key, shape, words)
        if cluster is None:
            self._add(_Cluster(service_key, shape, [{word} for word in words]))
            return "".join(parts)
        for place, word in enumerate(words):
            seen = cluster.words[place]
            if seen is not None:
                seen.add(word)
                if len(seen) >= self.distinct_min:
                    cluster.words[place] = seen = None
            if seen is None and word.lower() not in _OUTCOME_WORDS:
                parts[2 * place + 1] = VARIABLE
        return "".join(parts)

    def _parts(self, body: str) -> list[str]:
        """The masked text: what stands between two places, and the words there, by turns."""
        text = _normalise(body)
        parts = self._masked.get(text)
        if parts is None:
            if len(self._masked) >= MASKED_MAX:
                self._masked.clear()
            parts = self._masked[text] = _PLACE.split(_masked(text, self._redact))
        return parts

    def _most_like(self, service: int, shape: tuple[str, ...], words: list[str]) -> _Cluster | None:
        """The cluster most like `words` among those of the same shape; None, and room for one, when none is like
        enough."""
        numbers = self._shapes.get((service, shape), [])
        best, found = 0.0, -1
        for number in numbers:
            likeness = self._clusters[number].likeness(words)
            if likeness > best:
                best, found = likeness, number
        if best >= 0.5 or (found >= 0 and len(numbers) >= CLUSTERS_OF_SHAPE_MAX):
            self._clusters.move_to_end(found)
            return self._clusters[found]
        if len(numbers) >= CLUSTERS_OF_SHAPE_MAX:
            self._drop(numbers[0])
        return None

    def _add(self, cluster: _Cluster) -> None:
        if len(self._clusters) >= self.limit:
            self._drop(next(iter(self._clusters)))
        self._clusters[self._next] = cluster
        self._shapes.setdefault((cluster.service, cluster.shape), []).append(self._next)
        self._next += 1

    def _drop(self, number: int) -> None:
        cluster = self._clusters.pop(number)
        key = (cluster.service, cluster.shape)
        self._shapes[key].remove(number)
        if not self._shapes[key]:
            del self._shapes[key]

    def snapshot(self) -> dict[str, Any]:
        """The clusters, least recently used first, as plain lists; `restore` takes them back."""
        return {
            "version": SNAPSHOT_VERSION,
            "clusters": [
                {
                    "service": cluster.service,
                    "shape": list(cluster.shape),
                    "words": [None if seen is None else sorted(seen) for seen in cluster.words],
                    "number": number,
                }
                for number, cluster in self._clusters.items()
            ],
            "next": self._next,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes back what `snapshot` gave. ValueError when the version is unknown."""
        version = state.get("version")
        if version not in (1, SNAPSHOT_VERSION):
            raise ValueError(f"templates snapshot has version {version!r}, expected {SNAPSHOT_VERSION}")
        self._clusters = OrderedDict()
        self._shapes = {}
        for entry in state["clusters"]:
            words = [None if seen is None else set(seen) for seen in entry["words"]]
            shape = _joined_pieces(entry["shape"]) if version == 1 else tuple(entry["shape"])
            self._clusters[int(entry["number"])] = _Cluster(int(entry["service"]), shape, words)
        for number in sorted(self._clusters):
            cluster = self._clusters[number]
            self._shapes.setdefault((cluster.service, cluster.shape), []).append(number)
        self._next = int(state["next"])


def _joined_pieces(pieces: list[str]) -> tuple[str, ...]:
    """The shape of a snapshot of version 1, which held every word and sign by itself and places as empty strings."""
    parts = [""]
    for piece in pieces:
        if piece:
            parts[-1] += piece
        else:
            parts.append("")
    return tuple(parts)
