"""``splitd fleet trace``: the latest pulls of all nodes side by side, the slowest first. The command asks the nodes
themselves, at the addresses where they serve their peers, with this node's certificate.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from client import bars, span_words, trace_views
from client.fleet_remote import FleetView, Member
from client.shown import Style, complain, say, say_painted, table
from deploy.failure import Failure
from deploy.fleet import asking
from deploy.place import Place
from deploy.verbs.images import age, timestamp
from deploy.verbs.trace import duration
from services.fleet.config import Config
from services.fleet.told import number, text
from services.kit import errors, settings

if TYPE_CHECKING:
    from services.images.registry.transport import Session

HELP = "print the latest pulls of all nodes side by side, the slowest first, and what each waited for"

LIMIT, MOST = 20, 1000
AT_ONCE = 16
"""Nodes that are asked at once."""
PATIENCE = 10.0
"""Seconds for the answer of a node."""
BYTES = 1 << 20
"""Bytes of an answer, at most."""
PULLS = 1000
"""Pulls of an answer, at most."""
COLUMNS = 120


@dataclass(frozen=True, slots=True)
class Pull:
    """A pull, as its node tells it."""

    node: str
    trace: str
    namespace: str
    image: str
    outcome: str
    ago: float
    """Seconds since it began, by its node's clock."""
    start: int
    """Nanoseconds since the epoch, by that clock, too."""
    seconds: float
    bytes: int
    peers: int
    """Of the bytes, those that came from other nodes."""
    sentence: str
    advice: str
    causes: tuple[tuple[str, float, str], ...]
    """Kind, seconds and words of each, the greatest first."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", default="", metavar="NAME", help="only those of images with NAME in their names")
    parser.add_argument(
        "--slow", type=_duration, default=0.0, metavar="DURATION", help="only those that took so long: 10s, 2m"
    )
    parser.add_argument(
        "--limit", type=_limit, default=LIMIT, metavar="N", help=f"at most N of them (default: {LIMIT})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _duration(words: str) -> float:
    found = duration(words)
    if found is None:
        raise argparse.ArgumentTypeError(f"{words!r} is no duration: say 100ms, 90s, 2m or 1h, or a number of seconds")
    return found


def _limit(words: str) -> int:
    if not words.isascii() or not words.isdigit() or not 0 < int(words[:9]) <= MOST:
        raise argparse.ArgumentTypeError(f"{words!r}: say 1 to {MOST}")
    return int(words)


def run(arguments: argparse.Namespace) -> int:
    found, troubles, answered = asking.run(_found(asking.here(arguments)))
    chosen = [each for each in found if arguments.image in each.image and each.seconds >= arguments.slow]
    chosen.sort(key=lambda each: -each.seconds)
    del chosen[arguments.limit :]
    if arguments.json:
        print(json.dumps({"pulls": [_described(each) for each in chosen], "troubles": troubles}, indent=2))
    else:
        _show(chosen)
        complain(*(f"{node}: {why}" for node, why in sorted(troubles.items())))
    return 0 if answered or not troubles else 1


def _show(pulls: list[Pull]) -> None:
    rows = [("NODE", "TRACE", "BEGUN", "TOOK", "OUTCOME", "BYTES", "OF PEERS", "MOST OF IT", "IMAGE")]
    for each in pulls:
        share = f"{each.peers / each.bytes:.0%}" if each.bytes else "-"
        rows.append(
            (
                each.node,
                each.trace[:12],
                age(int(each.ago * 1e9)),
                span_words.seconds(each.seconds),
                each.outcome or "-",
                bars.size(each.bytes),
                share,
                _most(each),
                each.image,
            )
        )
    table(rows)
    if not pulls:
        say("no node tells of such a pull")
        return
    slowest = pulls[0]
    words = f"The slowest, on {slowest.node}: {slowest.sentence}"
    say("")
    say_painted(*trace_views.wrapped(words, shutil.get_terminal_size((COLUMNS, 24)).columns, Style.BOLD))
    say(f"(splitd trace show {slowest.trace[:12]}, on that node, shows more)")


def _most(pull: Pull) -> str:
    """``registry 61%, disk 20%``"""
    if not pull.seconds:
        return "-"
    kinds: dict[str, float] = {}
    for kind, seconds, _ in pull.causes:
        kinds[kind] = kinds.get(kind, 0.0) + seconds
    first = sorted(kinds.items(), key=lambda each: -each[1])[:2]
    return ", ".join(f"{kind} {seconds / pull.seconds:.0%}" for kind, seconds in first) or "-"


def _described(pull: Pull) -> dict[str, Any]:
    """A pull as JSON. ``began`` is by its node's clock."""
    found = {key: value for key, value in asdict(pull).items() if key not in ("start", "ago", "causes")}
    causes = [{"kind": kind, "seconds": seconds, "what": what} for kind, seconds, what in pull.causes]
    return {**found, "began": timestamp(pull.start), "causes": causes}


