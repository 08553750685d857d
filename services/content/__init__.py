"""Blobs and ingests on disk: the ``content`` process, a raw content store without namespaces."""
