"""R31 and R32: registries on etcd."""
