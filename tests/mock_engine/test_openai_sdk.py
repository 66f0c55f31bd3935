"""The mock engine as the official SDK sees it."""

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionUserMessageParam

HELLO: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "Say hello"}]


def test_chat_streamed_and_whole_are_the_same(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="small", messages=HELLO, max_tokens=40)
    with client.chat.completions.create(
        model="small",
        messages=HELLO,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(model="small", prompt="Once", max_tokens=8)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.choices[0].finish_reason == "length"


def test_embeddings_in_the_packed_form_the_sdk_asks_for(client: OpenAI) -> None:
    answer = client.embeddings.create(model="small", input=["one", "two"], dimensions=32)
    assert [len(item.embedding) for item in answer.data] == [32, 32]


def test_models_with_a_slash_in_the_name(client: OpenAI) -> None:
    ids = [model.id for model in client.models.list()]
    assert ids == ["small", "org/big:v1"]
    assert [client.models.retrieve(name).id for name in ids] == ids


def test_errors_have_their_own_exception(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="absent", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="small", messages=HELLO, n=0)
    assert wrong.value.param == "n"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("absent")
