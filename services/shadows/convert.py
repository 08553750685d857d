"""Conversion between protobuf messages and domain values, both directions side by side."""

from __future__ import annotations

from api.splitd.shadows.v1 import shadows_pb2 as pb
from services.kit import errors
from services.kit.addresses import Address
from services.shadows.store import Copy, Difference, Example, Latency, MethodReport


def address_from_pb(message: pb.StartRequest) -> Address:
    """Where the candidate is; InvalidArgument, naming the field."""
    try:
        return Address(
            address=message.address,
            tls=message.tls,
            ca=message.ca,
            cert=message.cert,
            key=message.key,
            server_name=message.server_name,
        )
    except ValueError as error:
        raise errors.InvalidArgument(str(error)) from None


def copy_from_pb(message: pb.Copy) -> Copy:
    return Copy(
        message.path,
        list(message.requests),
        errors.name(message.code) if message.code else "OK",
        list(message.answers) if message.answered else None,
        message.seconds,
        message.trace,
    )


def method_to_pb(report: MethodReport) -> pb.Method:
    return pb.Method(
        name=report.method,
        calls=report.calls,
        same=report.same,
        different=report.different,
        dropped=report.dropped,
        skipped=report.skipped,
        ours=_latency_to_pb(report.ours),
        candidate=_latency_to_pb(report.candidate),
        differences=[
            pb.Difference(
                field=each.name,
                count=each.count,
                noise=each.noise,
                asked=each.asked,
                examples=[
                    pb.Example(
                        ours=example.ours,
                        candidate=example.candidate,
                        field=example.where,
                        request=example.request,
                        trace=example.trace,
                    )
                    for example in each.examples
                ],
            )
            for each in report.differences
        ],
    )


def method_from_pb(message: pb.Method) -> MethodReport:
    return MethodReport(
        message.name,
        message.calls,
        message.same,
        message.different,
        message.dropped,
        dict(message.skipped),
        _latency_from_pb(message.ours),
        _latency_from_pb(message.candidate),
        [
            Difference(
                each.field,
                each.count,
                each.noise,
                each.asked,
                [
                    Example(example.ours, example.candidate, example.field, example.request, example.trace)
                    for example in each.examples
                ],
            )
            for each in message.differences
        ],
    )


def _latency_to_pb(latency: Latency) -> pb.Latency:
    return pb.Latency(count=latency.count, p50=latency.p50, p99=latency.p99)


def _latency_from_pb(message: pb.Latency) -> Latency:
    return Latency(message.count, message.p50, message.p99)
