"""``splitd gc``: says what is held back because no record knows it, and releases it on the operator's word."""

from __future__ import annotations

import argparse
import time

from client.shown import say
from deploy import held, place, supervision
from deploy.failure import Failure
from deploy.place import Place
from services.kit import errors

HELP = (
    "say what is held back because no record knows it, for example after a backup of a database was put back or its "
    "log was damaged; --release removes it"
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--release", action="store_true", help="remove what no record knows; it is collected now")


def run(arguments: argparse.Namespace) -> int:
    here = place.find(arguments)
    try:
        _run(here, release=arguments.release)
    except errors.Unavailable as error:
        raise (
            Failure(f"{error} (see {here.hint('status')})", 3) if supervision.is_up(here) else supervision.not_up(here)
        ) from None
    return 0


def _run(here: Place, *, release: bool) -> None:
    found = held.found(here)
    if not found:
        say("nothing is held back: garbage is collected")
        return
    for each in found:
        say(
            f"{each.what}: held back since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(each.since))}: "
            f"{each.reason}"
        )
    if not release:
        say(f"this stays so until {here.hint('gc --release')}")
        return
    outcomes = held.release(here)
    for outcome in outcomes:
        end = f"not released: {outcome.trouble}" if outcome.trouble else "released, and being collected"
        say(f"{outcome.what}: {end}")
    if lost := sum(outcome.lost for outcome in outcomes):
        say(
            f"{lost} {'snapshot' if lost == 1 else 'snapshots'} that their snapshotter has lost are no longer "
            "recorded: pull the images again"
        )
    if any(outcome.trouble for outcome in outcomes):
        raise Failure(f"some of it is still held back: repair that, then run {here.hint('gc --release')}")
