"""OCI's words, which all services share: each has a file, and beside it its way to containerd's messages and back
(``_convert``). Imports the kit only.
"""
