"""Fixtures of R31 and R32: three members of etcd, two registries, two routers, three engines."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.etcd_cluster import Cluster, etcd_cluster
from rig.fleet import Fleet
from rig.processes import Programs


@pytest.fixture
def etcd(run: Programs, tmp_path: Path) -> Iterator[Cluster]:
    with etcd_cluster(run, tmp_path / "etcd") as cluster:
        yield cluster


@pytest.fixture
def fleet(run: Programs, tmp_path: Path, etcd: Cluster) -> Iterator[Fleet]:
    made = Fleet(run, tmp_path, etcd)
    yield made
    made.close()
