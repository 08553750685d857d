"""A transfer as lines of text: a bar for each part that moves, and one for the whole."""

from __future__ import annotations

from client.progress import MOVING, Part, Stage, Tally
from client.shown import escaped

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_LABEL, _STAGE, _COUNT, _RATE = 12, 11, 17, 12
_FIXED = _LABEL + _STAGE + _COUNT + _RATE + 4 * 2
"""Columns of everything but the bar, with the two blanks between columns."""
_SHORTEST, _LONGEST = 10, 42
"""Columns of a bar with its brackets. If there is no room for the shortest, no bar is shown."""


def size(amount: float) -> str:
    """Bytes with a unit for people: ``512 B``, ``3.4 MiB``."""
    number, unit = scaled(amount)
    return f"{number} {unit}"


def scaled(amount: float, like: float | None = None) -> tuple[str, str]:
    """Bytes as a number and a unit. The unit is that of ``like``, if given."""
    unit, measure = 0, amount if like is None else like
    while measure >= 1023.95 and unit < len(_UNITS) - 1:
        measure /= 1024
        unit += 1
    number = amount / 1024**unit
    return (f"{number:.1f}" if unit else f"{number:.0f}"), _UNITS[unit]


def duration(seconds: float) -> str:
    """``4.2 s``, or ``3m20s`` for a minute or longer."""
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h{minutes}m" if hours else f"{minutes}m") + ("" if hours else f"{rest}s")


def lines(tally: Tally, title: str, now: float, columns: int, rows: int) -> list[str]:
    """The current state of a transfer, in fewer than ``rows`` lines of fewer than ``columns`` characters.

    If there is no room for all parts, finished ones are left out first, then waiting ones.
    """
    found = [f"{escaped(title)}  {duration(now - tally.started)}"]
    wait = tally.wait
    if parts := tally.rows:
        shown = _chosen(parts, max(1, rows - 4 - (wait is not None)))
        found += [_part(part, now, columns) for part in shown]
        if left := len(parts) - len(shown):
            found.append(f"and {left} more")
        if len(parts) > 1:
            found.append(_total(tally, now, columns))
    if wait is not None:  # at the end, so that the bars stay where they are when it comes and goes
        found.append(escaped(wait.words))
    return [line[: columns - 1].rstrip() for line in found[-max(1, rows - 1) :]]


def final(tally: Tally, columns: int) -> list[str]:
    """The final state of every part, without rates."""
    return [_part(part, tally.started, columns)[: columns - 1].rstrip() for part in tally.rows]


def _chosen(parts: list[Part], room: int) -> list[Part]:
    if len(parts) <= room:
        return parts
    busy = [p for p in parts if not p.is_over and p.stage is not Stage.WAITING]
    waiting = [p for p in parts if p.stage is Stage.WAITING]
    over = [p for p in parts if p.is_over]
    kept = {p.name for p in (busy + waiting + over[::-1])[:room]}
    return [p for p in parts if p.name in kept]


def _part(part: Part, now: float, columns: int) -> str:
    busy = part.stage in MOVING or part.stage is Stage.EXTRACTING
    return _row(escaped(part.label), part.stage, part.bytes if busy else None, part.total, part.rate_at(now), columns)


def _total(tally: Tally, now: float, columns: int) -> str:
    parts = tally.rows
    over = f"{sum(part.is_over for part in parts)} of {len(parts)}"
    return _row("total", over, tally.moved, tally.total, tally.rate.at(now), columns)


def _row(label: str, stage: str, done: int | None, total: int, rate: float, columns: int) -> str:
    """A line of the display. If ``done`` is None there is no bar. A ``total`` of 0 is not known."""
    room = columns - 1 - _FIXED
    width = min(room, _LONGEST) if room >= _SHORTEST else 0
    cells = [label[:_LABEL].ljust(_LABEL), stage.ljust(_STAGE)]
    if width:
        cells.append(_bar(done, total, width) if done is not None and total else " " * width)
    if done is None:
        count = size(total)
    elif total:
        number, unit = scaled(done, like=total)
        count = f"{number}/{scaled(total)[0]} {unit}"
    else:
        count = size(done)
    cells.append(count.rjust(_COUNT))
    cells.append(f"{size(rate)}/s".rjust(_RATE) if rate >= 1 else "")
    return "  ".join(cells)


def _bar(done: int, total: int, width: int) -> str:
    inner = width - 2
    full = min(inner, inner * done // total)
    return f"[{('=' * full + ('>' if full < inner else '')).ljust(inner)}]"
