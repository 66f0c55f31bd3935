"""What the metrics of the known engines say."""

import asyncio

import pytest

from infinilm_babysitter.liveness import Load
from infinilm_babysitter.meter import LLAMA_CPP, SGLANG, VLLM, Meter, NoLoad, understand
from infinilm_babysitter.mock_engine.engine import Counters
from infinilm_babysitter.mock_engine.metrics import render_metrics
from infinilm_babysitter.prometheus import sums

VLLM_PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="/models/a b}"} 2.0
vllm:num_requests_running{engine="1",model_name="/models/a b}"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 400.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prompt_tokens_total{engine="0",model_name="m"} 1.2345e+06
vllm:generation_tokens_total{engine="0",model_name="m"} 77.0
vllm:generation_tokens_created{engine="0",model_name="m"} 1.7e+09
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 3.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="m"} 1.0
"""
SGLANG_PAGE = """\
sglang:num_running_reqs{model_name="m",tp_rank="0"} 5.0
sglang:num_queue_reqs{model_name="m",tp_rank="0"} 7.0
sglang:num_used_tokens{model_name="m",tp_rank="0"} 900.0
sglang:generation_tokens_total{model_name="m"} 11.0
"""
LLAMA_PAGE = """\
llamacpp:prompt_tokens_total 77454
llamacpp:tokens_predicted_total 1426
llamacpp:n_decode_total 424
llamacpp:requests_processing 3
llamacpp:requests_deferred 6
llamacpp:n_busy_slots_per_decode 1.5
"""


def test_values_are_summed_over_all_labels_of_exactly_this_name() -> None:
    names = {"vllm:num_requests_running", "vllm:num_requests_waiting"}
    assert sums(VLLM_PAGE, names) == {
        "vllm:num_requests_running": 3.0,
        "vllm:num_requests_waiting": 4.0,
    }


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("m 1", 1.0),
        ("m\t2", 2.0),
        ("m{} 3", 3.0),
        ('m{a="}{ \\" ",b="x"} 4 1712345678000', 4.0),
        ("m +Inf", float("inf")),
        ('m{a="b"}\t5e-1', 0.5),
    ],
)
def test_every_form_of_a_sample_is_read(line: str, value: float) -> None:
    assert sums(line, {"m"}) == {"m": value}


@pytest.mark.parametrize(
    "line", ["m", "m{", 'm{a="b} 1', "m x", "m NaN", "# m 1", "mm 1", "m_total 1", " m 1", "m{}1"]
)
def test_what_is_no_sample_of_it_is_skipped(line: str) -> None:
    assert sums(f"{line}\nother 1", {"m"}) == {}


def test_each_engine_is_recognised_by_its_names() -> None:
    assert understand(VLLM_PAGE) == (
        VLLM,
        Load(running=3, waiting=4, progress=(1234500.0, 77.0, 4.0, 0.25)),
    )
    assert understand(SGLANG_PAGE) == (SGLANG, Load(running=5, waiting=7, progress=(11.0, 900.0)))
    assert understand(LLAMA_PAGE) == (
        LLAMA_CPP,
        Load(running=3, waiting=6, progress=(77454.0, 1426.0, 424.0)),
    )


def test_the_mock_engine_speaks_as_vllm_does() -> None:
    counters = Counters()
    idle = understand(render_metrics(counters, ["a", "b"]))
    assert idle is not None
    assert (idle[0], idle[1].requests) == (VLLM, 0)
    with counters.run("a"), counters.wait("b"):
        counters.generated_tokens["a"] += 1
        busy = understand(render_metrics(counters, ["a", "b"]))
    assert busy is not None
    assert (busy[1].running, busy[1].waiting) == (1, 1)
    assert busy[1].progress != idle[1].progress


@pytest.mark.parametrize("page", ["", "<html>", "process_cpu_seconds_total 5\n", "vllm:x 1"])
def test_other_pages_say_nothing(page: str) -> None:
    assert understand(page) is None


class FakeDoor:
    """Gives the prepared answers, the last one for ever."""

    def __init__(self, *answers: tuple[int | None, str]) -> None:
        self.asked = 0
        self._answers = answers

    async def get(self, _path: str) -> tuple[int | None, bytes]:
        status, text = self._answers[min(self.asked, len(self._answers) - 1)]
        self.asked += 1
        return status, text.encode()


def readings(door: FakeDoor, count: int) -> tuple[Meter, list[Load | NoLoad]]:
    meter = Meter(door)  # type: ignore[arg-type]

    async def read() -> list[Load | NoLoad]:
        return [await meter.read() for _ in range(count)]

    return meter, asyncio.run(read())


@pytest.mark.parametrize("status", [404, 501])
def test_an_engine_that_has_no_metrics_is_asked_only_once(status: int) -> None:
    door = FakeDoor((status, ""))
    meter, read = readings(door, 3)
    assert read == [NoLoad.ABSENT] * 3
    assert door.asked == 1
    assert not meter.must_answer(0)


def test_metrics_that_have_no_names_yet_are_asked_for_again() -> None:
    door = FakeDoor((200, "# nothing yet"), (503, ""), (None, ""), (200, SGLANG_PAGE))
    _, read = readings(door, 4)
    assert read[:3] == [NoLoad.ABSENT] * 3
    assert isinstance(read[3], Load)


def test_metrics_that_stay_away_later_are_told_from_none() -> None:
    door = FakeDoor((200, LLAMA_PAGE), (None, ""), (500, ""))
    meter, read = readings(door, 3)
    assert read[1:] == [NoLoad.SILENT, NoLoad.ABSENT]
    assert meter.must_answer(3)
    assert not meter.must_answer(4), "llama.cpp may have no thread left to answer with"


def test_vllm_has_to_answer_however_many_clients_it_has() -> None:
    meter, _ = readings(FakeDoor((200, VLLM_PAGE)), 1)
    assert meter.must_answer(1000)
