"""``splitd pull REF``: the node pulls an image from its registry; the command shows the progress."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from client.images_remote import Described, full_name
from client.progress import Stage, Tally
from client.shown import complain
from deploy import place, slow, transferring
from deploy.failure import Failure
from deploy.place import Place
from services.images.transfer import ImageStore, Progress
from services.kit import errors
from services.oci import platforms
from services.oci.platforms import Platform

HELP = "fetch an image from its registry and unpack it; an interrupted pull continues where it ended"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "reference",
        metavar="REF",
        help="such as busybox, docker.io/library/busybox:latest or 10.0.0.1:5000/team/box@sha256:...",
    )
    transferring.add_platforms(parser, "this machine's")
    parser.add_argument("--all-platforms", action="store_true", help="choose all platforms of the image")
    parser.add_argument(
        "--verify",
        action="store_true",
        help=(
            "check all bytes of blobs that the node has already, and fetch damaged ones again; missing files and wrong "
            "sizes are always found"
        ),
    )
    transferring.add_unpacking(parser)
    transferring.add_registry(parser)
    transferring.add_output(parser)
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="print what the pull waited for; without this it is printed if the pull was slow ([traces] slow: 10 s)",
    )
    transferring.add_namespace(parser)


def run(arguments: argparse.Namespace) -> int:
    wanted = transferring.wanted_platforms(arguments)
    unpacks = transferring.unpackings(arguments, wanted)
    reference = full_name(arguments.reference)
    output = transferring.output(arguments, f"pulling {reference}")
    here = place.find(arguments)
    source = transferring.registry(arguments, reference)

    async def pull() -> Mapping[str, Any]:
        async with transferring.connected(here, arguments.namespace) as client:
            tally = Tally(time.monotonic(), Stage.DOWNLOADED, await client.images.ingests())

            async def work(report: Callable[[Progress], None]) -> Mapping[str, Any]:
                async with client.resumable(reference) as transfers:
                    await transfers.transfer(
                        source,
                        ImageStore(reference, platforms=wanted, unpacks=unpacks, verify=arguments.verify),
                        report,
                    )
                (image,) = await client.images.describe(reference)
                return result(image, wanted, tally)

            return await transferring.shown(output, tally, {"reference": reference}, work)

    began = time.monotonic()
    try:
        outcome = transferring.run(pull(), "what has arrived is kept for a day, and the same command continues with it")
    except (Failure, errors.NodeError) as error:
        failure = error if isinstance(error, Failure) else Failure(str(error))
        if failure.code != 1:  # interrupted, or no node is up
            raise
        first, *more = failure.lines
        why = [_FAILED.sub(r"\1", line) for line in _why(arguments, here, reference, began)]
        raise Failure(first, failure.code, [*more, *why]) from None
    output.said(
        f"pulled {transferring.with_digest(reference, outcome)}: {transferring.figures(outcome)}, "
        f"{transferring.layers(outcome)}"
    )
    if others := outcome["otherPlatforms"]:
        complain(f"{reference}: for {', '.join(others)}, not for {_named(wanted)}")
    for line in _why(arguments, here, reference, began):
        output.said(line)
    return 0


_FAILED = re.compile(r"(failed after [0-9.]+ s): .*(?=; [0-9.]+ of [0-9.]+ s: )")
"""How the verdict on a pull begins that failed: with the error, which is printed already."""


def _why(arguments: argparse.Namespace, here: Place, reference: str, began: float) -> list[str]:
    """What the pull waited for, in a few lines, if it took long or if that is wanted. It ``began`` then, in seconds of
    the monotonic clock.
    """
    if arguments.json or arguments.quiet:
        return []
    if not arguments.verbose and time.monotonic() - began < slow.seconds(here):
        return []
    from deploy import traces  # most pulls need none of it

    namespace = transferring.chosen_namespace(arguments.namespace)
    try:
        verdict = transferring.run(traces.of_pull(here, reference, namespace, began))
    except (Failure, errors.NodeError) as error:
        return [f"where the time went is not known: {error}"] if arguments.verbose else []
    advice = [f"{verdict.advice}."] if verdict.advice else []
    return [f"{verdict.sentence}.", *advice, f"({here.hint(f'trace show {verdict.trace[:12]}')} shows more)"]


def result(image: Described, wanted: Sequence[Platform], tally: Tally) -> dict[str, Any]:
    """The outcome of a pull: the number of layers, and how many of them the node had before. A single manifest is
    stored whatever its platform is, as containerd does, so other platforms are included. A Failure if the image has
    nothing for the wanted platforms.
    """
    matcher = platforms.wanted(wanted)
    variants = [variant for variant in image.variants if not image.offered or matcher.matches(variant.platform)]
    if image.offered and not variants:
        raise Failure(
            f"{image.image.name} has nothing for {_named(wanted)}: its platforms are "
            f"{', '.join(dict.fromkeys(map(str, image.offered)))}"
        )
    layers = {layer.digest for variant in variants for layer in variant.layers}
    layers |= {part.digest for part in tally.rows}  # of something that is no image
    fetched = {part.digest for part in tally.rows if not part.existed}
    others = [str(variant.platform) for variant in variants if not matcher.matches(variant.platform)]
    return {
        "digest": image.image.target.digest,
        "layers": len(layers),
        "existing": len(layers - fetched),
        "otherPlatforms": others,
    }


def _named(wanted: Sequence[Platform]) -> str:
    return ", ".join(map(str, wanted)) or "any platform"
