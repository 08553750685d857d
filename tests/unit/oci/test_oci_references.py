"""References: complete ones, as registries need them, and Docker's short forms."""

from __future__ import annotations

import pytest

from services.kit import errors
from services.oci import references
from services.oci.digests import Digest
from services.oci.references import Reference

HEX = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "host", "repository", "tag", "digest"),
    [
        ("docker.io/library/busybox:latest", "docker.io", "library/busybox", "latest", ""),
        (f"127.0.0.1:5000/a/b:tag@{DIGEST}", "127.0.0.1:5000", "a/b", "tag", DIGEST),
        (f"[::1]:5000/a@{DIGEST}", "[::1]:5000", "a", "", DIGEST),
        ("localhost/x", "localhost", "x", "", ""),
        ("ghcr.io/Some/Name__x.y-z:V1_2.3-4", "ghcr.io", "Some/Name__x.y-z", "V1_2.3-4", ""),
    ],
)
def test_references(text: str, host: str, repository: str, tag: str, digest: str) -> None:
    """They are parsed, and printed unchanged."""
    reference = Reference.parse(text)
    assert (reference.host, reference.repository, reference.tag, str(reference.digest or "")) == (
        host,
        repository,
        tag,
        digest,
    )
    assert str(reference) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("busybox:latest", "no repository; give it in full, such as docker.io/library/busybox:latest"),
        ("https://docker.io/library/busybox", "it is a URL; leave out the scheme"),
        ("", "no repository"),
        ("/x:1", "is not a host"),
        ("h ost/x:1", "is not a host"),
        ("me@host/x:1", "is not a host"),
        ("h:99999/x", "is not a host"),
        ("docker.io/a//b:1", "is not the name of a repository"),
        ("docker.io/../b:1", "is not the name of a repository"),
        ("docker.io/a?b:1", "not the name"),
        ("docker.io/a b", "not the name"),
        ("docker.io/:1", "not the name"),
        ("docker.io/a:", "is not a tag"),
        ("docker.io/a:b:c", "is not a tag"),
        ("docker.io/a:1/b", "is not a tag"),
        ("docker.io/a:" + "x" * 129, "is not a tag"),
        ("docker.io/a@sha256:abc", "invalid checksum digest length"),
        ("docker.io/a@", "invalid checksum digest format"),
    ],
)
def test_malformed_references(text: str, words: str) -> None:
    """The error has the reference and what is wrong with it."""
    with pytest.raises(errors.InvalidArgument, match=words) as raised:
        Reference.parse(text)
    assert str(raised.value).startswith(f'reference "{text}": ')


def test_the_digest_decides() -> None:
    """A reference with a tag and a digest has the digest's meaning."""
    reference = Reference.parse(f"h/x:1@{DIGEST}")
    assert reference.target == DIGEST
    assert Reference.parse("h/x:1").target == "1"
    assert Reference.parse("h/x:1").at(Digest.parse(DIGEST)) == reference


@pytest.mark.parametrize(
    ("given", "full", "short"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("busybox:1", "docker.io/library/busybox:1", "busybox:1"),
        ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("index.docker.io/library/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("me/app", "docker.io/me/app:latest", "me/app:latest"),
        ("docker.io/library/distros/x:1", "docker.io/library/distros/x:1", "library/distros/x:1"),
        ("localhost/x:1", "localhost/x:1", "localhost/x:1"),
        ("localhost:5000/a/b:1", "localhost:5000/a/b:1", "localhost:5000/a/b:1"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
        ("UPPER/x:1", "UPPER/x:1", "UPPER/x:1"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}", f"busybox@{DIGEST}"),
        (f"busybox:1@{DIGEST}", f"docker.io/library/busybox@{DIGEST}", f"busybox:1@{DIGEST}"),
    ],
)
def test_short_and_full_forms(given: str, full: str, short: str) -> None:
    assert references.normalized(given) == full
    assert references.familiar(given) == short


def test_the_complete_form_keeps_both_the_tag_and_the_digest() -> None:
    """Without either the tag is "latest"."""
    digest = "sha256:" + "a" * 64
    for given, complete in (
        ("box", "docker.io/library/box:latest"),
        ("box:1", "docker.io/library/box:1"),
        (f"a/box@{digest}", f"docker.io/a/box@{digest}"),
        (f"10.0.0.1:5000/a/box:1@{digest}", f"10.0.0.1:5000/a/box:1@{digest}"),
    ):
        assert references.complete(given) == complete


@pytest.mark.parametrize("given", ["", "Busybox", "a b", "x:", "x@sha256:12", HEX, "a//b", "-a/b.c/"])
def test_malformed_short_references(given: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        references.normalized(given)
