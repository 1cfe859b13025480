"""Runs real clients against `cgpt serve`, each installed into an environment of its own, and prints a table.

    python bench/clients/run.py [--keep DIR] [CLIENT ..]

Needs npm for some. DIR keeps the environments for the next time. The demo models answer; where a client needs a
cleverer one, replay.py plays it. What else clients ask the network for is not needed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WEATHER = "It is 7 degrees and sunny in Rome."
CALL = (
    "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant to=functions.{}"
    "<|channel|>commentary <|constrain|>json<|message|>{}<|call|>"
)
FINAL = "<|channel|>final<|message|>{}<|return|>"
CODEX = """
model = "demo-gpt-oss"
model_provider = "cgpt"
[model_providers.cgpt]
name = "cgpt"
base_url = "{url}/v1"
wire_api = "responses"
"""
PROVIDER = {
    "npm": "@ai-sdk/openai-compatible",
    "options": {"baseURL": "{url}/v1", "apiKey": "x"},
    "models": {"demo-gpt-oss": {}},
}
OPENCODE = json.dumps({"model": "cgpt/demo-gpt-oss", "provider": {"cgpt": PROVIDER}})
LLM = """
- model_id: cgpt
  model_name: demo-gpt-oss
  api_base: {url}/v1
  supports_tools: true
"""
QUESTION = "What is the weather in Rome?"
FUNCTION = """
def get_weather(city: str) -> dict:
    'Gets the weather in a city.'
    return {"temperature": 7, "sky": "sunny"}
