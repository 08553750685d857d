"""``splitd images ...``: lists the images of the node, inspects, removes, tags, exports and imports them."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from client import bars, files
from client.images_remote import Described, Variant, full_name, platforms_of
from client.progress import Tally
from client.shown import complain, say, table
from deploy import place, transferring
from deploy.failure import Failure
from services.images.transfer import LEFT_OUT, ExportStream, ImageReference, ImageStore, ImportStream, Progress
from services.kit import errors

HELP = "list the node's images, inspect, remove, tag, export and import them"


def arguments(parser: argparse.ArgumentParser) -> None:
    transferring.add_namespace(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for list, export and import")
    action = transferring.actions(parser)

    list_ = action(
        "list",
        "print name, digest, platforms, size and age of each image, and whether it is unpacked (the default action)",
        "ls",
    )
    list_.add_argument("--json", action="store_true", help="print JSON")
    inspect = action(
        "inspect",
        (
            "print one image as JSON: its record, and for each platform its layers, which of them the node has, and "
            "which "
            "snapshotters have them unpacked"
        ),
    )
    inspect.add_argument("reference", metavar="REF")
    remove = action("remove", "remove images; what only they used is collected", "rm")
    remove.add_argument("references", nargs="+", metavar="REF")
    remove.add_argument("--sync", action="store_true", default=False, help="return when everything is collected")
    tag = action("tag", "give an image another name; an image that has this name loses it")
    tag.add_argument("source", metavar="SRC")
    tag.add_argument("destination", metavar="DST")
    export = action("export", "write images to an OCI archive, which docker load reads too")
    export.add_argument("file", metavar="FILE", help="- is standard output")
    export.add_argument("references", nargs="+", metavar="REF")
    transferring.add_platforms(export, "this machine's")
    export.add_argument(
        "--all-platforms",
        action="store_true",
        default=False,
        help=("choose all platforms; the node must have all of them"),
    )
    import_ = action("import", "import the images of an OCI or docker save archive, compressed or not, and unpack them")
    import_.add_argument("file", metavar="FILE", help="- is standard input")
    import_.add_argument(
        "--base-name",
        default="",
        metavar="NAME",
        help=(
            "import only images of this name; an image with only a tag becomes NAME:TAG, one without a name NAME@DIGEST"
        ),
    )
    transferring.add_platforms(import_, "this machine's")
    import_.add_argument(
        "--all-platforms", action="store_true", default=False, help="choose all platforms of the archive"
    )
    transferring.add_unpacking(import_)
    for each in (export, import_):
        transferring.add_output(each)


def run(arguments: argparse.Namespace) -> int:
    action = {None: "list", "ls": "list", "rm": "remove"}.get(arguments.action, arguments.action)
    if arguments.json and action in ("inspect", "remove", "tag"):
        raise Failure(f"--json is for list, export and import, not for {action}", 2)
    return ACTIONS[action](arguments)


# ---------------------------------------------------------------------------------------------- list and inspect


def list_images(arguments: argparse.Namespace) -> int:
    here = place.find(arguments)

    async def found() -> list[Described]:
        async with transferring.connected(here, arguments.namespace) as client:
            return await client.images.describe()

    images = transferring.run(found())
    if arguments.json:
        print(json.dumps([summary(image) for image in images], indent=2))
        return 0
    rows = [("NAME", "DIGEST", "PLATFORMS", "SIZE", "CREATED", "UNPACKED")]
    now = time.time_ns()
    for image in images:
        unpacked = sorted({name for variant in image.variants for name in variant.unpacked})
        rows.append(
            (
                image.image.name,
                image.image.target.digest.partition(":")[2][:12],
                ",".join(platforms_of(image.variants)) or "-",
                bars.size(image.size),
                age(now - image.created_at),
                ",".join(unpacked) or "no",
            )
        )
    table(rows)
    for image in images:
        if image.trouble:
            complain(f"{image.image.name}: {image.trouble}")
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    here = place.find(arguments)

    async def found() -> Described:
        async with transferring.connected(here, arguments.namespace) as client:
            (image,) = await client.images.describe(await client.images.find(arguments.reference))
            return image

    image = transferring.run(found())
    print(json.dumps(detail(image), indent=2))
    return 0


def summary(image: Described) -> dict[str, Any]:
    """An image as ``list --json`` has it. ``size`` is in bytes, of the blobs that the node has. ``created`` is the time
    when its record was made, in RFC 3339. ``unpacked`` names snapshotters.
    """
    return {
        "name": image.image.name,
        "digest": image.image.target.digest,
        "platforms": platforms_of(image.variants),
        "size": image.size,
        "created": timestamp(image.created_at),
        "unpacked": sorted({name for variant in image.variants for name in variant.unpacked}),
        **({"trouble": image.trouble} if image.trouble else {}),
    }


def detail(image: Described) -> dict[str, Any]:
    """An image as ``inspect`` has it: the summary and all other details."""
    target = image.image.target
    return {
        **summary(image),
        "updated": timestamp(image.updated_at),
        "mediaType": target.media_type,
        "labels": dict(sorted(image.image.labels.items())),
        "offered": list(dict.fromkeys(map(str, image.offered))),
        "manifests": [_manifest(variant) for variant in image.variants],
    }


def _manifest(variant: Variant) -> dict[str, Any]:
    return {
        "platform": str(variant.platform),
        "digest": variant.digest,
        "config": variant.config.digest,
        "unpacked": list(variant.unpacked),
        "usable": variant.usable,
        "layers": [
            {
                "digest": layer.digest,
                "mediaType": layer.media_type,
                "size": layer.size,
                "present": layer.digest not in variant.absent,
            }
            for layer in variant.layers
        ],
    }


def timestamp(nanoseconds: int) -> str:
    return datetime.datetime.fromtimestamp(nanoseconds // 10**9, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def age(nanoseconds: int) -> str:
    """``5 minutes ago``, in the largest unit of which there are at least two; ``now`` for less than two seconds."""
    seconds = nanoseconds // 10**9
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        if (count := seconds // length) >= 2:
            return f"{count} {name}s ago"
    return "now"


# ---------------------------------------------------------------------------------------------- remove and tag


def remove(arguments: argparse.Namespace) -> int:
    here = place.find(arguments)

    async def removed() -> list[str]:
        missing = []
        async with transferring.connected(here, arguments.namespace) as client:
            for reference in arguments.references:
                try:
                    name = await client.images.find(reference)
                    await client.images.delete(name, sync=arguments.sync)
                except errors.NotFound as error:
                    missing.append(str(error))
                    continue
                say(f"removed {name}")
        return missing

    if missing := transferring.run(removed()):
        raise Failure(missing[0], more=missing[1:])
    return 0


def tag(arguments: argparse.Namespace) -> int:
    destination = full_name(arguments.destination)
    here = place.find(arguments)

    async def tagged() -> str:
        async with transferring.connected(here, arguments.namespace) as client:
            source = await client.images.find(arguments.source)
            await client.transfers.transfer(ImageStore(source), ImageStore(destination))
            return source

    say(f"{transferring.run(tagged())} is {destination} too")
    return 0


# ---------------------------------------------------------------------------------------------- archives


def export(arguments: argparse.Namespace) -> int:
    wanted = transferring.wanted_platforms(arguments)
    binary = arguments.file == "-"
    if binary and arguments.json:
        raise Failure("the archive goes to standard output, so --json cannot", 2)
    if binary and sys.stdout.isatty():
        raise Failure(
            ("an archive cannot be written to a terminal: name a file, or send standard output to a program"), 2
        )
    name = "standard output" if binary else arguments.file
    output = transferring.output(arguments, f"exporting to {name}", to_stderr=binary)
    here = place.find(arguments)

    async def exported() -> Mapping[str, Any]:
        async with transferring.connected(here, arguments.namespace) as client:
            names = [await client.images.find(reference) for reference in arguments.references]
            tally = Tally(time.monotonic())

            async def work(report: Callable[[Progress], None]) -> Mapping[str, Any]:
                with files.replaced(arguments.file) as fd:
                    sink = files.Sink(fd, name, lambda count: report(Progress("receiving", name, progress=count)))
                    await client.transfers.transfer(
                        ImageStore(references=tuple(map(ImageReference, names))),
                        ExportStream(sink, platforms=wanted, all_platforms=arguments.all_platforms),
                        report,
                    )
                return {}

            return await transferring.shown(output, tally, {"file": name, "images": names}, work)

    outcome = transferring.run(exported())
    output.said(f"exported {', '.join(outcome['images'])} to {name}: {transferring.figures(outcome)}")
    return 0


def import_images(arguments: argparse.Namespace) -> int:
    wanted = transferring.wanted_platforms(arguments)
    unpacks = transferring.unpackings(arguments, wanted)
    prefix = arguments.base_name or f"import-{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    names = ImageReference(
        prefix, is_prefix=True, allow_overwrite=not arguments.base_name, add_digest=True, skip_named_digest=True
    )
    name = "standard input" if arguments.file == "-" else arguments.file
    output = transferring.output(arguments, f"importing {name}")
    here = place.find(arguments)

    async def imported() -> Mapping[str, Any]:
        with files.opened(arguments.file) as fd:
            if os.isatty(fd):
                raise Failure(
                    ("an archive cannot be read from a terminal: name a file, or send one to standard input"), 2
                )
            async with transferring.connected(here, arguments.namespace) as client:
                tally, total = Tally(time.monotonic()), files.size(fd)

                async def work(report: Callable[[Progress], None]) -> Mapping[str, Any]:
                    source = files.pieces(
                        fd, name, lambda count: report(Progress("sending", name, progress=count, total=total))
                    )
                    try:
                        store = ImageStore(platforms=wanted, references=(names,), unpacks=unpacks, only_wanted=True)
                        await client.transfers.transfer(ImportStream(source), store, report)
                    except errors.NodeError as error:
                        raise type(error).verbatim(f"{name}: {error}") from None
                    if tally.left_out and not tally.saved:
                        first, *others = map(left_out, tally.left_out.items())
                        raise Failure(first, more=others)
                    return {
                        "images": [{"name": stored, "digest": digest} for stored, digest in tally.saved.items()],
                        "notImported": [
                            {"name": found, "platforms": platforms} for found, platforms in tally.left_out.items()
                        ],
                    }

                return await transferring.shown(output, tally, {"file": name}, work)

    outcome = transferring.run(imported())
    for image in outcome["images"]:
        output.said(f"imported {transferring.with_digest(image['name'], image)}")
    for image in outcome["notImported"]:
        complain(left_out((image["name"], image["platforms"])))
    output.said(f"read {name}: {transferring.figures(outcome)}")
    return 0


def left_out(image: tuple[str, str]) -> str:
    """The message about an image of an archive that is for other platforms, which it names."""
    name, platforms = image
    return f"{name}: {LEFT_OUT}{platforms}; --all-platforms takes it"


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "list": list_images,
    "inspect": inspect,
    "remove": remove,
    "tag": tag,
    "export": export,
    "import": import_images,
}
