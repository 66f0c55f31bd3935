"""Fixtures of R31 and R32: three members of etcd, two registries, two routers, three engines."""

from collections.abc import Iterator

import pytest

from rig.etcd_cluster import Cluster, etcd_cluster
from rig.fleet import Fleet
from rig.processes import programs


@pytest.fixture(scope="package")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with programs() as run, etcd_cluster(run, tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture(scope="package")
def fleet(tmp_path_factory: pytest.TempPathFactory, etcd: Cluster) -> Iterator[Fleet]:
    """Started once: every test leaves it whole, with the engines alone registered."""
    with programs() as run:
        made = Fleet(run, tmp_path_factory.mktemp("fleet"), etcd)
        yield made
        made.close()
