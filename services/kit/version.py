"""Which splitd this is, and which containerd it speaks as. The only place that says so.

Clients read the server's version as containerd's and decide by it what they may call (nerdctl, for one), so it begins with the containerd
release whose behaviour is our specification; splitd's own version stands behind the plus, as semver's build metadata.
"""

from __future__ import annotations

SPLITD = "0.1.0"
CONTAINERD = "2.4.0"
VERSION = f"{CONTAINERD}+splitd.{SPLITD}"
"""What the Version service answers: ``2.4.0+splitd.0.1.0``."""

REVISION = ""
"""The commit, where a build says it; ctr prints it."""
PACKAGE = "splitd"
