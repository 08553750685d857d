"""The services that splitd's node is made of, one package and one process each."""
