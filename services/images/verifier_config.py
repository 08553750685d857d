"""Settings of the programs that are asked whether an image may be pulled (``distribution/verifiers.py``)."""

from __future__ import annotations

from dataclasses import dataclass

from services.kit import settings

PLUGIN = "io.containerd.image-verifier.v1.bindir"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Programs that are asked whether an image may be pulled; the keys are containerd's. Also read from
    [plugins."io.containerd.image-verifier.v1.bindir"].
    """

    bin_dir: str = "/opt/containerd/image-verifier/bin"
    """The directory of the programs; each file in it is one. "", an empty or a missing directory: every image may be
    pulled.
    """
    max_verifiers: int = 10
    """The number of programs that are asked, the first by name; -1: all."""
    per_verifier_timeout: settings.Seconds = 10.0
    """Time after which a program is killed, and the image is not pulled."""

    def __post_init__(self) -> None:
        if self.bin_dir and not self.bin_dir.startswith("/"):
            raise ValueError(f"bin_dir: {self.bin_dir!r} is not an absolute path")
        if self.per_verifier_timeout <= 0:
            raise ValueError(
                "per_verifier_timeout must be greater than 0: otherwise every verifier fails, and no image is pulled"
            )
