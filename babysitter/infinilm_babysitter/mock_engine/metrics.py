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

    finished = [
        (_labels(model_name=model, finished_reason=reason), count)
        for (model, reason), count in sorted(counters.finished.items())
    ]
    lines = [
        *_metric(
            "vllm:num_requests_running",
            "gauge",
            "Requests that hold a slot.",
            per_model(counters.running),
        ),
        *_metric(
            "vllm:num_requests_waiting",
            "gauge",
            "Requests that wait for a slot.",
            per_model(counters.waiting),
        ),
        *_metric(
            "vllm:prompt_tokens_total",
            "counter",
            "Prompt tokens read.",
            per_model(counters.prompt_tokens),
        ),
        *_metric(
            "vllm:generation_tokens_total",
            "counter",
            "Tokens generated.",
            per_model(counters.generated_tokens),
        ),
        *_metric(
            "vllm:request_success_total",
            "counter",
            "Answers that ended, by reason; abort: the client left.",
            finished,
        ),
        *_metric(
            "mock_engine:most_requests_running",
            "gauge",
            "Most requests that ever held a slot at once.",
            [("", counters.most_running)],
        ),
    ]
    return "\n".join(lines) + "\n"
