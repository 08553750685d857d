"""From layers to snapshots: unpacker.py unpacks a layer, chain.py commits the layers of an image one upon the other."""
