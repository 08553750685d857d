"""The words of OCI that all services share. Each has a file, and beside it its conversion to containerd's messages and
back (``_convert``). Imports the kit only.
"""
