import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from infinilm_router.router.health import HealthProber, RiseFall
from infinilm_router.router.table import Service, TableStore
from rig.processes import free_port

Start = Callable[..., Any]


class Probed:
    """A prober, its table, and every change of verdict."""

    def __init__(self, http: Any, config: Any, services: tuple[Service, ...]) -> None:
        self.heard = False
        self.store = TableStore()
        self.store.set_services(services)
        self.changes: list[tuple[str, bool]] = []
        self.prober = HealthProber(
            config,
            http,
            self.store,
            lambda s, up: self.changes.append((s.name, up)),
            lambda *_: self.heard,
        )

    @property
    def down(self) -> set[str]:
        return set(self.store.current.down)


@pytest.fixture
def probing(session: Any, config: Any, running: Any) -> Start:
    @asynccontextmanager
    async def start(*services: Service, **changes: Any) -> AsyncIterator[Probed]:
        async with session() as http:
            parts = Probed(http, config(**changes), services)
            async with running(parts.prober.run()):
                yield parts

    return start


def verdicts(results: str, fall: int = 3, rise: int = 2) -> str:
    """`+` good, `-` bad, `!` conclusive -> after each result `U` up or `D` down."""
    counter = RiseFall(fall, rise)
    after = ""
    for result in results:
        before = counter.up
        changed = counter.count(good=result == "+", conclusive=result == "!")
        assert changed == (counter.up != before)
        after += "U" if counter.up else "D"
    return after


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ("+-+--+---", "UUUUUUUUD"),
        ("+---+-++", "UUUDDDDU"),
        ("-", "D"),
        ("-++", "DDU"),
        ("+" + "-+" * 30, "U" * 61),
        ("+!++", "UDDU"),
        ("+--!", "UUUD"),
        ("!!+", "DDD"),
    ],
)
def test_three_bad_results_in_a_row_take_out_and_two_good_ones_bring_back(
    results: str, expected: str
) -> None:
    assert verdicts(results) == expected


def test_results_against_the_verdict_make_probes_come_faster() -> None:
    counter = RiseFall(3, 2)
    changing = []
    for result in "+--+---+":
        counter.count(good=result == "+")
        changing.append(counter.changing)
    assert changing == [False, True, True, False, True, True, False, True]


