r"""Go's regular expressions (regexp/syntax of Go 1.26), for ``~=`` in containerd's filters.

A client that may list may send any expression, and the loop that matches it serves all clients. So the time of a match
is bounded, by RE2, which walks the text once. RE2's syntax is nearly Go's. Here Go's syntax is parsed, token by token,
with Go's error messages and limits (repeat counts to 1,000 in all, 1,000 levels), and written again so that RE2 takes
it in the same meaning. ``\C`` is refused; names of groups are dropped (Go accepts a name twice); ``\p{...}`` is looked
up as Go does (``\p{greek}``, ``\p{Letter}``, ``\p{ASCII}``; not ``\p{Old_Italic}``, which Go 1.26 does not find
either).

Linear time in the text is not yet cheap: RE2's worst case is the size of the program for each byte. :data:`EXPRESSION`,
:data:`SIZE` and :data:`STEPS` bound that product. RE2 is loaded with the first expression, since it costs a process 3
MB.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Generator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import chain
from types import ModuleType
from typing import Any

from services.kit import memory
from services.kit.unicode_categories import ALIASES, MINOR

EXPRESSION = 5 << 10
"""Characters of an expression. Go has no such limit. RE2 holds the interpreter while it compiles, so meanwhile the
process answers nobody: for 1 to 3 ms with an expression at these bounds, 7 ms until it finds that one is too large, and
15 ms if thousands of letters match without regard to case.
"""

CLASSES = 4
"""Unicode classes (``\\pL``) in an expression: each is hundreds of ranges, and costs RE2 a millisecond."""

SIZE = 8 << 10
"""Instructions of an expression as Go counts them. Go allows 3,355,443, which would hold a loop for minutes over a text
of a few kilobytes.
"""

STEPS = 1 << 20
"""Instructions times characters of text for one match: some 15 ms at RE2's slowest, microseconds usually."""

REPEAT = 1000
DEPTH = 1000
CACHE_BYTES = 64 << 20
"""Bytes that all compiled expressions of a process may take together. Each counts with the most that RE2 may use for
it.
"""


class Expression:
    """A checked expression. ``size`` is Go's measure of its program. It is compiled when it is first matched, and again
    after the cache has dropped it.
    """

    __slots__ = ("_cache", "_source", "size", "steps")

    def __init__(self, source: bytes, size: int, steps: int, cache: Cache) -> None:
        self._source = source
        self._cache = cache
        self.size = size
        self.steps = steps

    def found_in(self, text: str) -> bool:
        """Go's MatchString. Each byte that is not UTF-8 (a lone surrogate here) is the character U+FFFD, as for Go.
        ValueError if it would be too much work.
        """
        compiled, instructions = self._cache.compiled(self._source)
        if instructions * len(text) > self.steps:
            raise ValueError(
                f"an expression of {instructions} instructions is too large for a text of {len(text)} characters"
            )
        return compiled.search(_valid(text)) is not None


def compile(pattern: str, steps: int = STEPS, cache: Cache | None = None) -> Expression:  # noqa: A001 - as re.compile
    """Check and translate ``pattern``; each match is bounded by ``steps``. ValueError, in Go's words, if Go would not
    compile it, or it exceeds a limit. ``cache`` replaces the process's.
    """
    making = compiling(pattern, steps, cache)
    while True:
        try:
            next(making)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def compiling(pattern: str, steps: int = STEPS, cache: Cache | None = None) -> Generator[None, None, Expression]:
    """:func:`compile`, in small steps. RE2's work is one of them, and the largest."""
    if len(pattern) > EXPRESSION:
        raise ValueError(f"error parsing regexp: expression too large: {len(pattern)} characters, at most {EXPRESSION}")
    parser = _Parser(pattern)
    source = (yield from parser.translating()).encode()
    yield
    cache = _CACHE if cache is None else cache
    expression = Expression(source, parser.size, steps, cache)
    cache.compiled(source)  # what RE2 refuses beyond that is refused now
    return expression


def _valid(text: str) -> bytes:
    try:
        return text.encode()
    # a surrogate that stands for a byte becomes one U+FFFD; another becomes three, since it would take three bytes
    except UnicodeEncodeError:
        return "".join(
            "\ufffd" if "\udc80" <= c <= "\udcff" else "\ufffd" * 3 if "\ud800" <= c <= "\udfff" else c for c in text
        ).encode()


