"""The rules of leaving: time is passed in, nothing waits."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from infinilm_router.registry.membership import Membership
from infinilm_router.router.table import Service

GRACE = 60.0
Make = Callable[..., Service]


def names(membership: Membership) -> list[str]:
    return [service.name for service in membership.services]


def of(engine: Make, letters: str) -> list[Service]:
    return [engine(letter, 9000 + index) for index, letter in enumerate(letters)]


@pytest.fixture
def four(engine: Make) -> Membership:
    """Engines a to d, all healthy at time 0."""
    membership = Membership(GRACE)
    membership.healthy(of(engine, "abcd"), 0.0)
    return membership


def test_a_service_that_is_gone_is_kept_for_the_grace_period_and_then_removed(
    four: Membership, engine: Make
) -> None:
    four.healthy(of(engine, "abc"), 100.0)
    four.listed(of(engine, "abc"))
    assert four.expire(159.9, ()) == []
    assert names(four) == ["a", "b", "c", "d"]
    assert four.expire(160.0, ()) == ["d"]
    assert names(four) == ["a", "b", "c"]


def test_grace_starts_anew_when_a_service_comes_back(four: Membership, engine: Make) -> None:
    four.healthy(of(engine, "abc"), 0.0)
    four.healthy(of(engine, "abcd"), 50.0)
    four.healthy(of(engine, "abc"), 55.0)
    assert four.expire(60.0, ()) == []
    assert four.expire(115.0, ()) == ["d"]


def test_an_empty_answer_removes_only_engines_whose_probes_fail(
    four: Membership, engine: Make
) -> None:
    four.healthy([], 0.0)
    four.listed([])
    assert four.expire(10_000.0, ()) == []
    assert four.expire(10_000.0, {"b"}) == ["b"]
    assert names(four) == ["a", "c", "d"]


def test_losing_more_than_half_at_once_counts_as_a_fault_of_the_registry(
    four: Membership, engine: Make
) -> None:
    four.healthy(of(engine, "a"), 0.0)
    assert four.expire(10_000.0, ()) == []


def test_losing_half_at_once_is_believed(four: Membership, engine: Make) -> None:
    four.healthy(of(engine, "ab"), 0.0)
    assert four.expire(GRACE, ()) == ["c", "d"]


def test_the_only_engine_is_not_removed_while_its_probe_is_good(engine: Make) -> None:
    membership = Membership(GRACE)
    membership.healthy([engine("a")], 0.0)
    membership.healthy([], 1.0)
    assert membership.expire(10_000.0, ()) == []
    assert membership.expire(10_000.0, {"a"}) == ["a"]


def test_engines_that_register_again_one_by_one_leave_the_others_guarded(
    four: Membership, engine: Make
) -> None:
    """The registry came back empty; each engine comes back with its next heartbeat."""
    four.healthy([], 0.0)
    for seconds, present in enumerate(("a", "ab", "abc"), start=1):
        four.healthy(of(engine, present), float(seconds))
    assert four.expire(10_000.0, ()) == []
    assert names(four) == ["a", "b", "c", "d"]


def test_dead_engines_of_a_lost_list_leave_by_a_third_per_answer(engine: Make) -> None:
    membership = Membership(GRACE)
    membership.healthy(of(engine, "abcdefghij"), 0.0)
    membership.healthy([], 0.0)
    down = set("abcdefghij")
    left = []
    while names(membership):
        left.append(len(membership.expire(GRACE, down)))
    assert left == [3, 2, 1, 1, 1, 1, 1]


def test_a_babysitter_that_is_gone_leaves_after_grace_though_it_has_no_probe(
    engine: Make,
) -> None:
    membership = Membership(GRACE)
    sitter = replace(engine("s", 9001), metadata={"type": "InfiniLM"})
    membership.healthy([engine("a"), sitter], 0.0)
    membership.healthy([], 0.0)
    assert membership.expire(GRACE, ()) == ["s"]


def test_a_draining_engine_stops_being_routable_at_once_and_stays_named(
    four: Membership, engine: Make
) -> None:
    draining = replace(engine("d", 9003), status="draining")
    four.healthy(of(engine, "abc"), 0.0)
    four.listed([*of(engine, "abc"), draining])
    assert four.expire(0.0, ()) == []
    assert [s.status for s in four.services] == ["running", "running", "running", "draining"]
    four.listed([*of(engine, "abc"), draining])
    assert four.expire(10_000.0, ()) == []
    four.listed(of(engine, "abc"))
    assert four.expire(10_001.0, ()) == ["d"]


def test_draining_all_engines_is_no_fault_of_the_registry(engine: Make) -> None:
    membership = Membership(GRACE)
    membership.healthy([engine("a")], 0.0)
    membership.healthy([], 1.0)
    membership.listed([replace(engine("a"), status="draining")])
    membership.listed([])
    assert membership.expire(1.0 + GRACE, ()) == ["a"]


def test_an_engine_listed_as_unhealthy_serves_through_the_grace_period_and_stays_named(
    four: Membership, engine: Make
) -> None:
    """Its heartbeats are late: our own probe decides first, then the registry's word counts."""
    four.healthy(of(engine, "abc"), 0.0)
    four.listed(of(engine, "abcd"))
    four.expire(GRACE - 1, ())
    assert four.services[3].status == "running"
    assert four.expire(GRACE, ()) == []
    assert four.services[3].status == "unhealthy"
    four.healthy(of(engine, "abcd"), GRACE + 1)
    assert four.services[3].status == "running"


def test_services_marked_static_are_never_removed(engine: Make) -> None:
    membership = Membership(GRACE)
    fixed = engine("fixed", 9009, metadata={"static": True})
    membership.healthy([*of(engine, "abc"), fixed], 0.0)
    membership.healthy(of(engine, "abc"), 0.0)
    assert membership.expire(1e9, {"fixed"}) == []


def test_a_service_that_moved_is_replaced_in_its_place(four: Membership, engine: Make) -> None:
    moved = engine("b", 9500)
    four.healthy([moved, *(s for s in of(engine, "abcd") if s.name != "b")], 1.0)
    assert names(four) == ["a", "b", "c", "d"]
    assert four.services[1].port == 9500


def test_a_restored_list_is_judged_by_the_first_answer(engine: Make) -> None:
    membership = Membership(GRACE)
    membership.restore(of(engine, "abc"))
    membership.healthy(of(engine, "ab"), 5.0)
    assert membership.expire(5.0 + GRACE, ()) == ["c"]
