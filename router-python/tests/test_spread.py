"""R14: probes keep apart: no two of 20 engines within 10 ms in more than a fifth of the rounds."""

import heapq
import itertools
import random
from collections import Counter

from infinilm_router.router.spread import JITTER, Spread

ENGINES, INTERVAL, ROUNDS, NEAR = 20, 5.0, 200, 0.010


def probe_times(seed: int) -> list[tuple[float, int]]:
    """When each engine is probed; all of them begin at the same moment."""
    spread = Spread(random.Random(seed).uniform)
    waiting = [(0.0, engine) for engine in range(ENGINES)]
    times = []
    while len(times) < ENGINES * ROUNDS:
        now, engine = heapq.heappop(waiting)
        times.append((now, engine))
        if now:
            spread.done(now)
        heapq.heappush(waiting, (spread.next(now, INTERVAL), engine))
    return times


def test_no_round_has_two_probes_within_10_ms_but_one_in_five_at_most() -> None:
    shares = []
    for seed in range(5):
        times = probe_times(seed)
        near = {
            int(time / INTERVAL)
            for (time, _), (later, _) in itertools.pairwise(times)
            if later - time < NEAR
        }
        shares.append(len(near) / (times[-1][0] / INTERVAL))
    print(f"R14: two probes within 10 ms in {max(shares):.1%} of the rounds at most")
    assert max(shares) <= 0.2


def test_every_engine_keeps_its_interval_give_or_take_a_tenth() -> None:
    times = probe_times(seed=1)
    last: dict[int, float] = {}
    for now, engine in times:
        if engine in last:
            assert INTERVAL * (1 - JITTER) <= now - last[engine] <= INTERVAL * (1 + JITTER)
        last[engine] = now
    counts = Counter(engine for _, engine in times)
    assert max(counts.values()) - min(counts.values()) <= ROUNDS * JITTER


def test_what_is_given_back_is_in_nobodys_way() -> None:
    spread = Spread(lambda *_: 1.0)
    moments = [spread.next(0.0, 5.0), spread.next(0.0, 5.0)]
    assert moments == [5.0, 5.0]
    for moment in moments:
        spread.done(moment)
    assert spread._moments == []
