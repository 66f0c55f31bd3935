"""Ports for programs that will listen later: nobody else is given them meanwhile."""

from rig.processes import free_port, ports_of


def test_ports_given_one_after_the_other_and_those_beside_them_are_all_different() -> None:
    given = [free_port() for _ in range(300)]
    assert len({*given, *(port + 1 for port in given)}) == 600


def test_processes_that_run_tests_side_by_side_share_no_port() -> None:
    shares = [ports_of(f"gw{number}", 3) for number in range(3)]
    assert sum(map(len, shares)) == len(set().union(*shares)) == len(ports_of("gw0", 1))
