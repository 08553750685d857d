"""``splitd fleet pull IMAGE``: nodes of the fleet pull an image, so many at a time; shows how far each of them is."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Collection

from client import bars
from client.images_remote import full_name
from client.screen import Screen
from client.shown import complain, escaped, fitted, say
from deploy import transferring
from deploy.failure import Failure
from deploy.fleet import asking
from deploy.place import Place
from services.fleet.orders import AT_ONCE, MOST, NodePull, Order, State
from services.fleet.remote import RemoteOverview
from services.kit import errors

HELP = (
    "let nodes of the fleet pull an image, so that it is there when it is needed; Ctrl-C withdraws what has not begun"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "reference",
        metavar="REF",
        help="such as busybox or docker.io/library/busybox:latest; each node pulls it with its own configuration",
    )
    parser.add_argument(
        "--nodes",
        type=_count,
        default=None,
        metavar="N",
        help="on N nodes that have no image of this name, those with the most space first; all: on all of them",
    )
    parser.add_argument(
        "--on",
        action="append",
        default=[],
        metavar="NODE",
        help="on this node, whether it has one or not; may be repeated, and may be NAME,NAME",
    )
    parser.add_argument(
        "--at-once", type=_few, default=10, metavar="K", help="nodes that pull at the same time (default: 10)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print a line of JSON for each change; the last has the outcome"
    )
    parser.add_argument(
        "-n",
        "--namespace",
        default=None,
        metavar="NAME",
        help="containerd's namespace (default: $CONTAINERD_NAMESPACE, else default)",
    )


def _count(text: str) -> int:
    """``all`` is 0."""
    if text == "all":
        return 0
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of nodes: 1 to {MOST}, or all")
    return int(text)


def _few(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) <= AT_ONCE:
        raise argparse.ArgumentTypeError(f"{text!r} nodes at once: 1 to {AT_ONCE}")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    on = tuple(name for names in arguments.on for name in names.split(",") if name)
    if (arguments.nodes is None) == (not on):
        raise Failure("say on which nodes: --nodes N, --nodes all, or --on NODE,NODE", 2)
    order = Order(
        image=full_name(arguments.reference),
        namespace=transferring.chosen_namespace(arguments.namespace),
        nodes=arguments.nodes or 0,
        on=on,
        at_once=arguments.at_once,
    )
    order.check()
    node = asking.here(arguments)
    shown = Shown(order.image, as_json=arguments.json)
    try:
        transferring.run(_pulled(node, order, shown), "nodes that have begun go on, the others were withdrawn")
    except (Failure, errors.NodeError) as error:
        shown.ended({"outcome": "failed", "image": order.image, "error": str(error)})
        raise
    return outcome(order, shown)


def outcome(order: Order, shown: Shown) -> int:
    """Say how it ended. The exit code is 0 if so many nodes have the image as were wanted."""
    pulled, present = shown.of(State.DONE), shown.of(State.PRESENT)
    failed = shown.of(State.FAILED, *([] if order.nodes else [State.REFUSED]))
    well = not failed and len(pulled) + len(present) >= order.nodes
    digests = sorted({pull.digest for pull in pulled if pull.digest})
    shown.ended(
        {
            "outcome": "done" if well else "failed",
            "image": order.image,
            "digests": digests,
            "pulled": [pull.node for pull in pulled],
            "present": [pull.node for pull in present],
            "failed": {pull.node: pull.error for pull in (*failed, *(shown.of(State.REFUSED) if order.nodes else ()))},
        }
    )
    if shown.as_json:
        return 0 if well else 1
    words = f"{order.image}: pulled on {_nodes(len(pulled))}"
    if present:
        words += f"; {_nodes(len(present))} had an image of this name"
    say(words)
    if len(digests) > 1:
        complain(f"the nodes do not have the same: {', '.join(digests)} (was the tag moved meanwhile?)")
    if order.nodes and not well and not failed:
        complain(f"{_nodes(order.nodes)} were wanted, and no other can pull it")
    return 0 if well else 1


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


class Shown:
    """What is known of each node, and how it is shown: as lines on a terminal that are drawn anew, else as one line for
    each node that has ended, or as lines of JSON.
    """

    def __init__(self, image: str, *, as_json: bool) -> None:
        self.as_json = as_json
        self.pulls: dict[str, NodePull] = {}
        self.trouble = ""
        self._image = image
        self._begun = time.monotonic()
        self._drawn = not as_json and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._screen = Screen(_write)

    def of(self, *states: State) -> list[NodePull]:
        """The nodes in these states, by name."""
        return sorted((pull for pull in self.pulls.values() if pull.state in states), key=lambda pull: pull.node)

    def draw(self) -> None:
        """Show how far all are, if this is a terminal."""
        if self._drawn:
            columns, rows = shutil.get_terminal_size()
            trouble = f" (nothing is heard of the nodes: {self.trouble})" if self.trouble else ""
            title = f"{self._image}  {bars.duration(time.monotonic() - self._begun)}{trouble}"
            self._screen.draw(lines(self.pulls.values(), title, columns, rows), columns, rows)

    def finish(self) -> None:
        """Leave the last state of each node on a terminal."""
        if self._drawn:
            self._screen.finish(lines(self.pulls.values(), "", shutil.get_terminal_size()[0], 1 << 20))

    def changed(self, pull: NodePull) -> None:
        """A node has told something."""
        self.pulls[pull.node] = pull
        if self.as_json:
            print(json.dumps(described(pull)), flush=True)
        elif not self._drawn and pull.state.is_over:
            say(line(pull))

    def troubled(self, trouble: str) -> None:
        """Nothing is heard of the nodes, or they are heard again."""
        if trouble != self.trouble and not self._drawn and trouble:
            complain(f"nothing is heard of the nodes: {trouble}")
        self.trouble = trouble

    def ended(self, found: dict[str, object]) -> None:
        """The outcome, for programs."""
        if self.as_json:
            print(json.dumps(found), flush=True)


def described(pull: NodePull) -> dict[str, object]:
    """A node as a line of JSON. ``total`` counts the blobs that are known so far."""
    found: dict[str, object] = {"node": pull.node, "state": str(pull.state), "bytes": pull.done, "total": pull.total}
    if pull.digest:
        found["digest"] = pull.digest
    if pull.error:
        found["error"] = pull.error
    return found


def line(pull: NodePull) -> str:
    """``node7  done  120.3 MiB``"""
    more = pull.error
    if not more and pull.state is State.PULLING:
        more = f"{bars.size(pull.done)} of {bars.size(pull.total)}"
    elif not more and pull.state is State.DONE:
        more = bars.size(pull.total)
    return f"{pull.node}  {pull.state}  {more}".rstrip()


def lines(pulls: Collection[NodePull], title: str, columns: int, rows: int) -> list[str]:
    """Fewer lines than ``rows``, each shorter than ``columns``: those that pull first, then those that failed."""
    order = (State.PULLING, State.FAILED, State.REFUSED, State.WAITING, State.DONE, State.PRESENT)
    ordered = sorted(pulls, key=lambda pull: (order.index(pull.state) if title else 0, pull.node))
    room = max(1, rows - (3 if title else 1))
    found = [escaped(title)] if title else []
    found += [escaped(line(pull)) for pull in ordered[:room]]
    if title:
        over = sum(pull.state.is_over for pull in pulls)
        found.append(f"{over} of {len(pulls)} nodes are done")
    return [fitted(each, columns - 1).rstrip() for each in found]


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


async def _pulled(node: Place, order: Order, shown: Shown) -> None:
    try:
        async with asking.connected(node) as channel, contextlib.aclosing(RemoteOverview(channel).pull(order)) as news:
            async for each in news:
                shown.troubled(each.trouble)
                for pull in each.pulls:
                    shown.changed(pull)
                shown.draw()
    finally:
        shown.finish()
