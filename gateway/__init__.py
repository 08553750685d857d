"""The gateway: containerd's unified API on one socket, in front of the services that are it.

It names, routes, bounds and coordinates; it stores nothing but its uuid. Read in this order: ``routes`` (who serves
what), ``hop`` (the one way out), ``upstream`` (one service behind it, which may be down), ``relay`` (what needs no
coordination), ``content`` and ``snapshots`` (what does: a raw service and its records joined), ``smallblobs``,
``openblobs``, ``mounts``, ``localfiles``, ``events``, ``introspection``, ``__main__``.
"""
