"""gateway.calls: what a method is, and what the first bytes of a request say."""

from __future__ import annotations

import random

import pytest

from api.containerd.services.containers.v1 import containers_pb2
from api.containerd.services.images.v1 import images_pb2
from api.containerd.services.tasks.v1 import tasks_pb2
from api.containerd.services.transfer.v1 import transfer_pb2
from api.containerd.types.transfer import imagestore_pb2, registry_pb2
from gateway.calls import field, kind, transfer
from services.kit.any import pack


def create_image() -> images_pb2.CreateImageRequest:
    request = images_pb2.CreateImageRequest()
    request.image.name = "registry.internal/box:1"
    request.image.labels["a"] = "label" * 10
    request.image.target.media_type = "application/vnd.oci.image.manifest.v1+json"
    request.image.target.digest = f"sha256:{'a' * 64}"
    request.image.target.size = 1 << 40
    request.image.created_at.seconds = 1
    return request


@pytest.mark.parametrize(
    ("request_", "path", "said"),
    [
        (tasks_pb2.GetRequest(container_id="a", exec_id="b"), (1,), "a"),
        (tasks_pb2.GetRequest(exec_id="b"), (1,), ""),
        (tasks_pb2.KillRequest(signal=9, all=True), (1,), ""),
        (containers_pb2.CreateContainerRequest(container=containers_pb2.Container(id="a" * 200)), (1, 1), "a" * 200),
        (create_image(), (1, 1), "registry.internal/box:1"),
        (create_image(), (1, 3, 2), f"sha256:{'a' * 64}"),
        (create_image(), (1, 9, 2), ""),
    ],
)
def test_a_field_of_a_request(request_: object, path: tuple[int, ...], said: str) -> None:
    """As its message class reads it."""
    assert field(request_.SerializeToString(), path) == said  # type: ignore[attr-defined]


def test_a_request_that_is_cut_says_nothing_false() -> None:
    """However little of it has come."""
    whole = create_image().SerializeToString()
    for size in range(len(whole)):
        assert field(whole[:size], (1, 1)) in ("", "registry.internal/box:1")
        assert field(whole[:size], (1, 3, 2)) in ("", f"sha256:{'a' * 64}")


def test_bytes_that_are_no_request() -> None:
    """Nothing that a client sends is an error here."""
    rng = random.Random(7)
    for _ in range(20_000):
        noise = rng.randbytes(rng.randrange(40))
        for path in ((1,), (1, 1), (1, 3, 2)):
            assert isinstance(field(noise, path), str)
        transfer(noise)


def test_transfers() -> None:
    """What is transferred to what says the operation; the image's name is the store's."""
    registry = pack(registry_pb2.OCIRegistry(reference="registry.internal/box:1"))
    image = pack(imagestore_pb2.ImageStore(name="box"))

    def said(source: object, destination: object) -> tuple[str, str]:
        request = transfer_pb2.TransferRequest(source=source, destination=destination)  # type: ignore[arg-type]
        return transfer(request.SerializeToString())

    assert said(registry, image) == ("pull", "box")
    assert said(image, registry) == ("push", "box")
    assert said(image, image) == ("tag", "box")
    assert said(registry, None) == ("pull", "registry.internal/box:1")
    assert said(None, None) == ("", "")


@pytest.mark.parametrize(
    ("method", "name", "changes", "watches"),
    [
        ("/containerd.services.images.v1.Images/List", "Images.List", False, False),
        ("/containerd.services.images.v1.Images/Create", "Images.Create", True, False),
        ("/containerd.services.tasks.v1.Tasks/Wait", "Tasks.Wait", False, False),
        ("/containerd.services.events.v1.Events/Subscribe", "Events.Subscribe", False, True),
        ("/x", ".x", True, False),
        ("nonsense", ".nonsense", True, False),
    ],
)
def test_what_a_method_is(method: str, name: str, changes: bool, watches: bool) -> None:
    found = kind(method)
    assert (found.name, found.changes, found.watches) == (name, changes, watches)
