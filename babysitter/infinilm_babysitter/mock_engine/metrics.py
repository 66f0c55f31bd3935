"""Counters in Prometheus' text form, under the names that vLLM made common."""

from collections.abc import Iterable, Iterator, Sequence

from infinilm_babysitter.mock_engine.engine import Counters

_Sample = tuple[str, float]


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _labels(**labels: str) -> str:
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items()) + "}"


def _metric(name: str, kind: str, help_: str, samples: Iterable[_Sample]) -> Iterator[str]:
    yield f"# HELP {name} {help_}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield f"{name}{labels} {value:g}" if value < 1e6 else f"{name}{labels} {value:.0f}"


def render_metrics(counters: Counters, models: Sequence[str]) -> str:
    """The page that `/metrics` answers with."""

    def per_model(values: dict[str, int]) -> list[_Sample]:
        return [(_labels(model_name=model), values.get(model, 0)) for model in models]

    finished: list[_Sample] = [
        (_labels(model_name=model, finished_reason=reason), count)
        for (model, reason), count in sorted(counters.finished.items())
    ]
    most: list[_Sample] = [("", counters.most_running)]
    running, waiting = per_model(counters.running), per_model(counters.waiting)
    read, made = per_model(counters.prompt_tokens), per_model(counters.generated_tokens)
    table = (
        ("vllm:num_requests_running", "gauge", "Requests that hold a slot.", running),
        ("vllm:num_requests_waiting", "gauge", "Requests that wait for a slot.", waiting),
        ("vllm:prompt_tokens_total", "counter", "Prompt tokens read.", read),
        ("vllm:generation_tokens_total", "counter", "Tokens generated.", made),
        ("vllm:request_success_total", "counter", "Answers, by reason of their end.", finished),
        ("mock_engine:most_requests_running", "gauge", "Most slots ever in use at once.", most),
    )
    return "\n".join(line for row in table for line in _metric(*row)) + "\n"
