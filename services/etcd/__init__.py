"""etcd, for what several nodes share and for what must outlive a disk. Begin with :mod:`services.etcd.store`."""
