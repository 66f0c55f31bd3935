import asyncio
from dataclasses import replace
from typing import Any

from rig.processes import free_port

HERE = (200, {})


def test_an_engine_goes_down_after_three_bad_probes_and_comes_back_after_two_good_ones(
    probing: Any, serving: Any, until: Any, engine: Any
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
    probing: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        dead = engine("dead", free_port())
        async with probing(health_interval=60.0) as probed:
            probed.store.set_services([dead])
            assert probed.store.current.healthy_engines == (dead,)
            await until(lambda: probed.down == {"dead"})
            assert probed.prober.view("dead").last_check is not None

    asyncio.run(scenario())


def test_an_engine_that_does_not_answer_in_time_is_down(
    probing: Any, silent: Any, until: Any, engine: Any
) -> None:
    async def scenario() -> None:
        async with silent() as url:
            hanging = engine("a", 1, metadata={"health_url": url})
            async with probing(hanging, health_timeout=0.05) as probed:
                await until(lambda: probed.down == {"a"})

    asyncio.run(scenario())


def test_an_engine_whose_port_refuses_is_out_at_once(
    probing: Any, serving: Any, until: Any, engine: Any
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
    probing: Any, serving: Any, until: Any, engine: Any
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
    probing: Any, silent: Any, until: Any, engine: Any
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
    probing: Any, serving: Any, until: Any, engine: Any
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


def test_babysitters_are_not_probed(probing: Any, serving: Any, until: Any, engine: Any) -> None:
    async def scenario() -> None:
        async with serving({"/health": HERE}) as server:
            health_url = f"{server.url}/health"
            sitter = replace(engine("s"), metadata={"type": "InfiniLM", "health_url": health_url})
            probed_one = engine("a", metadata={"health_url": health_url})
            async with probing(sitter, probed_one) as probed:
                await until(lambda: len(server.requests) >= 3)
                assert probed.prober.view("s").last_check is None

    asyncio.run(scenario())


def test_one_probe_at_a_time_for_each_engine(probing: Any, until: Any, engine: Any) -> None:
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
    probing: Any, until: Any, engine: Any
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
    probing: Any, serving: Any, until: Any, engine: Any
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
    probing: Any, serving: Any, until: Any, engine: Any
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


def test_the_loop_leaves_no_task_behind(probing: Any, until: Any, engine: Any) -> None:
    async def scenario() -> None:
        before = asyncio.all_tasks()
        async with probing(*(engine(str(n), 1) for n in range(5))) as probed:
            await until(lambda: len(probed.down) == 5)
        assert asyncio.all_tasks() == before

    asyncio.run(scenario())
