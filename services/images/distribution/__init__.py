"""Between registries and the node: puller.py and pusher.py are the transfers, fetcher.py gets one blob."""
