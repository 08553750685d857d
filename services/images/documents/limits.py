"""Limits on images that are pulled or imported."""

from __future__ import annotations

LAYERS = 500
"""Layers of an image. Docker makes at most 127, and overlayfs mounts 500."""