_MEMORY = (256 << 10, 512 << 10)
"""Bytes that RE2 may use for an expression: a quarter for the program, most of the rest for states. The second value is
for programs that do not fit into the first.
"""


@cache
def _re2() -> ModuleType:
    import re2

    module: ModuleType = re2
    return module


class Cache:
    """Compiled expressions, which take ``most`` bytes together. Its methods may be called from several threads, since
    some matches run in threads.
    """

    def __init__(self, most: int = CACHE_BYTES) -> None:
        self._most = most
        self._compiled: OrderedDict[bytes, tuple[Any, int, int]] = OrderedDict()
        self._used: set[bytes] = set()
        """The expressions used since the last :meth:`forget_unused`."""
        self._looking = threading.Lock()
        self.size = 0
        """Bytes; each expression counts with the most that RE2 may use for it."""

    def __len__(self) -> int:
        return len(self._compiled)

    def compiled(self, source: bytes) -> tuple[Any, int]:
        """RE2's compiled form, and the size of its program."""
        with self._looking:
            known = self._compiled.get(source)
            if known is not None:
                self._compiled.move_to_end(source)
                self._used.add(source)
                return known[0], known[1]
        compiled, bound = _made(source)
        with self._looking:
            if source not in self._compiled:  # else another thread was faster
                self.size += bound
            self._compiled[source] = (compiled, compiled.programsize, bound)
            self._used.add(source)
            while self.size > self._most:
                oldest, (*_, its) = self._compiled.popitem(last=False)
                self._used.discard(oldest)
                self.size -= its
        return compiled, compiled.programsize

    def forget_unused(self) -> None:
        """Free the compiled expressions that were not used since the last call of this. One costly List leaves tens of
        megabytes.
        """
        with self._looking:
            for source in [source for source in self._compiled if source not in self._used]:
                self.size -= self._compiled.pop(source)[2]
            self._used.clear()


def _made(source: bytes) -> tuple[Any, int]:
    """RE2's compiled form, and the bytes that it may take."""
    re2 = _re2()
    for bound in _MEMORY:
        options = re2.Options()
        options.max_mem, options.log_errors, options.never_capture = bound, False, True
        try:
            return re2.compile(source, options), bound
        except re2.error as error:
            if bound == _MEMORY[-1]:
                why = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
                words = (
                    "expression too large"
                    if "too large" in why
                    else "expression nests too deeply"
                    if "deep" in why
                    else why
                )
                raise ValueError(f"error parsing regexp: {words}") from None
        finally:
            re2.purge()  # its own cache does not count bytes
    raise AssertionError("the last bound was tried")


_CACHE = Cache()
"""The process's cache."""

memory.when_idle(_CACHE.forget_unused)


@dataclass(slots=True)
class _Node:
    """Measures of a part of an expression, for Go's limits: instructions, levels, and the product of its repeat
    counts.
    """

    size: int = 1
    height: int = 1
    repeats: int = 1
    literal: bool = False
    run: bool = False  # text as it is written in the pattern, in no group


@dataclass(slots=True)
class _Group:
    """An open group: its finished alternatives, and the items of the one that is being read."""

    captures: bool = False
    alternatives: list[_Node] = field(default_factory=list)
    items: list[_Node] = field(default_factory=list)

    def end_alternative(self) -> None:
        """Make one node of the items since the last ``|``. Neighbouring literals are one string."""
        items, self.items = self.items, []
        nodes = sum(1 for n, item in enumerate(items) if not (item.literal and n and items[n - 1].literal))
        height = max((item.height for item in items), default=1) + (nodes > 1)
        self.alternatives.append(
            _Node(
                max(1, sum(item.size for item in items)),
                height,
                max((item.repeats for item in items), default=1),
                literal=nodes == 1 and items[0].literal,
            )
        )

    def close(self) -> _Node:
        self.end_alternative()
        parts = self.alternatives
        node = (
            parts[0]
            if len(parts) == 1
            else _Node(
                sum(part.size for part in parts) + len(parts) - 1,
                max(part.height for part in parts) + 1,
                max(part.repeats for part in parts),
            )
        )
        return _Node(node.size + 2, node.height + 1, node.repeats) if self.captures else node


