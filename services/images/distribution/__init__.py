"""Transfers between registries and the node. puller.py and pusher.py make them; fetcher.py brings one blob into the
node's store (its bytes come through registry/download.py); transfer_client.py makes the registry client of one
transfer; source_labels.py records which repositories have a blob.
"""
