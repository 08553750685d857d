"""Between registries and the node: puller.py and pusher.py are the transfers, fetcher.py brings one blob into the
node's store (its bytes come through registry/download.py), transfer_client.py makes the registry client of one
transfer, source_labels.py notes which repositories have a blob.
"""