class _Parser:
    """One pass over a Go pattern, which writes RE2's."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.out: list[str] = []
        self.groups = [_Group()]
        self.size = 0
        self.classes = 0

    def translating(self) -> Generator[None, None, str]:
        """Read the pattern. The result is the pattern for RE2."""
        last = -1  # where the last token began, if it was a repetition
        while self.at < len(self.pattern):
            begin = self.at
            last = begin if self._token(last) else -1
            yield
        if len(self.groups) > 1:
            raise self._error("missing closing )", self.pattern)
        self.size = self._within(self.groups[0].close()).size
        source = "".join(self.out)
        # RE2's \B also holds between the bytes of one character. Only a search can begin there, so the match begins at
        # the start.
        return rf"\A(?s:.)*?(?:{source})" if r"\B" in self.out else source

    def _error(self, why: str, what: str) -> ValueError:
        return ValueError(f"error parsing regexp: {why}: `{_valid(what).decode()}`")

    def _since(self, begin: int) -> str:
        return self.pattern[begin : self.at]

    def _next(self) -> str:
        """The next character, empty at the end."""
        char = self.pattern[self.at : self.at + 1]
        self._checked(char, self.pattern[self.at :])
        self.at += len(char)
        return char

    def _checked(self, char: str, rest: str) -> None:
        if "\ud800" <= char <= "\udfff":  # a byte that is not UTF-8
            raise self._error("invalid UTF-8", rest)

    def _within(self, node: _Node) -> _Node:
        if node.size > SIZE:
            raise self._error("expression too large", self.pattern)
        if node.height > DEPTH:
            raise self._error("expression nests too deeply", self.pattern)
        return node

    def _add(self, text: str, *, literal: bool = False) -> None:
        self.out.append(text)
        self.groups[-1].items.append(_Node(literal=literal))

    def _token(self, last: int) -> bool:
        """Read one token. The result is whether it was a repetition. ``last`` is where the token before began, if that
        was one.
        """
        if run := _PLAIN.match(self.pattern, self.at):
            self.at = run.end()
            self.out.append(run[0])
            self.groups[-1].items.append(_Node(size=len(run[0]), literal=True, run=True))
            return False
        begin = self.at
        char = self.pattern[begin]
        if char in "*+?" or (char == "{" and self._count_at(begin)):
            self._repeat(begin, last)
            return True
        if char == "(":
            self._open()
        elif char == "|":
            self.at += 1
            self.groups[-1].end_alternative()
            self.out.append("|")
        elif char == ")":
            if len(self.groups) == 1:
                raise self._error("unexpected )", self.pattern)
            self.at += 1
            node = self._within(self.groups.pop().close())
            self.groups[-1].items.append(node)
            self.out.append(")")
        elif char in "^$.":
            self.at += 1
            self._add(char)
        elif char == "[":
            self._class()
        elif char == "\\":
            self._escaped()
        else:
            self._add(_literal(self._next()), literal=True)
        return False

    # ---------------------------------------------------------------- repetitions

    def _count_at(self, at: int) -> re.Match[str] | None:
        """``{2}``, ``{2,}`` or ``{2,3}``. Anything else in braces is text, also ``{,3}`` and ``{02}``."""
        return _REPEAT.match(self.pattern, at)

    def _repeat(self, begin: int, last: int) -> None:
        least, most = 0, -1
        if count := self._count_at(begin):
            self.at = count.end()
            least = int(count[1])
            most = least if count[2] is None else int(count[3]) if count[3] else -1
            if least > REPEAT or most > REPEAT or 0 <= most < least:
                raise self._error("invalid repeat count", count[0])
        else:
            self.at += 1
        operator = self._since(begin)
        if self.pattern.startswith("?", self.at):
            self.at += 1
        if last >= 0:
            raise self._error("invalid nested repetition operator", self._since(last))
        items = self.groups[-1].items
        if not items:
            raise self._error("missing argument to repetition operator", self._since(begin))
        text = self._since(begin)
        sub = items.pop()
        if sub.run and sub.size > 1:  # only its last character is repeated
            items.append(_Node(size=sub.size - 1, literal=True, run=True))
            sub = _Node(literal=True)
        if not count:
            node = _Node(sub.size + (2 if operator == "*" else 1), sub.height + 1, sub.repeats)
        elif most == -1:
            node = _Node(1 + least * sub.size if least else 2 + sub.size, sub.height + 1, max(least, 1) * sub.repeats)
        else:
            node = _Node(max(1, most * sub.size + most - least), sub.height + 1, most * sub.repeats if most else 1)
        if count and max(least, most) >= 2 and node.repeats > REPEAT:
            raise self._error("invalid repeat count", text)
        items.append(self._within(node))
        self.out.append(text)

    # ---------------------------------------------------------------- groups

    def _open(self) -> None:
        begin = self.at
        if not self.pattern.startswith("(?", begin):
            self.at += 1
            self._push(captures=True)
            return
        if opened := _NAMED.match(self.pattern, begin):
            end = self.pattern.find(">", begin)
            name = self.pattern[opened.end() : end] if end >= 0 else self.pattern[begin:]
            for n, char in enumerate(name):
                self._checked(char, name[n:])
            if end < 0 or not _NAME.fullmatch(name):
                raise self._error(
                    "invalid named capture", self.pattern[begin : end + 1] if end >= 0 else self.pattern[begin:]
                )
            self.at = end + 1
            self._push(captures=True)
            return
        self.at += 2
        negative = flag = False
        while char := self._next():
            if char in "imsU":
                flag = True
            elif char == "-" and not negative:
                negative, flag = True, False
            elif char in ":)" and not (negative and not flag):
                if char == ":":
                    self._push(captures=False, text=self._since(begin))
                elif self._since(begin) != "(?)":
                    self.out.append(self._since(begin))
                return
            else:
                break
        raise self._error("invalid or unsupported Perl syntax", self._since(begin))

    def _push(self, *, captures: bool, text: str = "(?:") -> None:
        self.groups.append(_Group(captures))
        self.out.append(text)

    # ---------------------------------------------------------------- escapes

    def _escaped(self) -> None:
        after = self.pattern[self.at + 1 : self.at + 2]
        if after and after in "AbBz":
            self.at += 2
            self._add("\\" + after)
        elif after == "C":
            raise self._error("invalid escape sequence", r"\C")
        elif after == "Q":
            self.at += 2
            end = self.pattern.find(r"\E", self.at)
            stop = len(self.pattern) if end < 0 else end
            text = self.pattern[self.at : stop]
            for n, char in enumerate(text):
                self._checked(char, text[n:])
                self._add(_literal(char), literal=True)
            self.at = stop if end < 0 else end + 2
        elif after and after in "dDsSwW":
            self.at += 2
            self._add("\\" + after)
        elif after and after in "pP":
            self._add(f"[{self._unicode_class()}]")
        else:
            self._add(_literal(self._escape()), literal=True)

    def _escape(self) -> str:
        """The character that an escape means."""
        begin = self.at
        self.at += 1
        char = self._next()
        if not char:
            raise self._error("trailing backslash at end of expression", "")
        if char in _CONTROL:
            return _CONTROL[char]
        if char.isascii() and not char.isalnum():
            return char
        if (
            char in "01234567"
            and (octal := _OCTAL.match(self.pattern, self.at - 1))
            and (char == "0" or len(octal[0]) > 1)
        ):
            self.at = octal.end()
            return chr(int(octal[0], 8))
        if char == "x":
            digits = ""
            if self.pattern.startswith("{", self.at):
                self.at += 1
                while (digit := self._next()) and digit in _HEX:
                    digits += digit
                    if int(digits, 16) > 0x10FFFF:
                        raise self._error("invalid escape sequence", self._since(begin))
                    digits = digits.lstrip("0") or "0"
                if digit == "}" and digits:
                    return chr(int(digits, 16))
            else:
                digits = self._next() + self._next()
                if len(digits) == 2 and digits[0] in _HEX and digits[1] in _HEX:
                    return chr(int(digits, 16))
        raise self._error("invalid escape sequence", self._since(begin))

    # ---------------------------------------------------------------- classes

    def _class(self) -> None:
        begin = self.at
        self.at += 1
        out = ["["]
        if self.pattern.startswith("^", self.at):
            self.at += 1
            out.append("^")
        first = True
        while first or not self.pattern.startswith("]", self.at):
            first = False
            after = self.pattern[self.at + 1 : self.at + 2]
            if self.pattern.startswith("[:", self.at) and (end := self.pattern.find(":]", self.at + 2)) >= 0:
                name = self.pattern[self.at : end + 2]
                if name[2:-2].removeprefix("^") not in _POSIX:
                    raise self._error("invalid character class range", name)
                self.at = end + 2
                out.append(name)
            elif self.pattern.startswith("\\", self.at) and after and after in "pP":
                out.append(self._unicode_class())
            elif self.pattern.startswith("\\", self.at) and after and after in "dDsSwW":
                self.at += 2
                out.append("\\" + after)
            else:
                start = self.at
                low = high = self._class_char(begin)
                if (
                    self.pattern.startswith("-", self.at)
                    and not self.pattern.startswith("-]", self.at)
                    and self.at + 1 < len(self.pattern)
                ):
                    self.at += 1
                    high = self._class_char(begin)
                    if high < low:
                        raise self._error("invalid character class range", self._since(start))
                out.append(_literal(low) if low == high else f"{_literal(low)}-{_literal(high)}")
        self.at += 1
        self._add("".join([*out, "]"]))

    def _class_char(self, begin: int) -> str:
        if self.at >= len(self.pattern):
            raise self._error("missing closing ]", self.pattern[begin:])
        return self._escape() if self.pattern[self.at] == "\\" else self._next()

    def _unicode_class(self) -> str:
        r"""``\p{...}`` in the form that it has between RE2's brackets."""
        begin = self.at
        self.classes += 1
        if self.classes > CLASSES:
            raise self._error("expression too large", self.pattern)
        negated = self.pattern[self.at + 1] == "P"
        self.at += 2
        name = self._next()
        if name == "{":
            end = self.pattern.find("}", self.at)
            name = self.pattern[self.at : end] if end >= 0 else ""
            if end < 0:
                raise self._error("invalid character class range", self.pattern[begin:])
            for n, char in enumerate(name):
                self._checked(char, name[n:])
            self.at = end + 1
        if name.startswith("^"):
            negated, name = not negated, name[1:]
        if len(name) > 64:
            raise self._error("invalid character class range", self._since(begin))
        inside = _unicode(re.sub("[-_ ]", "", name).capitalize() if name.isascii() else name, negated)
        if inside is None:
            raise self._error("invalid character class range", self._since(begin))
        return inside


