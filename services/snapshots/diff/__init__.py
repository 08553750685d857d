"""containerd's Diff service: Apply unpacks a layer onto mounts, Diff makes a layer of the difference between two."""
