"""Archives of images: OCI layouts, and the archives of docker save and load."""
