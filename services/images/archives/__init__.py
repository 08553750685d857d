"""Archives of images: OCI layouts, and what docker save and load exchange."""
