"""``splitd push REF``: the node pushes an image to a registry; the command shows the progress."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

from client.images_remote import complete_name
from client.progress import Tally
from deploy import place, transferring
from services.images.transfer import ImageStore, Progress

HELP = "send an image to a registry; what the registry has is not sent again"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "reference",
        metavar="REF",
        help="the destination, such as registry.internal:5000/team/box:1; if it has a digest, it must be the image's",
    )
    parser.add_argument("--source", metavar="NAME", help="the node's image to send (default: the one called REF)")
    transferring.add_platforms(parser, "all; the registry may refuse an index without the others")
    transferring.add_registry(parser)
    transferring.add_output(parser)
    transferring.add_namespace(parser)


def run(arguments: argparse.Namespace) -> int:
    wanted = transferring.chosen_platforms(arguments)
    reference = complete_name(arguments.reference)
    output = transferring.output(arguments, f"pushing {reference}")
    here = place.find(arguments)
    destination = transferring.registry(arguments, reference)

    async def push() -> Mapping[str, Any]:
        async with transferring.connected(here, arguments.namespace) as client:
            tagged = reference.partition("@")[0]  # the node checks that the digest is that image's
            source = await client.images.find(
                arguments.source or arguments.reference, *([] if arguments.source else [tagged])
            )
            tally = Tally(time.monotonic())

            async def work(report: Callable[[Progress], None]) -> Mapping[str, Any]:
                await client.transfers.transfer(ImageStore(source, platforms=wanted), destination, report)
                return {
                    "digest": tally.root,
                    "layers": len(tally.rows),
                    "existing": sum(part.existed for part in tally.rows),
                }

            return await transferring.shown(output, tally, {"reference": reference, "source": source}, work)

    outcome = transferring.run(push(), "layers that have been sent whole are not sent again by the same command")
    output.said(
        f"pushed {transferring.with_digest(reference, outcome)}: {transferring.figures(outcome)}, "
        f"{transferring.layers(outcome)}"
    )
    return 0