async def _found(node: Place) -> tuple[list[Pull], dict[str, str], int]:
    """The pulls of all nodes, why some nodes tell of none, and how many have answered."""
    # the HTTP client, which no other action needs
    from services.images.registry.host import TLS
    from services.images.registry.transport import Session
    from services.images.registry_timeouts import Timeouts

    async with asking.connected(node) as channel:
        nodes = [each async for each in FleetView(channel, asking.PATIENCE).nodes()]
    config = settings.load(Config, settings.read(node.config), "fleet")
    if not config.ca:
        raise Failure("the nodes are asked with this node's certificate: set [fleet] ca, cert and key")
    pulls: list[Pull] = []
    troubles: dict[str, str] = {}
    tls = TLS((config.ca,), ((config.cert, config.key),), alone=True)
    turn = asyncio.Semaphore(AT_ONCE)
    session = Session(tls, Timeouts(connect=3.0, stall=5.0))

    async def ask(each: Member) -> None:
        try:
            if not each.address:
                raise errors.Unavailable.verbatim("it serves its peers nothing")
            async with turn, asyncio.timeout(PATIENCE):
                pulls.extend(read(each.name, await _document(session, each)))
        except TimeoutError:
            troubles[each.name] = f"no answer within {PATIENCE:g} s"
        except errors.NodeError as error:
            troubles[each.name] = str(error)

    try:
        await asyncio.gather(*map(ask, nodes))
    finally:
        await session.close()
    return pulls, troubles, len(nodes) - len(troubles)


async def _document(session: Session, node: Member) -> bytes:
    from services.images.registry.transport import USER_AGENT, Role

    answer = await session.exchange(
        "GET",
        f"https://{node.address}/v2/pulls",
        headers=[("User-Agent", USER_AGENT), ("Accept-Encoding", "identity")],
        connect=3.0,
        stall=5.0,
        role=Role(peer=node.name),
    )
    with contextlib.closing(answer):
        data = await answer.read(BYTES + 1)
        if answer.status == 404:
            raise errors.Unavailable.verbatim("it does not tell (an older release?)")
        if answer.status != 200:
            said = data[:200].decode(errors="replace").strip()
            raise errors.Unavailable.verbatim(f"it answers {said or answer.status}")
        if len(data) > BYTES:
            raise errors.Unavailable.verbatim(f"its answer has more than {BYTES} bytes")
        return data


def read(node: str, data: bytes) -> list[Pull]:
    """What a node's document says; what makes no sense of it is left out. Unavailable if it is none."""
    try:
        found = json.loads(data)
        pulls, now = (found["pulls"], number(found.get("now"))) if found["v"] == 1 else ([], 0)
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        raise errors.Unavailable.verbatim("its answer makes no sense") from None
    listed = pulls[:PULLS] if isinstance(pulls, list) else []
    return [_pull(node, each, now) for each in listed if isinstance(each, dict)]


def _pull(node: str, said: Mapping[str, Any], now: int) -> Pull:
    listed = said.get("causes")
    causes = [each for each in listed[:PULLS] if isinstance(each, dict)] if isinstance(listed, list) else []
    start = number(said.get("start"))
    return Pull(
        node=node,
        trace=text(said.get("trace")),
        namespace=text(said.get("namespace")),
        image=text(said.get("image")),
        outcome=text(said.get("outcome")),
        ago=max(0, now - start) / 1e9,
        start=start,
        seconds=_seconds(said.get("seconds")),
        bytes=number(said.get("bytes")),
        peers=number(said.get("peers")),
        sentence=text(said.get("sentence")),
        advice=text(said.get("advice")),
        causes=tuple(
            (text(each.get("kind")), _seconds(each.get("seconds")), text(each.get("what"))) for each in causes
        ),
    )


def _seconds(value: object) -> float:
    """A number of seconds that is not negative and below a year; else 0."""
    return float(value) if type(value) in (int, float) and 0 <= value < 3e7 else 0.0  # type: ignore[operator,arg-type]
