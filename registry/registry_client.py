"""Client of the InfiniLM-SVC registry: `from registry_client import RegistryClient`."""

from infinilm_registry.client import (
    RegistryClient,
    RegistryClientError,
    RegistryRefusedError,
    RegistryUnreachableError,
)

__all__ = [
    "RegistryClient",
    "RegistryClientError",
    "RegistryRefusedError",
    "RegistryUnreachableError",
]
