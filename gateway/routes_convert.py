"""Routes and candidates as the messages of splitd.routes.v1, and back. The operator's command has these, too."""

from __future__ import annotations

from api.splitd.routes.v1 import routes_pb2 as pb
from gateway.candidates import ALL, Candidate, Terms, named_by
from gateway.store import Objects


def terms_from_pb(message: pb.Terms) -> Terms:
    """The terms of an operator; a name that is left out is made of the address."""
    address = message.address.strip()
    return Terms(
        route=message.route,
        name=message.name or named_by(address),
        address=address,
        namespaces=tuple(dict.fromkeys(message.namespaces)),
        share=message.share if message.HasField("share") else ALL,
        until=message.until,
        back_at=message.back_at,
        deadline=message.deadline,
        capabilities=tuple(dict.fromkeys(message.capabilities)),
        tls=message.tls,
        ca=message.ca,
        cert=message.cert,
        key=message.key,
        server_name=message.server_name,
    )


def terms_to_pb(terms: Terms) -> pb.Terms:
    return pb.Terms(
        route=terms.route,
        name=terms.name,
        address=terms.address,
        namespaces=terms.namespaces,
        share=terms.share,
        until=terms.until,
        back_at=terms.back_at,
        deadline=terms.deadline,
        capabilities=terms.capabilities,
        tls=terms.tls,
        ca=terms.ca,
        cert=terms.cert,
        key=terms.key,
        server_name=terms.server_name,
    )


def candidate_to_pb(candidate: Candidate, trouble: str, objects: int) -> pb.Candidate:
    """``trouble``: why it is down, ``objects``: how many it has, -1 if that is not known."""
    return pb.Candidate(
        terms=terms_to_pb(candidate.terms),
        backend=candidate.terms.backend,
        trouble=trouble,
        drained=candidate.drained,
        since=candidate.since,
        configured=bool(candidate.configured),
        objects=objects,
        chosen=candidate.chosen,
        sent_home=candidate.sent_home,
        calls=candidate.outcomes.calls,
        failures=candidate.outcomes.failures,
        failed=candidate.outcomes.failed,
    )


def objects_to_pb(objects: Objects) -> pb.ObjectsResponse:
    return pb.ObjectsResponse(
        total=objects.total,
        objects=[
            pb.Object(kind=each.kind, namespace=each.namespace, name=each.name, containers=each.containers)
            for each in objects.some
        ],
    )
