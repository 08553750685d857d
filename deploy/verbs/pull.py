"""``splitd pull REF``: an image from its registry into the node, by the node itself, with its progress."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from client.images_remote import Described, full_name
from client.progress import Stage, Tally
from client.shown import complain
from deploy import place, transferring
from deploy.failure import Failure
from services.images.transfer import ImageStore, Progress
from services.oci import platforms
from services.oci.platforms import Platform

HELP = "fetch an image from its registry and unpack it; an interrupted pull goes on where it ended"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "reference",
        metavar="REF",
        help="such as busybox, docker.io/library/busybox:latest or 10.0.0.1:5000/team/box@sha256:...",
    )
    transferring.add_platforms(parser, "this machine's")
    parser.add_argument("--all-platforms", action="store_true", help="for every platform that it has")
    parser.add_argument(
        "--verify",
        action="store_true",
        help=(
            "look at all bytes of what is there already, and fetch again what is damaged; missing files and wrong "
            "sizes are always found"
        ),
    )
    transferring.add_unpacking(parser)
    transferring.add_registry(parser)
    transferring.add_output(parser)
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

    outcome = transferring.run(pull(), "what has arrived is kept for a day, and the same command goes on with it")
    output.said(
        f"pulled {transferring.with_digest(reference, outcome)}: {transferring.figures(outcome)}, "
        f"{transferring.layers(outcome)}"
    )
    if others := outcome["otherPlatforms"]:
        complain(f"{reference}: for {', '.join(others)}, not for {_named(wanted)}")
    return 0


def result(image: Described, wanted: Sequence[Platform], tally: Tally) -> dict[str, Any]:
    """What the node has now: how many layers, and how many of them it had before; and for what other platforms, if it
    is one manifest, which a node stores whatever it is for, as containerd does. A Failure if there is nothing for the
    platforms wanted.
    """
    matcher = platforms.wanted(wanted)
    variants = [variant for variant in image.variants if not image.offered or matcher.matches(variant.platform)]
    if image.offered and not variants:
        raise Failure(
            f"{image.image.name} has nothing for {_named(wanted)}: it is for "
            f"{', '.join(dict.fromkeys(map(str, image.offered)))}"
        )
    layers = {layer.digest for variant in variants for layer in variant.layers}
    layers |= {part.digest for part in tally.rows}  # of what is no image
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
