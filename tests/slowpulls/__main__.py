"""``make slow-pulls``: inject what makes pulls slow, one cause at a time, and check that the verdict names it.

Each image is pulled three times with nothing injected, and once with each cause; the benchmark's, whose pulls take
longer at one time than at another, three times with it and three times without it, in turn. The verdict on that pull,
or on that of median length, must name the cause in its sentence, with the host, the layer or the holder, and put at
least 80 % of what the pull took longer to it. The pulls with nothing injected must name no registry, mirror, limit,
lock or queue. Needs root.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.image import bench_image
from deploy.samples import Image
from tests.slowpulls.causes import INJECTIONS, LONGEST
from tests.slowpulls.judging import Judged, undisturbed, with_cause
from tests.slowpulls.more import MORE
from tests.slowpulls.scene import scene


async def run(names: Sequence[str], pulls: int, image: Image | None = None) -> int:
    """Inject the named causes, print a line for each, and return how many were judged wrongly. ``image`` is pulled
    instead of those that the injections name.
    """
    wrong = 0
    async with scene() as here:
        chosen = [each for each in (*INJECTIONS, *MORE) if not names or each.name in names]
        if image is not None:
            chosen = [replace(each, image=lambda: image) for each in chosen]
        for injection in chosen:
            found = []
            if injection.image().digest not in here.medians:
                found.append(await undisturbed(here, injection.image(), pulls))
            if image is None:
                found.append(await with_cause(here, injection))
            else:
                found.append(await with_cause(here, injection, pulls, in_turn=True))
            for judged in found:
                wrong += bool(judged.wrong)
                _print(judged)
    return wrong


def _print(judged: Judged) -> None:
    print(f"{'WRONG' if judged.wrong else 'ok':5} {judged.name:12} {judged.verdict.sentence}")
    print(f"{'':18} {judged.figures}", flush=True)
    for reason in judged.wrong:
        print(f"{'':18} {reason}")
    if judged.wrong:
        for cause in judged.verdict.causes[:8]:
            print(f"{'':20} {cause.seconds:7.3f} s {cause.kind}: {cause.part} {cause.host} {cause.holder}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.slowpulls", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "names", nargs="*", help=f"only these of {', '.join(each.name for each in (*INJECTIONS, *MORE))}"
    )
    parser.add_argument(
        "--pulls",
        type=int,
        default=3,
        help="pulls of each image with nothing injected, and of the benchmark's with each cause",
    )
    parser.add_argument(
        "--bench",
        type=Path,
        metavar="DIR",
        help="pull the benchmark's image, which is kept in DIR or made there; a limited registry's rate is then raised "
        f"until the image takes {LONGEST:.0f} s",
    )
    arguments = parser.parse_args()
    image = bench_image(arguments.bench) if arguments.bench else None
    sys.exit(min(1, asyncio.run(run(arguments.names, arguments.pulls, image))))


if __name__ == "__main__":
    main()
