"""Include and exclude globs, as prefetch and find take them.

A pattern with a slash is matched against the path relative to the given directory; one without a
slash against the base name, at any depth. ``*`` and ``?`` stop at a slash, ``**`` as a whole
segment stands for any number of segments (also none), elsewhere it is ``*``. ``[abc]``, ``[a-z]``
and ``[!a]`` match one character, never a slash; ``[`` without its ``]`` is itself, and ``[*]`` is
how to write a star that is one. A slash at the pattern's start is dropped: it says "matched
against the whole path"; one at its end means all that is below. Case counts. Names are matched as
they are, hidden ones too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Any number of segments, as few as will do.
_SEGMENTS = "(?:[^/]*/)*?"


def translate(pattern: str) -> re.Pattern[str]:
    """Return the regular expression that a glob stands for, to be used with ``fullmatch``.

    It never backtracks over more than one star: what stands between two stars matches a fixed
    length, so its leftmost place is as good as any, and an atomic group may hold on to it (as
    ``fnmatch`` does). Matching takes O(pattern × name) at worst.
    """
    below = pattern + "**" if pattern.endswith("/") else pattern
    groups: list[list[str]] = [[]]
    for segment in below.removeprefix("/").split("/"):
        if segment == "**":
            groups.append([])
        else:
            groups[-1].append(_segment(segment))
    first, *rest = groups
    if not rest:
        return re.compile("/".join(first), re.DOTALL)
    last = rest.pop()
    middle = "".join(f"(?>{_SEGMENTS}{_closed(group)})" for group in rest if group)
    end = _SEGMENTS + "/".join(last) if last else ".*"
    return re.compile(_closed(first) + middle + end, re.DOTALL)


def _closed(segments: list[str]) -> str:
    return "".join(f"{segment}/" for segment in segments)


def _segment(segment: str) -> str:
    """Translate what stands between two slashes."""
    fixed: list[list[str]] = [[]]  # what stands between two stars
    position = 0
    while position < len(segment):
        char = segment[position]
        position += 1
        if char == "*":
            fixed.append([])
        elif char == "?":
            fixed[-1].append("[^/]")
        elif char == "[":
            # "]" right after "[" or "[!" is a member, as in the shell.
            first = position + 1 if segment[position : position + 1] == "!" else position
            end = segment.find("]", first + 1)
            if end < 0:
                fixed[-1].append(r"\[")
            else:
                fixed[-1].append(_members(segment[position:end]))
                position = end + 1
        else:
            fixed[-1].append(re.escape(char))
    head, *rest = ["".join(part) for part in fixed]
    if not rest:
        return head
    last = rest.pop()
    return head + "".join(f"(?>[^/]*?{part})" for part in rest if part) + "[^/]*" + last


def _members(body: str) -> str:
    negated = body.startswith("!")
    body = body.removeprefix("!")
    members = []
    position = 0
    while position < len(body):
        if body[position + 1 : position + 2] == "-" and position + 2 < len(body):
            low, high = body[position], body[position + 2]
            if low <= high:  # a range that runs backwards holds nothing
                members.append(f"{re.escape(low)}-{re.escape(high)}")
            position += 3
        else:
            members.append(re.escape(body[position]))
            position += 1
    if negated:
        return f"[^/{''.join(members)}]"
    return f"(?!/)[{''.join(members)}]" if members else "(?!)"


class GlobFilter:
    """Whether a name is wanted: one ``include`` matches, or there is none, and no ``exclude``
    does. Immutable, thread safe. Costs ~1 µs a pattern."""

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        # Constant after construction
        self._include = _split(include)
        self._exclude = _split(exclude)
        self._takes_all = not include and not exclude

    def matches(self, relative: str) -> bool:
        """``relative`` is the path below the given directory, without a slash at its start."""
        if self._takes_all:
            return True
        base = relative.rsplit("/", 1)[-1]
        if _any(self._exclude, relative, base):
            return False
        return not any(self._include) or _any(self._include, relative, base)


_Patterns = tuple[list[re.Pattern[str]], list[re.Pattern[str]]]


def _split(patterns: Sequence[str]) -> _Patterns:
    """Return the patterns for whole paths, and those for base names."""
    whole = [translate(pattern) for pattern in patterns if "/" in pattern]
    named = [translate(pattern) for pattern in patterns if "/" not in pattern]
    return (whole, named)


def _any(patterns: _Patterns, relative: str, base: str) -> bool:
    whole, named = patterns
    return any(pattern.fullmatch(relative) for pattern in whole) or any(
        pattern.fullmatch(base) for pattern in named
    )
