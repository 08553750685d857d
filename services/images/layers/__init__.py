"""From layers to snapshots: unpacker.py unpacks a layer, chain.py commits the layers of an image on top of each
other.
"""
