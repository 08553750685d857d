"""Layers as EROFS images: an index made from a layer's tar stream, whose files' data stay in the tar."""
