"""Outcomes are counted once, in series whose number no client can raise."""

from infinilm_router.utils.metrics import (
    FIRST_BYTE_BOUNDS,
    MAX_LABELS,
    Counters,
    Exposition,
    Failure,
    Histogram,
    at_known_engines,
)

RESET = Failure("a", "stream", "upstream_reset")


def test_each_request_has_one_outcome() -> None:
    counters = Counters()
    counters.ended("m", {"m"}, None, 0.2)
    counters.ended("m", {"m"}, RESET, 0.3)
    counters.ended(None, {"m"}, Failure("", "client", "invalid_request"), None)
    assert {model: counts.requests for model, counts in counters.models.items()} == {
        "m": {"ok": 1, "upstream_reset": 1},
        "other": {"invalid_request": 1},
    }
    assert counters.requests() == 3
    assert counters.by_code() == {"invalid_request": 1, "upstream_reset": 1}
    assert counters.models["m"].first_byte.counts[2:4] == [1, 1]
    assert not any(counters.models["other"].first_byte.counts)


def test_an_attempt_that_was_retried_is_no_outcome() -> None:
    counters = Counters()
    counters.retried(RESET)
    assert (counters.requests(), counters.failures, counters.retries) == (0, {}, {RESET: 1})


def test_clients_that_make_up_models_make_no_series() -> None:
    counters = Counters()
    for number in range(10_000):
        counters.ended(f"made-up-{number}", {"m"}, Failure("", "choose", "model_not_found"), None)
    assert {model: counts.requests for model, counts in counters.models.items()} == {
        "other": {"model_not_found": 10_000}
    }


def test_models_and_engines_without_end_share_a_label() -> None:
    counters = Counters()
    names = [f"n{number}" for number in range(3 * MAX_LABELS)]
    for name in names:
        counters.ended(name, set(names), Failure(name, "connect", "connect_failed"), 0.0)
    assert len(counters.models) == len(counters.failures) == MAX_LABELS + 1
    assert counters.requests() == sum(counters.failures.values()) == len(names)
    assert counters.failures[Failure("other", "connect", "connect_failed")] == 2 * MAX_LABELS


def test_engines_that_are_gone_are_counted_together() -> None:
    gone, nobody = RESET._replace(engine="gone"), RESET._replace(engine="")
    left = RESET._replace(engine="left")
    assert at_known_engines({RESET: 1, gone: 2, left: 3, nobody: 4}, {"a"}) == {
        nobody: 4,
        RESET: 1,
        RESET._replace(engine="other"): 5,
    }


def test_a_bound_belongs_to_what_is_below_it() -> None:
    histogram = Histogram()
    for value in (0.0, 0.025, 0.0251, 300.0, 1e9):
        histogram.observe(value)
    assert histogram.counts == [2, 1, *[0] * (len(FIRST_BYTE_BOUNDS) - 3), 1, 1]


def test_the_text_is_what_prometheus_reads() -> None:
    out, histogram = Exposition(), Histogram()
    histogram.observe(0.05)
    histogram.observe(7.5)
    out.add("x_total", "counter", "About it.", [({"engine": 'a"\\\n'}, 3), ({}, 0)])
    out.add("y", "gauge", "A time.", [({}, 1.5)])
    out.add_histograms("z", "Some.", [({"model": "m"}, histogram)])
    lines = out.text().decode().split("\n")
    assert lines[:7] == [
        "# HELP x_total About it.",
        "# TYPE x_total counter",
        'x_total{engine="a\\"\\\\\\n"} 3',
        "x_total 0",
        "# HELP y A time.",
        "# TYPE y gauge",
        "y 1.500000",
    ]
    assert lines[9:12] == [
        'z_bucket{model="m",le="0.025"} 0',
        'z_bucket{model="m",le="0.1"} 1',
        'z_bucket{model="m",le="0.25"} 1',
    ]
    assert lines[-5:] == [
        'z_bucket{model="m",le="300"} 2',
        'z_bucket{model="m",le="+Inf"} 2',
        'z_sum{model="m"} 7.550000',
        'z_count{model="m"} 2',
        "",
    ]
