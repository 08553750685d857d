"""The gateway: containerd's API on one socket, in front of the services that make it up.

It names, routes, bounds and coordinates; it stores only its UUID and which snapshotters there are. Read in this order:
``routes`` (which service serves what), ``hop`` (the one way out), ``upstream`` (one service behind the gateway, which
may be down), ``relay`` (the calls that need no coordination), ``remembered`` (answers that stay right for a while),
``store`` (how a raw service and its records are joined), ``intents`` and ``remote``, ``content``, ``writes`` and
``snapshots`` (the calls that need it), ``smallblobs``, ``openblobs``, ``mounts``, ``localfiles``, ``events``,
``introspection``, ``__main__``.
"""
