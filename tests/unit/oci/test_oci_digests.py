"""Digests, and the chain ids that are computed from them."""

from __future__ import annotations

import pytest

from services.oci.digests import Digest, chain_ids, digest_of, digest_problem

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize("text", [f"sha256:{HEX}", f"sha384:{HEX}{HEX[:32]}", f"sha512:{HEX}{HEX}"])
def test_digest(text: str) -> None:
    """A digest of each algorithm that containerd accepts is parsed and printed unchanged."""
    assert str(Digest.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "format"),
        (":", "format"),
        ("sha256:", "format"),
        (f":{HEX}", "format"),
        (HEX, "format"),
        (f"sha256:{HEX[1:]}", "length"),
        (f"sha512:{HEX}", "length"),
        (f"sha256:{HEX}\n", "length"),
        (f"sha256:{HEX.upper()}", "format"),
        (f"sha256:{'g' * 64}", "format"),
        (f"sha256:{'/' * 64}", "format"),
        (f"sha256:{'..' * 32}", "format"),
        (f"md5:{HEX}", "unsupported"),
        (f"sha256+x:{HEX}", "unsupported"),
        ("SHA256:" + HEX, "format"),
        ("a/b:c", "format"),
    ],
)
def test_no_digest(text: str, why: str) -> None:
    """Invalid digests are refused for containerd's reason; a path that would leave the store's directory is no
    digest.
    """
    words = {
        "format": "invalid checksum digest format",
        "length": "invalid checksum digest length",
        "unsupported": "unsupported digest algorithm",
    }
    with pytest.raises(ValueError, match=f"^{words[why]}$"):
        Digest.parse(text)
    assert digest_problem(text) == words[why]


def test_chain_ids() -> None:
    """They are those of OCI's image specification (config.md, Layer ChainID): the lowest is its diff id, each other one
    the digest of the one below, a space, and its diff id.
    """
    low, middle, top = (digest_of(name) for name in (b"low", b"middle", b"top"))
    second = digest_of(f"{low} {middle}".encode())
    assert chain_ids([low, middle, top]) == [low, second, digest_of(f"{second} {top}".encode())]
    assert chain_ids([]) == []
    assert digest_of(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
