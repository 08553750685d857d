"""Digests, which name blobs by their bytes, and the chain ids that are made of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

ALGORITHMS: Mapping[str, int] = {"sha256": 64, "sha384": 96, "sha512": 128}
"""Digest algorithms that containerd accepts, and the number of hex digits of each."""

CANONICAL = "sha256"
"""The default algorithm."""

_SHAPE = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_HEX = re.compile(r"[a-f0-9]+")


@dataclass(frozen=True, slots=True)
class Digest:
    """A checked ``sha256:hex`` name (or sha384, sha512). Every instance is well formed."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The digest that ``text`` names. If it names none, ValueError says why, in containerd's words."""
        if why := digest_problem(text):
            raise ValueError(why)
        algorithm, _, encoded = text.partition(":")
        return cls(algorithm, encoded)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


def digest_problem(text: str) -> str:
    """Why ``text`` is no digest, in the words of containerd's digest library; "" if it is one."""
    algorithm, _, encoded = text.partition(":")
    if not algorithm or not encoded:
        return "invalid checksum digest format"
    digits = ALGORITHMS.get(algorithm)
    if digits is None:
        return "unsupported digest algorithm" if _SHAPE.fullmatch(text) else "invalid checksum digest format"
    if len(encoded) != digits:
        return "invalid checksum digest length"
    return "" if _HEX.fullmatch(encoded) else "invalid checksum digest format"


def digest_of(data: bytes) -> str:
    """``sha256:HEX`` of ``data``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """The chain id of each layer, which names it together with the layers below: the digest of the chain id below, a
    space, and the diff id. The first chain id is the first diff id.
    """
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain
