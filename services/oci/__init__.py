"""OCI's words, which all services share. Imports only the kit."""
