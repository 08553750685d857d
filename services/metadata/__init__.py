"""The ``metadata`` process: the records of each namespace, and the garbage collector."""