"""
TASK = """
task: tiny
dataset_path: json
dataset_kwargs: {data_files: {test: data.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{c}}"
doc_to_target: a
target_delimiter: ""
"""
DATA = json.dumps({"q": "ROMEO:", "c": ["\nBut soft", "xyzzy q"], "a": 0})


@dataclass
class Client:
    """A client. packages: of npm or pip; the first gives the version. command: {url} is the server's. says: a regular
    expression of what it must print. model: that is served; script: what the model says instead. files: it needs.
    options: of pip, for the first package."""

    npm: bool
    packages: list[str]
    command: list[str]
    says: str = re.escape(WEATHER)
    model: str = "demo-gpt-oss"
    script: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()


def python(name, *packages, **more):
    return Client(False, list(packages), ["python", str(HERE / "python_clients.py"), name, "{url}/v1"], **more)


LM_EVAL = "model=demo-gpt2,base_url={url}/v1/completions,tokenizer_backend=remote,max_length=256"
JSON_TEXT = FINAL.format('{"result": 15}')
FORCED = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}<|call|>"
CODE = """Thought: I look.
<code>
found = get_weather(city="Rome")
final_answer(f"It is {found['temperature']} degrees and {found['sky']} in Rome.")
</code>"""


def fields(**values):
    """What DSPy asks for in a text."""
    return FINAL.format("".join(f"[[ ## {name} ## ]]\n{value}\n\n" for name, value in values.items()))


TOOL_CALLS = (
    FORCED.format("get_weather", '{"city": "Rome"}'),
    FORCED.format("final_answer", json.dumps({"answer": WEATHER})),
)
STEPS = (
    fields(answer=15),
    fields(reasoning="It is 15.", answer=15),
    FINAL.format('{"answer": 15}'),
    fields(next_thought="I look.", next_tool_name="get_weather", next_tool_args='{"city": "Rome"}'),
    fields(next_thought="I know.", next_tool_name="finish", next_tool_args="{}"),
    fields(reasoning="The tool says so.", answer=WEATHER),
)
EVALS = "(?s)^(?!.*Bad Request).*'score': (np.float64\\()?1.0"
DEMO = str(ROOT / "cgpt" / "demo" / "demo-gpt-oss")


def evals(api):
    command = [
        "python",
        "-m",
        "gpt_oss.evals",
        "--model",
        "demo-gpt-oss",
        "--reasoning-effort",
        "low",
        "--eval",
        "basic",
    ]
    command += ["--sampler", api, "--base-url", "{url}/v1"]
    packages = ["gpt-oss", "openai", "pandas", "numpy", "jinja2", "tqdm", "blobfile", "requests"]
    return Client(False, packages, command, says=EVALS, options=("--no-deps", "--ignore-requires-python"))


CLIENTS = {
    "openai": python("openai", "openai", says="15"),
    "openai-agents": python("openai_agents", "openai-agents"),
    "openai-agents, chat": python("openai_agents_chat", "openai-agents"),
    "anthropic": python("anthropic", "anthropic"),
    "langchain": python("langchain", "langchain-openai"),
    "langchain, structured": python("langchain_structured", "langchain-openai"),
    "pydantic-ai": python("pydantic_ai", "pydantic-ai-slim[openai]"),
    "pydantic-ai, responses": python("pydantic_ai_responses", "pydantic-ai-slim[openai]"),
    "instructor, tools": python("instructor_tools", "instructor"),
    "instructor, JSON": python("instructor_json", "instructor", script=(JSON_TEXT,)),
    "instructor, parallel tools": python(
        "instructor_parallel", "instructor", script=(CALL.format("Sum", '{"result": 15}'),)
    ),
    "litellm": python("litellm", "litellm"),
    "litellm proxy": python("litellm_proxy", "litellm[proxy]"),
    "llama-index": python("llama_index", "llama-index-llms-openai-like"),
    "llama-index, structured": python(
        "llama_index_structured", "llama-index-llms-openai-like", script=(FORCED.format("Sum", '{"result": 15}'),)
    ),
    "dspy, LM": python("dspy_lm", "dspy"),
    "dspy, Predict, ChainOfThought, ReAct": python("dspy", "dspy", script=STEPS),
    "smolagents": python("smolagents", "smolagents[openai]", script=(*TOOL_CALLS * 2, FINAL.format(CODE))),
    "haystack": python("haystack", "haystack-ai"),
    "Open WebUI": python("open_webui", "open-webui", says="15"),
    "gpt-oss evals, responses": evals("responses"),
    "gpt-oss evals, chat": evals("chat_completions"),
    "genai-bench": Client(
        False,
        ["genai-bench"],
        ["genai-bench", "benchmark", "--api-backend", "openai", "--api-base", "{url}", "--api-key", "x"]
        + ["--task", "text-to-text", "--api-model-name", "demo-gpt-oss", "--model-tokenizer", DEMO]
        + ["--traffic-scenario", "D(50,20)", "--num-concurrency", "2", "--max-time-per-run", "1"]
        + ["--max-requests-per-run", "6", "--experiment-base-dir", "home"],
        says="The whole experiment has finished",
    ),
    "llm": Client(
        False,
        ["llm"],
        ["llm", "-m", "cgpt", "-o", "temperature", "0", "--key", "x", "--functions", FUNCTION, QUESTION],
        files=(("extra-openai-models.yaml", LLM),),
    ),
    "lm-eval, remote tokenizer": Client(
        False,
        ["lm-eval[api]"],
        ["lm_eval", "--model", "local-completions", "--model_args", LM_EVAL, "--include_path", ".", "--tasks", "tiny"],
        says=r"acc_norm\|↑  \|    1",
        model="demo-gpt2",
        files=(("tiny.yaml", TASK), ("data.jsonl", DATA)),
    ),
    "lm-eval, remote tokenizer, gpt-oss": python("lm_eval_tokenizer", "lm-eval[api]"),
    "guidellm": Client(
        False,
        ["guidellm"],
        ["guidellm", "run", "--backend", "kind=openai_http,target={url},model=demo-gpt-oss"]
        + ["--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=3"]
        + ["--data", "kind=json_file,path=prompt.jsonl"],
        says="Benchmarking complete",
        files=(("prompt.jsonl", '{"prompt": "Please compute 1 + 2."}\n' * 5),),
    ),
    "Vercel AI SDK": Client(True, ["ai", "@ai-sdk/openai", "zod"], ["node", "vercel.mjs", "{url}/v1"]),
    "Codex CLI": Client(
        True,
        ["@openai/codex"],
        ["codex", "exec", "--skip-git-repo-check", "Please run it."],
        says="it-ran-42(.|\n)*It ran",
        script=(CALL.format("exec_command", '{"cmd":"echo it-ran-$((40+2))"}'), FINAL.format("It ran.")),
        files=(("config.toml", CODEX),),
    ),
    "Claude Code": Client(
        True,
        ["@anthropic-ai/claude-code"],
        ["claude", "-p", "Please run it.", "--tools", "Bash", "--allowedTools", "Bash"]
        + ["--output-format", "stream-json", "--verbose"],
        says="it-ran-42(.|\n)*It ran",
        script=(CALL.format("Bash", '{"command":"echo it-ran-$((40+2))"}'), FINAL.format("It ran.")),
    ),
    "OpenCode": Client(
        True,
        ["opencode-ai"],
        ["opencode", "run", "Please run it."],
        says="It ran",
        script=(CALL.format("bash", '{"command":"echo it-ran","description":"x"}'), FINAL.format("It ran.")),
        files=(("opencode.json", OPENCODE),),
    ),
}  # fmt: skip


def install(client, directory):
    """The directory of the client's commands, and its version."""
    place = directory / re.sub(r"\W+", "-", client.packages[0])
    if client.npm:
        if not (place / "node_modules").exists():
            place.mkdir(parents=True)
            (place / "package.json").write_text('{"type": "module"}')
            run(["npm", "install", "--no-audit", "--no-fund", *client.packages], place)
        text = (place / "node_modules" / client.packages[0] / "package.json").read_text()
        return place, place / "node_modules" / ".bin", json.loads(text)["version"]
    if not (place / "bin").exists():
        run([sys.executable, "-m", "venv", str(place)], directory)
        run([str(place / "bin" / "pip"), "install", "-q", "-U", "pip"], directory)
        first, *others = client.packages
        run([str(place / "bin" / "pip"), "install", "-q", *client.options, first], directory)
        if others:
            run([str(place / "bin" / "pip"), "install", "-q", *others], directory)
    ask = f"import importlib.metadata as m; print(m.version({client.packages[0].split('[')[0]!r}))"
    return place, place / "bin", run([str(place / "bin" / "python"), "-c", ask], directory)[1].strip()


def run(command, directory, environment=None):
    """The exit status of a command, and all that it printed."""
    done = subprocess.run(
        command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, text=True, capture_output=True, timeout=900
    )
    return done.returncode, done.stdout + done.stderr


def serve(client, port):
    """A server of the client's model; it listens when this returns."""
    command = ["cgpt", "serve", "--model", client.model, "--port", str(port)]
    if client.script:
        command = ["bench.clients.replay", str(port), *client.script]
    server = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stderr=subprocess.DEVNULL)
    for _ in range(200):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
            break
        except OSError:
            time.sleep(0.2)
    return server