_PLAIN = re.compile(r"[A-Za-z0-9_/:@,= -]+")
_REPEAT = re.compile(r"\{(0|[1-9][0-9]*)(,(0|[1-9][0-9]*)?)?\}")
_NAMED = re.compile(r"\(\?P?<(?=.)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9_]+")
_OCTAL = re.compile(r"[0-7]{1,3}")
_HEX = frozenset("0123456789abcdefABCDEF")
_CONTROL = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_POSIX = frozenset("alnum alpha ascii blank cntrl digit graph lower print punct space upper word xdigit".split())


def _literal(char: str) -> str:
    return char if char.isascii() and char.isalnum() else rf"\x{{{ord(char):x}}}"


# ---------------------------------------------------------------- Unicode's classes


def _unicode(name: str, negated: bool) -> str | None:
    """The class of this canonical name, or its complement, in the form that it has between RE2's brackets. None if Go
    has no such class.
    """
    name = ALIASES.get(name, name)
    if name == "Ascii":
        return "[:^ascii:]" if negated else "[:ascii:]"
    if name == "Assigned":
        name, negated = "Cn", not negated
    if name in ("C", "Cn", "LC"):  # as in Go: C includes the unassigned code points, for which RE2 has no name
        wanted = {"C": set(MINOR["C"].split()), "Cn": {"Cn"}, "LC": {"Lu", "Ll", "Lt"}}[name]
        every = set(chain.from_iterable(minors.split() for minors in MINOR.values()))
        return "".join(
            _unassigned() if minor == "Cn" else rf"\p{{{minor}}}"
            for minor in sorted(every - wanted if negated else wanted)
        )
    if not re.fullmatch("[A-Z][a-z]*", name) or not _known(name):
        return None
    return rf"\{'P' if negated else 'p'}{{{name}}}"


@lru_cache(maxsize=256)
def _known(name: str) -> bool:
    """Whether RE2 knows the class. It knows Go's classes, and newer scripts."""
    try:
        _CACHE.compiled(rf"\p{{{name}}}".encode())
    except ValueError:
        return False
    return True


@cache
def _unassigned() -> str:
    """The code points of no category, as ranges."""
    points = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE1000)]
    found = [*_re2().finditer(r"[^\pC\pL\pM\pN\pP\pS\pZ]+", "".join(map(chr, points)))]
    ranges = []
    for match in found:
        begin = match.start()
        for n in range(match.start(), match.end()):
            if n + 1 == match.end() or points[n + 1] != points[n] + 1:
                ranges.append((points[begin], points[n]))
                begin = n + 1
    ranges += [(0x40000, 0xDFFFF), (0xE1000, 0xEFFFF), (0xFFFFE, 0xFFFFF), (0x10FFFE, 0x10FFFF)]
    return "".join(rf"\x{{{low:x}}}-\x{{{high:x}}}" for low, high in ranges)
