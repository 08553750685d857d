"""The images service: names for content, and transfers of images.

    transfer.py         what a transfer is, its two ends, and what it needs of a node
    distribution/       pulls and pushes
    registry/           the registry client: it resolves names, fetches and pushes
    archives/           imports and exports
    documents/          manifests, indexes and configs: read, written, walked
    layers/             layers unpacked to snapshots
    node/               the node as a transfer sees it: blobs, ingests, images, snapshots, leases
    concurrency/        limits on what is done at once, and the order of those who wait
    names.py            the names under which images are stored
    *_server.py         the services Transfer, Streaming and Registries; server.py is Images

Words of OCI that all services share (platforms, references) are in services/oci.
"""
