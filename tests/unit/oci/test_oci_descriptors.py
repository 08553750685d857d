"""Descriptors; their digests come from documents and clients."""

from __future__ import annotations

import pytest

from services.kit import errors
from services.oci.descriptors import Descriptor
from services.oci.digests import Digest
from services.oci.media_types import INDEX, LAYER_GZIP

HEX = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def test_a_digest_is_checked_where_it_has_to_be_one() -> None:
    """A request must not be made of an invalid one; the error has it in quotes, since it comes from outside."""
    assert Descriptor(LAYER_GZIP, f"sha256:{HEX}", 1).checked() == Digest("sha256", HEX)
    with pytest.raises(errors.InvalidArgument, match=r"^digest '\.\./x\\n': invalid checksum digest format"):
        Descriptor(LAYER_GZIP, "../x\n", 1).checked()


def test_what_it_is() -> None:
    """The kind of a descriptor, for messages and for a registry's paths."""
    index, layer = Descriptor(INDEX, f"sha256:{HEX}", 1), Descriptor(LAYER_GZIP, f"sha256:{HEX}", 1)
    assert (index.is_root, layer.is_root) == (True, False)
    assert (str(index), str(layer)) == (f"manifest sha256:{HEX}", f"blob sha256:{HEX}")
    assert (index.ref, layer.ref) == (f"index-sha256:{HEX}", f"layer-sha256:{HEX}")
