"""Who is chosen: candidates first, then the policy."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from infinilm_router.router.engine import Limits, Outcome
from infinilm_router.router.load import LoadBook
from infinilm_router.router.policies import rendezvous
from infinilm_router.router.selection import (
    Choice,
    Nobody,
    Request,
    Rules,
    choose,
    explain,
)
from infinilm_router.router.table import Service, ServiceTable
from infinilm_router.utils.errors import Code, RouterError


def engine(name: str, weight: float = 1, **more: Any) -> Service:
    metadata = {"type": "openai-api", **more.pop("metadata", {})}
    return Service(name, "127.0.0.1", 1, weight=weight, models=("m",), metadata=metadata, **more)


def table(*services: Service, **more: Any) -> ServiceTable:
    return ServiceTable(services, known=True, named=frozenset({"m"}), **more)


def request(model: str | None = "m", **more: Any) -> Request:
    asked = Request(b"10.0.0.1")
    asked.model = model
    for key, value in more.items():
        setattr(asked, key, value)
    return asked


def picks(
    where: ServiceTable, count: int, policy: str = "round_robin", book: LoadBook | None = None
) -> str:
    """The names chosen by `count` requests that end at once."""
    book = book or LoadBook()
    names = ""
    for _ in range(count):
        choice = choose(where, request(), book, 0.0, Rules(policy))
        assert isinstance(choice, Choice)
        names += choice.service.name
    return names


def refusal(where: ServiceTable, model: str | None) -> Code:
    with pytest.raises(RouterError) as caught:
        choose(where, request(model), LoadBook(), 0.0, Rules("round_robin"))
    return caught.value.code


def test_weights_interleave_smoothly_as_in_nginx() -> None:
    assert picks(table(engine("a", 5), engine("b"), engine("c")), 14) == "aabacaa" * 2


def test_each_model_has_its_own_turns() -> None:
    both = Service("x", "h", 1, models=("m", "n"), metadata={"type": "openai-api"})
    only = engine("y")
    where, book = table(both, only), LoadBook()
    for _ in range(4):
        choose(where, request("n"), book, 0.0, Rules("round_robin"))
    assert Counter(picks(where, 10, book=book)) == {"x": 5, "y": 5}


def test_weight_0_serves_only_when_nothing_else_is_left() -> None:
    where = table(engine("a", 0), engine("b"), engine("c", backup=True))
    assert picks(where, 3) == "bbb"
    assert picks(table(*where.services, down=frozenset("b")), 3) == "ccc"
    assert picks(table(*where.services, engine("d", 0), down=frozenset("bc")), 4) == "adad"


def test_only_engines_that_are_up_and_serve_the_model_are_candidates() -> None:
    other = Service("o", "h", 1, models=("n",), metadata={"type": "openai-api"})
    sitter = Service("s", "h", 1, models=("m",), metadata={"type": "mock"})
    where = table(engine("a"), engine("b"), engine("c", status="draining"), other, sitter,
                  down=frozenset("b"))  # fmt: skip
    assert picks(where, 3) == "aaa"


def test_who_cannot_be_served_learns_why() -> None:
    up = table(engine("a"))
    assert refusal(up, "unknown") is Code.MODEL_NOT_FOUND
    assert refusal(table(engine("a", status="draining")), "m") is Code.NO_HEALTHY_ENGINE
    assert refusal(ServiceTable(known=False), "m") is Code.NO_HEALTHY_ENGINE
    assert refusal(ServiceTable(known=True), None) is Code.NO_HEALTHY_ENGINE
    gone = ServiceTable(known=True, named=frozenset({"m"}))
    assert refusal(gone, "m") is Code.NO_HEALTHY_ENGINE


def test_a_retry_goes_to_another_engine_and_ends_when_none_is_left() -> None:
    where, book, rules = table(engine("a"), engine("b")), LoadBook(), Rules("round_robin")
    choice = choose(where, request(tried=("a",)), book, 0.0, rules)
    assert isinstance(choice, Choice)
    assert choice.service.name == "b"
    assert choose(where, request(tried=("a", "b")), book, 0.0, rules) is Nobody.TRIED


def fail(book: LoadBook, service: Service, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        book.begin(service, now).release(Outcome.ENGINE_FAULT, now)


def test_ejected_engines_are_passed_over_but_never_more_than_half() -> None:
    services = [engine(name) for name in "abcd"]
    where, book = table(*services), LoadBook(jitter=lambda: 0.5)
    fail(book, services[0], 3)
    assert set(picks(where, 12, book=book)) == set("bcd")
    fail(book, services[1], 3)
    assert set(picks(where, 12, book=book)) == set("cd")
    fail(book, services[2], 3)
    assert set(picks(where, 12, book=book)) == set("abcd")


def test_the_last_engine_of_a_model_is_never_ejected() -> None:
    only, book = engine("a"), LoadBook()
    fail(book, only, 30)
    assert picks(table(only), 3, book=book) == "aaa"


PANICKING = table(*map(engine, "abcd"), down=frozenset("bcd"))


def test_when_probes_leave_less_than_half_the_others_are_tried_too() -> None:
    half = table(*map(engine, "abcd"), down=frozenset("cd"))
    assert (picks(half, 4), half.panic) == ("abab", False)
    assert (picks(PANICKING, 8), PANICKING.panic) == ("abcd" * 2, True)
    assert picks(table(engine("a"), down=frozenset("a")), 2) == "aa"


def test_in_panic_engines_that_are_down_and_failed_a_request_wait_for_the_others() -> None:
    book = LoadBook(Limits(max_fails=0))
    fail(book, PANICKING.services[0], 1)
    fail(book, PANICKING.services[1], 1)
    assert picks(PANICKING, 6, book=book) == "acdacd"
    everyone = table(*PANICKING.services, down=frozenset("abcd"))
    fail(book, everyone.services[2], 1)
    assert picks(everyone, 2, book=book) == "dd"
    fail(book, everyone.services[3], 1)
    assert set(picks(everyone, 4, book=book)) == set("abcd")
    book.begin(everyone.services[1], 0.0).release(Outcome.OK, 0.0)
    assert picks(everyone, 2, book=book) == "bb"


def test_in_panic_ejection_and_what_was_tried_count_as_ever() -> None:
    book, rules = LoadBook(Limits(max_fails=1), jitter=lambda: 0.5), Rules("round_robin")
    fail(book, PANICKING.services[0], 1)
    assert set(picks(PANICKING, 6, book=book)) == set("bcd")
    choice = choose(PANICKING, request(tried=("b", "c")), book, 0.0, rules)
    assert isinstance(choice, Choice)
    assert choice.service.name == "d"
    assert choose(PANICKING, request(tried=tuple("abcd")), book, 0.0, rules) is Nobody.TRIED


def test_panic_is_a_matter_of_each_model_and_of_engines_that_should_run() -> None:
    other = Service("o", "h", 1, models=("n",), metadata={"type": "openai-api"})
    where = table(*map(engine, "ab"), other, down=frozenset("o"))
    assert [where.candidates(model).panic for model in ("m", "n", None)] == [False, True, False]
    assert where.panic
    drained = table(engine("a"), *(engine(name, status="draining") for name in "bcd"))
    assert not drained.panic
    assert not table().panic


def test_a_choice_made_in_panic_says_so() -> None:
    only = table(engine("a"), down=frozenset("a"))
    whys = [choose(where, request(), LoadBook(), 0.0, Rules("round_robin"))
            for where in (PANICKING, only)]  # fmt: skip
    assert [isinstance(choice, Choice) and (choice.why, choice.panic) for choice in whys] == [
        ("round_robin; its turn; panic", True),
        ("round_robin; only candidate; panic", True),
    ]


def test_a_connection_that_fails_in_panic_confirms_the_probes() -> None:
    failed = RouterError(Code.CONNECT_FAILED, "refused")
    late = RouterError(Code.FIRST_BYTE_TIMEOUT, "late")
    told = explain(failed, PANICKING, request(tried=("a", "b")))
    assert (told.code, told.param) == (Code.NO_HEALTHY_ENGINE, "model")
    assert told.message == "No healthy services available for model 'm'"
    assert explain(failed, PANICKING, request(tried=("b", "c"))) is failed  # a is up
    assert explain(late, PANICKING, request(tried=("a",))) is late


def test_least_loaded_counts_by_weight() -> None:
    heavy, light = engine("a", 3), engine("b", 1)
    book = LoadBook()
    names = Counter[str]()
    for _ in range(40):
        choice = choose(table(heavy, light), request(), book, 0.0, Rules("least_loaded"))
        assert isinstance(choice, Choice)
        book.begin(choice.service, 0.0)
        names[choice.service.name] += 1
    assert names == {"a": 30, "b": 10}


def answer(book: LoadBook, service: Service, seconds: float, now: float = 0.0) -> None:
    """A request that took so long to its first byte."""
    guard = book.begin(service, now - seconds)
    guard.answered(200, None, stream=False, now=now)
    guard.first_byte(now)
    guard.release(Outcome.OK, now)


def pair(book: LoadBook, *services: Service, now: float = 0.0) -> str:
    """Whom power of two prefers: every name that it ever chose of two engines."""
    names = set()
    for _ in range(20):
        choice = choose(table(*services), request(), book, now, Rules("power_of_two"))
        assert isinstance(choice, Choice)
        names.add(choice.service.name)
    return "".join(sorted(names))


def test_power_of_two_weighs_requests_by_the_time_that_they_take() -> None:
    slow, fast, book = engine("a"), engine("b"), LoadBook()
    assert pair(book, slow, fast) == "ab"  # nothing is known, so nothing speaks for either
    book.begin(slow, 0.0)
    assert pair(book, slow, fast) == "b"
    book.begin(fast, 0.0)
    answer(book, slow, 1.0)
    assert pair(book, slow, fast) == "ab"  # of one of them nothing is known yet
    answer(book, fast, 0.1)
    for _ in range(18):  # 19 in flight, as the slow one has 1: (19 + 1) x 0.1 = (1 + 1) x 1
        assert pair(book, slow, fast) == "b"
        book.begin(fast, 0.0)
    book.begin(fast, 0.0)
    assert pair(book, slow, fast) == "a"


def test_power_of_two_divides_by_weight() -> None:
    heavy, light, book = engine("a", 3), engine("b"), LoadBook()
    for service in (heavy, light):
        answer(book, service, 0.5)
    for _ in range(2):
        assert pair(book, heavy, light) == "a"
        book.begin(heavy, 0.0)
    book.begin(heavy, 0.0)
    assert pair(book, heavy, light) == "b"


def test_an_engine_that_fails_fast_attracts_nothing() -> None:
    good, bad, book = engine("a"), engine("b"), LoadBook(Limits(max_fails=0))
    answer(book, good, 0.5)
    fail(book, bad, 1)
    for _ in range(9):  # (8 + 1) x 0.5 < 5
        assert pair(book, good, bad) == "a"
        book.begin(good, 0.0)


def warmed(policy: str, count: int = 400) -> list[float]:
    """Shares of 4 engines, of which the first has just come: in its first 10 s, and after them."""
    services = [engine(name) for name in "abcd"]
    where, book = table(*services), LoadBook()
    book.follow(table(*services[1:]), where, 0.0)
    shares = []
    for start in (0.0, 10.0):
        served = Counter[str]()
        for number in range(count):
            now = start + 10 * number / count
            choice = choose(where, request(), book, now, Rules(policy))
            assert isinstance(choice, Choice)
            served[choice.service.name] += 1
            answer(book, choice.service, 0.1, now)
        shares.append(served["a"] / (count / 4))
    return shares


@pytest.mark.parametrize("policy", ["round_robin", "least_loaded", "power_of_two", "random"])
def test_an_engine_that_comes_takes_up_its_share_slowly(policy: str) -> None:
    first, then = warmed(policy)
    assert 0.1 <= first <= 0.5
    assert then >= 0.6


def test_warming_takes_nothing_from_who_has_no_other_engine() -> None:
    services = [engine("a"), engine("b", backup=True)]
    where, book = table(*services), LoadBook()
    book.follow(table(services[1]), where, 0.0)
    assert picks(where, 3, book=book) == "aaa"  # a backup is no other engine
    fail(book, services[0], 3)
    assert picks(where, 3, book=book) == "bbb"


def test_keys_keep_their_engines_while_one_is_warming() -> None:
    services = [engine(name) for name in "abcd"]
    where, book = table(*services), LoadBook()
    book.follow(table(*services[1:]), where, 0.0)
    keys = [f"session-{n}".encode() for n in range(100)]
    for key in keys:
        choice = choose(where, request(key=key), book, 0.0, Rules("consistent_hash"))
        assert isinstance(choice, Choice)
        assert choice.service is rendezvous(key, services, book)


def limited(name: str, limit: int, **more: Any) -> Service:
    return engine(name, metadata={"max_concurrency": limit}, **more)


def test_engines_at_their_limit_are_passed_over_and_others_before_them_come_after() -> None:
    services = [limited("a", 2), limited("b", 1), limited("s", 1, backup=True), limited("z", 1)]
    services[3] = replace(services[3], weight=0)
    where, book = table(*services), LoadBook()
    names = ""
    for _ in range(5):
        choice = choose(where, request(), book, 0.0, Rules("round_robin"))
        assert isinstance(choice, Choice)
        names += choice.service.name
        book.begin(choice.service, 0.0)
    assert names == "abasz"
    assert choose(where, request(), book, 0.0, Rules("round_robin")) is Nobody.FULL
    assert choose(where, request(tried=tuple("abs")), book, 0.0, Rules("random")) is Nobody.FULL
    assert choose(where, request(tried=tuple("absz")), book, 0.0, Rules("random")) is Nobody.TRIED


def test_an_engine_that_asked_for_a_pause_comes_last() -> None:
    services = [engine("a"), limited("b", 1)]
    where, book = table(*services), LoadBook()
    book.begin(services[0], 0.0).answered(429, 60.0, stream=False, now=0.0)
    assert picks(where, 4, book=book) == "bbbb"
    book.begin(services[1], 0.0)
    assert choose(where, request(), book, 0.0, Rules("round_robin")) is Nobody.FULL
    last = choose(where, request(), book, 0.0, Rules("round_robin", last_choice=True))
    assert isinstance(last, Choice)
    assert last.service.name == "a"
    assert picks(table(services[0]), 2, book=book) == "aa"  # who is alone is asked all the same


def test_a_key_stays_with_its_engine_and_few_move_when_one_leaves() -> None:
    services = [engine(f"engine-{n}") for n in range(5)]
    book = LoadBook()
    keys = [f"session-{n}".encode() for n in range(2000)]
    before = {key: rendezvous(key, services, book).name for key in keys}
    left = {key: rendezvous(key, services[1:], book).name for key in keys}
    moved = [key for key in keys if before[key] != left[key]]
    assert {before[key] for key in moved} == {"engine-0"}
    assert {key: rendezvous(key, services[::-1], book).name for key in keys} == before
    assert max(Counter(before.values()).values()) < 1.25 * len(keys) / 5


def test_one_hot_key_does_not_pile_up() -> None:
    services = [engine(name) for name in "abcd"]
    book = LoadBook()
    for _ in range(100):
        book.begin(rendezvous(b"hot", services, book), 0.0)
    assert max(book.of(s).in_flight for s in services) <= 1.25 * 25 + 1


@pytest.mark.parametrize("policy", ["consistent_hash", "ip_hash"])
def test_hash_policies_are_sticky(policy: str) -> None:
    assert len(set(picks(table(*map(engine, "abcd")), 20, policy))) == 1


def test_long_prompts_prefer_a_static_cache_and_others_a_paged_one() -> None:
    paged = engine("p", metadata={"cache_type": "paged"})
    static = engine("s", metadata={"cache_type": "static"})
    rules, book = Rules("round_robin", cache_type_threshold=100), LoadBook()

    def chosen(size: int, *services: Service) -> str:
        choice = choose(table(*services), request(prompt_bytes=size), book, 0.0, rules)
        assert isinstance(choice, Choice)
        return choice.service.name

    assert [chosen(size, paged, static) for size in (10, 100, 101, 5000)] == ["p", "p", "s", "s"]
    assert chosen(5000, paged, engine("x", metadata={"cache_type": "paged"})) in "px"


def test_the_choice_says_why() -> None:
    choice = choose(table(*map(engine, "ab")), request(), LoadBook(), 0.0, Rules("round_robin"))
    assert isinstance(choice, Choice)
    assert choice.why == "round_robin; its turn"
