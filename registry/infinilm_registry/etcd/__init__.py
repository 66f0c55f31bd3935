"""The membership in etcd, shared by several registries: see docs/ARCHITECTURE.md."""
