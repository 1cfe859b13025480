"""Python clients, each as its own documentation has it, against a running server of the demo gpt-oss.

    python bench/clients/python_clients.py CLIENT URL

Prints what came out; raises where it is not what the demo says.
"""

import asyncio
import json
import sys

MODEL, CITY = "demo-gpt-oss", "What is the weather in Rome?"
SAID = "It is 7 degrees and sunny in Rome."


def get_weather(city: str) -> dict:
    """Gets the weather in a city."""
    return {"temperature": 7, "sky": "sunny"}


def openai(url):
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="x")
    first = client.responses.create(model=MODEL, input="Please compute 10 + 5.", temperature=0)
    again = client.responses.create(model=MODEL, input="Hi", previous_response_id=first.id, temperature=0)
    assert first.output_text == "15" and again.previous_response_id == first.id
    return first.output_text


def openai_agents(url, api="responses"):
    from agents import (
        Agent,
        ModelSettings,
        OpenAIChatCompletionsModel,
        OpenAIResponsesModel,
        Runner,
        function_tool,
        set_tracing_disabled,
    )
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=url, api_key="x")
    kind = OpenAIResponsesModel if api == "responses" else OpenAIChatCompletionsModel
    agent = Agent(
        name="a",
        model=kind(model=MODEL, openai_client=client),
        tools=[function_tool(get_weather, strict_mode=False)],
        model_settings=ModelSettings(temperature=0),
    )
    return Runner.run_sync(agent, CITY).final_output


def openai_agents_chat(url):
    return openai_agents(url, "chat")


def anthropic(url):
    from anthropic import Anthropic, AsyncAnthropic, beta_tool

    options = {"base_url": url.removesuffix("/v1"), "api_key": "x"}
    client = Anthropic(**options)
    asked = {"model": MODEL, "max_tokens": 1000, "extra_body": {"temperature": 0}}
    add = asked | {"messages": [{"role": "user", "content": "Please compute 10 + 5."}]}
    thinking, text = client.messages.create(**add, thinking={"type": "enabled", "budget_tokens": 5000}).content
    assert thinking.thinking and thinking.signature and text.text == "15", text
    with client.messages.stream(**add) as events:
        assert "".join(events.text_stream) == "15"
        used = events.get_final_message().usage
    count = client.messages.count_tokens(model=MODEL, messages=add["messages"]).input_tokens
    assert count == used.input_tokens + used.cache_read_input_tokens
    assert [one.id for one in client.models.list()] == [MODEL]

    async def ask():
        async with AsyncAnthropic(**options) as client:
            return await client.messages.create(**add)

    def weather(city: str) -> str:
        """Gets the weather in a city."""
        return json.dumps(get_weather(city))

    assert asyncio.run(ask()).content[-1].text == "15"
    runner = client.beta.messages.tool_runner(
        **asked, tools=[beta_tool(weather, name="get_weather")], messages=[{"role": "user", "content": CITY}]
    )
    return runner.until_done().content[-1].text


def langchain(url):
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(base_url=url, api_key="x", model=MODEL, temperature=0).bind_tools([tool(get_weather)])
    messages = [HumanMessage(CITY)]
    messages.append(model.invoke(messages))
    (call,) = messages[-1].tool_calls
    messages.append(ToolMessage('{"temperature": 7, "sky": "sunny"}', tool_call_id=call["id"]))
    return model.invoke(messages).content


def langchain_structured(url):
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    class Sum(BaseModel):
        """A sum."""

        result: int

    model = ChatOpenAI(base_url=url, api_key="x", model=MODEL, temperature=0, max_tokens=300)
    for method in ("function_calling", "json_schema"):
        found = model.with_structured_output(Sum, method=method).invoke("Please compute 10 + 5.")
        assert isinstance(found, Sum), (method, found)
    return SAID


def pydantic_ai(url):
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=url, api_key="x"))
    agent = Agent(model, tools=[get_weather], model_settings={"temperature": 0})
    return asyncio.run(agent.run(CITY)).output


def pydantic_ai_responses(url):
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIResponsesModel(MODEL, provider=OpenAIProvider(base_url=url, api_key="x"))
    agent = Agent(model, tools=[get_weather], model_settings={"temperature": 0})
    return asyncio.run(agent.run(CITY)).output


def instructor_tools(url, modes=("TOOLS", "TOOLS_STRICT", "FUNCTIONS", "RESPONSES_TOOLS")):
    import instructor
    from openai import OpenAI
    from pydantic import BaseModel

    class Sum(BaseModel):
        result: int

    failed = {}
    ask = [{"role": "user", "content": "Please compute 10 + 5."}]
    for name in modes:
        try:
            client = instructor.from_openai(OpenAI(base_url=url, api_key="x"), mode=getattr(instructor.Mode, name))
            client.create(model=MODEL, response_model=Sum, max_retries=0, max_tokens=300, messages=ask, temperature=0)
        except Exception as problem:
            failed[name] = f"{type(problem).__name__}: {problem}"[:200].replace("\n", " ")
    return SAID if not failed else failed


def instructor_json(url):
    return instructor_tools(url, ("JSON", "JSON_SCHEMA", "MD_JSON"))


def litellm(url):
    import litellm

    ask = [{"role": "user", "content": "Please compute 10 + 5."}]
    done = litellm.completion(
        f"openai/{MODEL}", messages=ask, base_url=url, api_key="x", max_tokens=32_000, temperature=0
    )
    assert done.choices[0].message.content == "15", done
    parts = litellm.completion(
        f"openai/{MODEL}", messages=ask, base_url=url, api_key="x", stream=True, temperature=0, reasoning_effort="low"
    )
    assert "".join(part.choices[0].delta.content or "" for part in parts) == "15"
    return SAID


if __name__ == "__main__":
    name, url = sys.argv[1:]
    found = globals()[name](url)
    print(found)
    if found not in (SAID, "15"):
        sys.exit(1)
