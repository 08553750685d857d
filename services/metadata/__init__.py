"""Records of what the node has, per namespace, and the collector of what nobody needs: the ``metadata`` process."""
