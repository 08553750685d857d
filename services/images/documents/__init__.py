"""An image's documents: manifests, indexes and configs. They are read, written and walked here."""
