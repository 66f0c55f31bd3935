import asyncio

from infinilm_registry.watch import Watch


async def until_waiting(watch: Watch, count: int) -> None:
    while watch.waiting < count:  # noqa: ASYNC110 - the watch says nothing when somebody comes
        await asyncio.sleep(0)


def test_five_thousand_waiters_are_woken_by_one_change() -> None:
    async def scenario() -> tuple[int, list[bool]]:
        watch = Watch(7)
        waiters = [asyncio.create_task(watch.changed_since(7, 30)) for _ in range(5000)]
        await until_waiting(watch, 5000)
        watch.advance()
        return watch.waiting, await asyncio.gather(*waiters)

    waiting, answers = asyncio.run(scenario())
    assert waiting == 5000
    assert answers == [True] * 5000


def test_a_burst_of_changes_is_one_answer() -> None:
    async def scenario() -> int:
        watch = Watch(0)
        waiter = asyncio.create_task(watch.changed_since(0, 30))
        await until_waiting(watch, 1)
        for _ in range(5):
            watch.advance()
            await asyncio.sleep(0)
        assert await waiter
        return watch.revision

    assert asyncio.run(scenario()) == 5


def test_stop_wakes_everybody_and_nobody_waits_any_more() -> None:
    async def scenario() -> list[bool]:
        watch = Watch(0)
        waiter = asyncio.create_task(watch.changed_since(0, 3600))
        await until_waiting(watch, 1)
        watch.close()
        return [await waiter, await watch.changed_since(0, 3600)]

    assert asyncio.run(scenario()) == [False, False]


def test_an_old_revision_is_answered_at_once_and_the_present_one_after_the_wait() -> None:
    async def scenario() -> list[bool]:
        watch = Watch(5)
        return [await watch.changed_since(4, 3600), await watch.changed_since(5, 0.01)]

    assert asyncio.run(scenario()) == [True, False]