def test_an_engine_goes_down_after_three_bad_probes_and_comes_back_after_two_good_ones(
    probing: Start, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        port = free_port()
        results = iter([200, 503, 503, 200, 503, 503, 503])
        async with (
            serving({"/health": lambda: (next(results, 200), {})}, port + 1) as sitter,
            probing(engine("a", port)) as probed,
        ):
            await until(lambda: probed.down == {"a"})
            assert len(sitter.requests) == 7
            await until(lambda: not probed.down)
            assert len(sitter.requests) == 9
            assert probed.changes == [("a", False), ("a", True)]

    asyncio.run(scenario())


def test_a_new_engine_is_routable_at_once_and_out_when_its_first_probe_fails(
    probing: Start, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        dead = engine("dead", free_port())
        async with probing(health_interval=60.0) as probed:
            probed.store.set_services([dead])
            assert probed.store.current.healthy_engines == (dead,)
            await until(lambda: probed.down == {"dead"})
            assert probed.prober.view("dead").last_check is not None

    asyncio.run(scenario())


class Case:
    """Who listens where, and what the prober should make of it."""

    def __init__(self, up: bool, asked: list[str], sitter: Any = None, itself: Any = None) -> None:
        self.up, self.asked, self.sitter, self.itself = up, asked, sitter, itself


Answer = tuple[int, dict[str, str]]
HERE: Answer = (200, {})
LOADING: Answer = (503, {})
KEY: Answer = (401, {})
CASES = {
    "babysitter ready": Case(True, ["sitter /health"], {"/health": HERE}, {"/health": LOADING}),
    "babysitter not ready": Case(
        False, ["sitter /health"], {"/health": LOADING}, {"/health": HERE}
    ),
    "babysitter redirects": Case(False, ["sitter /health"], {"/health": (302, {})}, {}),
    "no babysitter, engine well": Case(True, ["itself /health"], None, {"/health": HERE}),
    "no babysitter, engine loading": Case(
        False, ["itself /health"], None, {"/health": LOADING, "/v1/models": HERE}
    ),
    "no health call, models": Case(
        True, ["itself /health", "itself /v1/models"], None, {"/v1/models": HERE}
    ),
    "no health call, plain models": Case(
        True, ["itself /health", "itself /v1/models", "itself /models"], None, {"/models": HERE}
    ),
    "no health call, models need a key": Case(
        True, ["itself /health", "itself /v1/models"], None, {"/v1/models": KEY}
    ),
    "none of them": Case(
        False, ["itself /health", "itself /v1/models", "itself /models"], None, {}
    ),
    "nobody listens": Case(False, [], None, None),
}


@pytest.mark.parametrize("name", CASES)
def test_probes_go_where_the_contract_says(
    name: str, probing: Start, serving: Any, until: Any, engine: Any
) -> None:
    case = CASES[name]

    async def scenario() -> None:
        port, asked = free_port(), []
        async with AsyncExitStack() as stack:
            for who, answers, at in (
                ("sitter", case.sitter, port + 1),
                ("itself", case.itself, port),
            ):
                if answers is not None:
                    server = await stack.enter_async_context(serving(answers, at))
                    asked.append((who, server))
            probed = await stack.enter_async_context(
                probing(engine("a", port), health_interval=60.0)
            )
            await until(lambda: probed.prober.view("a").last_check)
            assert probed.down == (set() if case.up else {"a"})
            assert [f"{who} {path}" for who, server in asked for path in server.paths] == case.asked

    asyncio.run(scenario())


def test_metadata_names_another_probe_which_is_the_only_one(
    probing: Start, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        port = free_port()
        async with (
            serving({"/ready": LOADING}) as other,
            serving({"/health": HERE}, port) as itself,
        ):
            override = engine("a", port, metadata={"health_url": f"{other.url}/ready"})
            async with probing(override, engine_api_key="sk-canary") as probed:
                await until(lambda: probed.down == {"a"})
            assert itself.requests == []
            assert all("Authorization" not in request.headers for request in other.requests)

    asyncio.run(scenario())


@pytest.mark.parametrize("url", ["ftp://h/x", "nonsense", "http://\u2603.invalid./"])
def test_a_probe_address_that_is_none_takes_the_engine_out_and_nothing_else(
    url: str, probing: Start, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        async with probing(engine("a", 1, metadata={"health_url": url})) as probed:
            await until(lambda: probed.down == {"a"})

    asyncio.run(scenario())


def test_an_engine_on_the_next_port_is_not_taken_for_a_babysitter(
    probing: Start, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        port = free_port()
        async with (
            serving({"/health": HERE}, port),
            serving({"/health": LOADING}, port + 1),
            probing(engine("a", port), engine("b", port + 1)) as probed,
        ):
            await until(lambda: probed.down == {"b"})
            await until(lambda: probed.prober.view("a").last_check)
            assert probed.changes == [("b", False)]

    asyncio.run(scenario())


def test_an_engine_that_does_not_answer_in_time_is_down(
    probing: Start, silent: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        async with silent() as url:
            hanging = engine("a", 1, metadata={"health_url": url})
            async with probing(hanging, health_timeout=0.05) as probed:
                await until(lambda: probed.down == {"a"})

    asyncio.run(scenario())


def test_an_engine_whose_port_refuses_is_out_at_once(
    probing: Start, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        port = free_port()
        async with probing(engine("a", port), health_fall=10_000) as probed:
            async with serving({"/health": HERE}, port):
                await until(lambda: probed.prober.view("a").results["ok"] and not probed.down)
            await until(lambda: probed.down == {"a"})
            view = probed.prober.view("a")
            assert view.results["refused"] >= 1
            assert view.down_reason == f"127.0.0.1:{port}: Connection refused"

    asyncio.run(scenario())


def test_a_refused_probe_at_another_address_is_one_failure_of_several(
    probing: Start, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        port = free_port()
        url = f"http://127.0.0.1:{port}/health"
        other = engine("a", port + 1, metadata={"health_url": url})
        async with probing(other, health_fall=10_000) as probed:
            async with serving({"/health": HERE}, port):
                await until(lambda: probed.prober.view("a").results["ok"] and not probed.down)
            view = probed.prober.view("a")
            seen = view.results["failed"]
            await until(lambda: view.results["failed"] >= seen + 5)
            assert probed.down == set()
            assert view.results["refused"] == 0

    asyncio.run(scenario())


def test_a_late_probe_counts_unless_requests_get_their_answers(
    probing: Start, silent: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        async with silent() as url:
            hanging = engine("a", 1, metadata={"health_url": url})
            async with probing(hanging, health_timeout=0.05) as probed:
                probed.heard = True
                await until(lambda: probed.prober.view("a").results["busy"] >= 4)
                assert (probed.down, probed.prober.view("a").down_reason) == (set(), None)
                probed.heard = False
                await until(lambda: probed.down == {"a"})
                assert probed.prober.view("a").down_reason == "no answer within 0.05 s"
                probed.heard = True
                seen = probed.prober.view("a").results["busy"]
                await until(lambda: probed.prober.view("a").results["busy"] >= seen + 3)
                assert probed.down == {"a"}, "it neither helps nor harms"

    asyncio.run(scenario())


def test_the_reason_is_what_the_babysitter_says_until_all_is_well(
    probing: Start, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        port = free_port()
        answer = [(503, {"status": "stalled", "liveness": "x"})]
        async with (
            serving({"/health": lambda: answer[-1]}, port + 1),
            probing(engine("a", port)) as probed,
        ):
            await until(lambda: probed.down == {"a"})
            reason = probed.prober.view("a").down_reason
            assert reason == f"http://127.0.0.1:{port + 1}/health answered 503 (stalled)"
            answer.append((503, {"status": "a\nforged line"}))
            await until(lambda: probed.prober.view("a").down_reason != reason)
            now = probed.prober.view("a").down_reason
            assert now == f"http://127.0.0.1:{port + 1}/health answered 503"
            answer.append(HERE)
            await until(lambda: not probed.down)
            assert probed.prober.view("a").down_reason is None

    asyncio.run(scenario())


def test_babysitters_are_not_probed(probing: Start, serving: Any, until: Any, engine: Any) -> None:
    async def scenario() -> None:
        async with serving({"/health": HERE}) as server:
            health_url = f"{server.url}/health"
            sitter = replace(engine("s"), metadata={"type": "InfiniLM", "health_url": health_url})
            probed_one = engine("a", metadata={"health_url": health_url})
            async with probing(sitter, probed_one) as probed:
                await until(lambda: len(server.requests) >= 3)
                assert probed.prober.view("s").last_check is None

    asyncio.run(scenario())


def test_one_probe_at_a_time_for_each_engine(probing: Start, until: Any, engine: Any) -> None:
    """Probes that hang for longer than the interval do not pile up."""
    open_now, most, served = 0, 0, 0

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most, served
        open_now += 1
        most = max(most, open_now)
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.05)
        open_now -= 1
        served += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async def scenario() -> None:
        async with await asyncio.start_server(slow, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            async with probing(engine("a", 1, metadata={"health_url": url}), health_interval=0.01):
                await until(lambda: served >= 4)

    asyncio.run(scenario())
    assert most == 1


def test_a_sync_does_not_bring_back_what_a_probe_took_out(
    probing: Start, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        dead = engine("a", free_port())
        async with probing(dead) as probed:
            await until(lambda: probed.down == {"a"})
            for weight in range(6):
                probed.store.set_services([replace(dead, weight=float(weight))])
                assert probed.down == {"a"}

    asyncio.run(scenario())


def test_an_engine_that_moved_starts_with_a_clean_record(
    probing: Start, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        async with probing(engine("a", free_port()), health_interval=60.0) as probed:
            await until(lambda: probed.down == {"a"})
            port = free_port()
            async with serving({"/health": HERE}, port + 1) as sitter:
                probed.store.set_services([engine("a", port)])
                await until(lambda: not probed.down)
                await until(lambda: sitter.requests)

    asyncio.run(scenario())


def test_an_engine_that_left_is_not_probed_any_more(
    probing: Start, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        async with serving({"/a": HERE, "/b": HERE}) as server:
            both = [engine(name, metadata={"health_url": f"{server.url}/{name}"}) for name in "ab"]
            async with probing(*both) as probed:
                await until(lambda: {"/a", "/b"} <= set(server.paths))
                probed.store.set_services(both[:1])
                await until(lambda: probed.prober.view("b").last_check is None)
                seen = len(server.paths)
                await until(lambda: len(server.paths) >= seen + 5)
                assert set(server.paths[seen + 1 :]) == {"/a"}

    asyncio.run(scenario())


def test_the_key_of_engines_goes_to_the_engine_and_not_to_its_babysitter(
    probing: Start, serving: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        port = free_port()
        async with serving({"/health": HERE}, port) as itself:
            async with probing(engine("a", port), engine_api_key="sk-1"):
                await until(lambda: itself.requests)
            async with (
                serving({"/health": HERE}, port + 1) as sitter,
                probing(engine("a", port), engine_api_key="sk-1"),
            ):
                await until(lambda: sitter.requests)
        assert itself.requests[0].headers["Authorization"] == "Bearer sk-1"
        assert "Authorization" not in sitter.requests[0].headers

    asyncio.run(scenario())


def test_the_loop_leaves_no_task_behind(probing: Start, until: Any, engine: Any) -> None:
    async def scenario() -> None:
        before = asyncio.all_tasks()
        async with probing(*(engine(str(n), 1) for n in range(5))) as probed:
            await until(lambda: len(probed.down) == 5)
        assert asyncio.all_tasks() == before

    asyncio.run(scenario())