def attempt(client, directory, port):
    """The version of a client, and None where it did what it shall, else the end of what it printed."""
    place, commands, version = install(client, directory)
    url = f"http://127.0.0.1:{port}"
    for name, text in client.files:
        (place / name).write_text(text.replace("{url}", url))
    if client.npm:
        (place / "vercel.mjs").write_text((HERE / "vercel.mjs").read_text())
    home = place / "home"
    home.mkdir(exist_ok=True)
    environment = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}", "HOME": str(home), "PWD": str(place)}
    environment |= {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "x", "ANTHROPIC_MODEL": client.model}
    environment |= {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}  # a title would take the script's first text
    environment |= {"CODEX_HOME": str(place), "LLM_USER_PATH": str(place), "HF_HUB_OFFLINE": "1"}
    environment |= {"OPENAI_API_KEY": "x", "HAYSTACK_TELEMETRY_ENABLED": "False", "DO_NOT_TRACK": "true"}
    command = [part.replace("{url}", url) for part in client.command]
    server = serve(client, port)
    try:
        status, printed = run(command, place, environment)
    finally:
        server.terminate()
        server.wait()
    return version, None if not status and re.search(client.says, printed) else printed.strip()[-1500:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", metavar="DIR", type=Path, help="install into DIR, and use what is there")
    parser.add_argument("--port", type=int, default=8511)
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"of {', '.join(CLIENTS)} (default: all)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = (arguments.keep or Path(temporary)).resolve()
        directory.mkdir(exist_ok=True)
        print("| client | version | works |\n| --- | --- | --- |", flush=True)
        for name in arguments.clients or CLIENTS:
            version, problem = attempt(CLIENTS[name], directory, arguments.port)
            print(f"| {name} | {version} | {'no' if problem else 'yes'} |", flush=True)
            if problem:
                print(problem, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
