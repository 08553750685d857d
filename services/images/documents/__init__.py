"""An image's documents: manifests, indexes and configs, how they are read and written, and walks through them."""
