"""Python clients, each as its own documentation has it, against a running server of the demo gpt-oss.

    python bench/clients/python_clients.py CLIENT URL

Prints what came out; raises where it is not what the demo says.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager

MODEL, CITY = "demo-gpt-oss", "What is the weather in Rome?"
SAID = "It is 7 degrees and sunny in Rome."
SUM = "Please compute 10 + 5."
KEY = "sk-a-key-of-this-test-only-0123456789"


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


def instructor_tools(
    url, modes=("TOOLS", "TOOLS_STRICT", "FUNCTIONS", "RESPONSES_TOOLS", "RESPONSES_TOOLS_WITH_INBUILT_TOOLS")
):
    from collections.abc import Iterable

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
            wanted = Iterable[Sum] if name == "PARALLEL_TOOLS" else Sum
            options = {"model": MODEL, "max_retries": 0, "max_tokens": 300, "messages": ask, "temperature": 0}
            found = client.create(response_model=wanted, **options)
            if name == "PARALLEL_TOOLS":
                (found,) = found
            else:
                *_, last = client.create_partial(response_model=Sum, **options)
                assert isinstance(last.result, int), last
            assert isinstance(found, Sum), found
        except Exception as problem:
            failed[name] = f"{type(problem).__name__}: {problem}"[:200].replace("\n", " ")
    return SAID if not failed else failed


def instructor_json(url):
    return instructor_tools(url, ("JSON", "JSON_O1", "JSON_SCHEMA", "MD_JSON"))


def instructor_parallel(url):
    return instructor_tools(url, ("PARALLEL_TOOLS",))


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


def lm_eval_tokenizer(url):
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(model=MODEL, base_url=f"{url}/completions", tokenizer_backend="remote", max_length=256)
    assert (model.prefix_token_id, model.eot_token_id) == (500, 504), (model.prefix_token_id, model.eot_token_id)
    asked = [Instance("loglikelihood", {}, ("", SUM), 0), Instance("loglikelihood", {}, ("", SUM * 2), 0)]
    (one, _), (two, _) = model.loglikelihood(asked)
    assert two < one < 0, (one, two)
    return SAID


@contextmanager
def running(command, path, **environment):
    """A server between a client and the one that is tried, from when it answers at `path` until the end."""
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=sys.stderr)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(path)
                break
            except OSError:
                assert process.poll() is None, command
                time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait()


def post(url, body, key):
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    return urllib.request.urlopen(urllib.request.Request(url, body and json.dumps(body).encode(), headers)).read()


def litellm_proxy(url):
    from openai import OpenAI

    with open("litellm.yaml", "w") as file:
        way = {"model": f"openai/{MODEL}", "api_base": url, "api_key": "x"}
        json.dump({"model_list": [{"model_name": MODEL, "litellm_params": way}]}, file)
    here = "http://127.0.0.1:8512"
    command = ["litellm", "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", "8512"]
    with running(command, f"{here}/health/liveliness", LITELLM_MASTER_KEY=KEY):
        client = OpenAI(base_url=f"{here}/v1", api_key=KEY, max_retries=0)
        options = {"model": MODEL, "max_tokens": 32_000, "temperature": 0}
        ask = [{"role": "user", "content": SUM}]
        parts = client.chat.completions.create(messages=ask, stream=True, **options)
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == "15"
        found = client.responses.create(model=MODEL, input=SUM, max_output_tokens=32_000, temperature=0)
        assert found.output_text == "15", found
        found = json.loads(post(f"{here}/v1/messages", options | {"messages": ask}, KEY))  # Anthropic's API
        assert found["content"][-1] == {"type": "text", "text": "15"}, found
        schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
        function = {"name": "get_weather", "description": get_weather.__doc__, "parameters": schema}
        options["tools"] = [{"type": "function", "function": function}]
        talk = [{"role": "user", "content": CITY}]
        talk.append(client.chat.completions.create(messages=talk, **options).choices[0].message)
        (call,) = talk[-1].tool_calls
        talk.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(get_weather("Rome"))})
        return client.chat.completions.create(messages=talk, **options).choices[0].message.content


def llama_index_model(url):
    from llama_index.llms.openai_like import OpenAILike

    kind = {"is_chat_model": True, "is_function_calling_model": True}
    return OpenAILike(model=MODEL, api_base=url, api_key="x", temperature=0, max_tokens=300, **kind)


def llama_index(url):
    from llama_index.core.agent.workflow import FunctionAgent
    from llama_index.core.llms import ChatMessage

    model, ask = llama_index_model(url), [ChatMessage(role="user", content=SUM)]
    assert model.chat(ask).message.content == "15"
    assert "".join(part.delta or "" for part in model.stream_chat(ask)) == "15"

    def weather(city: str) -> str:
        return json.dumps(get_weather(city))

    weather.__name__, weather.__doc__ = get_weather.__name__, get_weather.__doc__

    async def run(streaming):
        return str(await FunctionAgent(tools=[weather], llm=model, streaming=streaming).run(CITY))

    assert asyncio.run(run(False)) == SAID
    return asyncio.run(run(True))


def llama_index_structured(url):
    from llama_index.core.llms import ChatMessage
    from llama_index.core.prompts import PromptTemplate
    from pydantic import BaseModel

    class Sum(BaseModel):
        result: int

    model, ask = llama_index_model(url), PromptTemplate(SUM)
    *_, last = model.stream_structured_predict(Sum, ask)
    found = model.as_structured_llm(Sum).chat([ChatMessage(role="user", content=SUM)]).raw
    assert model.structured_predict(Sum, ask).result == last.result == found.result == 15, (last, found)
    return SAID


def dspy(url):
    import dspy

    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    model = dspy.LM(f"openai/{MODEL}", api_base=url, api_key="x", temperature=0, max_tokens=500)
    dspy.configure(lm=model)
    assert dspy.Predict("question -> answer: int")(question=SUM).answer == 15
    assert dspy.ChainOfThought("question -> answer: int")(question=SUM).answer == 15
    with dspy.context(adapter=dspy.JSONAdapter()):
        assert dspy.Predict("question -> answer: int")(question=SUM).answer == 15
    return dspy.ReAct("question -> answer", tools=[get_weather])(question=CITY).answer


def dspy_lm(url):
    import dspy

    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    for api in ("chat", "responses"):
        model = dspy.LM(f"openai/{MODEL}", api_base=url, api_key="x", temperature=0, max_tokens=500, model_type=api)
        assert model(SUM)[0]["text"] == "15"
    return SAID


def smolagents(url):
    from smolagents import CodeAgent, OpenAIServerModel, ToolCallingAgent, tool

    @tool
    def get_weather(city: str) -> dict:
        """Gets the weather in a city.

        Args:
            city: its name
        """
        return {"temperature": 7, "sky": "sunny"}

    model = OpenAIServerModel(MODEL, api_base=url, api_key="x", temperature=0, max_tokens=300)
    agents = [(kind, stream) for kind in (ToolCallingAgent, CodeAgent) for stream in (False, True)]
    said = [
        kind(tools=[get_weather], model=model, max_steps=2, stream_outputs=stream).run(CITY) for kind, stream in agents
    ]
    return SAID if said == [SAID] * 4 else said


def haystack(url):
    from haystack.components.agents import Agent
    from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
    from haystack.dataclasses import ChatMessage
    from haystack.tools import tool
    from haystack.utils import Secret
    from pydantic import BaseModel

    class Sum(BaseModel):
        result: int

    @tool
    def get_weather(city: str) -> str:
        """Gets the weather in a city."""
        return '{"temperature": 7, "sky": "sunny"}'

    def model(kind=OpenAIChatGenerator):
        return kind(api_key=Secret.from_token("x"), model=MODEL, api_base_url=url, generation_kwargs={"temperature": 0})

    ask, parts = [ChatMessage.from_user(SUM)], []
    found = model().run(ask, streaming_callback=lambda part: parts.append(part.content or ""))
    assert found["replies"][0].text == "".join(parts) == model().run(ask)["replies"][0].text == "15", found
    found = model().run(ask, generation_kwargs={"response_format": Sum, "max_tokens": 300})
    Sum.model_validate_json(found["replies"][0].text)
    said = [
        Agent(chat_generator=model(kind), tools=[get_weather], streaming_callback=callback)
        .run(messages=[ChatMessage.from_user(CITY)])["messages"][-1]
        .text
        for kind in (OpenAIChatGenerator, OpenAIResponsesChatGenerator)
        for callback in (None, lambda part: None)
    ]
    return SAID if said == [SAID] * 4 else said


def open_webui(url):
    here, data = "http://127.0.0.1:8513", tempfile.mkdtemp(dir=".")  # it would remember another server's address
    environment = {"OPENAI_API_BASE_URL": url, "OPENAI_API_KEY": "x", "WEBUI_AUTH": "False", "WEBUI_SECRET_KEY": KEY}
    environment |= {
        "DATA_DIR": os.path.abspath(data),
        "ENABLE_OLLAMA_API": "False",
        "OFFLINE_MODE": "True",
        "RAG_EMBEDDING_ENGINE": "openai",
    }
    with running(["open-webui", "serve", "--host", "127.0.0.1", "--port", "8513"], f"{here}/health", **environment):
        key = json.loads(post(f"{here}/api/v1/auths/signin", {"email": "", "password": ""}, ""))["token"]
        names = [card["id"] for card in json.loads(post(f"{here}/api/models", None, key))["data"]]
        assert MODEL in names, names
        body = {"model": MODEL, "messages": [{"role": "user", "content": SUM}], "temperature": 0}
        text = post(f"{here}/api/chat/completions", body | {"stream": True}, key).decode()
        chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk.get("choices"))
        assert said == "15", text
        return json.loads(post(f"{here}/api/chat/completions", body, key))["choices"][0]["message"]["content"]


if __name__ == "__main__":
    name, url = sys.argv[1:]
    found = globals()[name](url)
    print(found)
    if found not in (SAID, "15"):
        sys.exit(1)
