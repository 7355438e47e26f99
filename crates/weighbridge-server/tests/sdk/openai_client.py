"""The official OpenAI client against our server. Arguments: base URL, token."""

import sys

import openai

base_url, token = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key=token, max_retries=0, timeout=20)
messages = [{"role": "user", "content": "Hi"}]


def fails(expected, **fields):
    try:
        answer = client.chat.completions.create(**{"model": "m", "messages": messages, **fields})
        if fields.get("stream"):
            list(answer)
    except expected as error:
        return error
    raise AssertionError(f"{fields} did not raise {expected}")


assert [model.id for model in client.models.list()] == ["m", "half", "tools"]

answer = client.chat.completions.create(
    model="m", messages=messages, temperature=0, seed=1, stop=["\n"], max_tokens=9, user="u",
    logprobs=True, top_logprobs=2,
)
assert answer.choices[0].message.content == "Hello", answer
assert answer.choices[0].finish_reason == "stop"
assert answer.usage.total_tokens == 10
assert [t.token for t in answer.choices[0].logprobs.content] == ["Hel", "lo"]
assert answer.choices[0].logprobs.content[0].top_logprobs[1].logprob == -1.5

# What the client gave back may be sent again.
again = messages + [answer.choices[0].message.model_dump(), {"role": "user", "content": "And?"}]
client.chat.completions.create(model="m", messages=again)

chunks = list(
    client.chat.completions.create(
        model="m", messages=messages, stream=True, stream_options={"include_usage": True}
    )
)
text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
assert text == "Hello", text
assert chunks[-1].usage.completion_tokens == 3

raw = client.completions.create(model="m", prompt="Hi", logprobs=2)
assert raw.choices[0].text == "Hello" and raw.choices[0].logprobs.tokens == ["Hel", "lo"]

tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
answer = client.chat.completions.create(model="tools", messages=messages, tools=tools)
assert answer.choices[0].message.tool_calls[0].function.arguments == '{"a":1}'

error = fails(openai.BadRequestError, extra_body={"mirostat": 2})
assert error.param == "mirostat", error
fails(openai.BadRequestError, temperature=9)
fails(openai.NotFoundError, model="other")
# A failure in the middle of a stream raises; it does not end the stream.
error = fails(openai.APIError, model="half", stream=True)
assert "the script failed" in str(error), error
try:
    openai.OpenAI(base_url=base_url, api_key="wrong", max_retries=0).models.list()
    raise AssertionError("a wrong token was taken")
except openai.AuthenticationError:
    pass
print("openai", openai.__version__, "ok")
