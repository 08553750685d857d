"""The ``content`` process: blobs and ingests on disk, a raw content store without namespaces."""
