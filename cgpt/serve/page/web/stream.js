// Asking the server: JSON, streams of server-sent events, and errors in words.

// A request that failed. code: the server's name of why, if it has one.
export class Failure extends Error {
  constructor(message, code = null) {
    super(message);
    this.code = code;
  }
}

const NO_ANSWER = "The server does not answer. Is it still running?";
const CUT_OFF = "The connection ended before the answer did.";
const KEY = "cgpt-key"; // kept until the tab is closed, and never written to a file

export const apiKey = () => sessionStorage.getItem(KEY) ?? "";
export const setApiKey = key => sessionStorage.setItem(KEY, key);

// The response to a GET, or to a POST of this body. Throws Failure, or AbortError where the signal came.
export async function ask(path, body, signal) {
  const headers = apiKey() ? { Authorization: `Bearer ${apiKey()}` } : {};
  const options = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (problem) {
    throw problem.name === "AbortError" ? problem : new Failure(NO_ANSWER);
  }
  if (response.ok) return response;
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch { /* no JSON: the status is all there is */ }
  throw new Failure(inWords(response.status, error), error.code);
}

function inWords(status, { message, code }) {
  if (code === "invalid_api_key") return "This server wants its API key. It goes into the settings.";
  const said = message ?? `The server answered with status ${status} and no explanation.`;
  return status === 429 || status === 503 ? `${said} Try again in a moment.` : said;
}

export const askJson = async (path, body, signal) => (await ask(path, body, signal)).json();

// The JSON objects of a stream of events, until "[DONE]" or its end.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      const parts = held.split(/\r?\n\r?\n/);
      held = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter(line => line.startsWith("data:"));
        if (!lines.length) continue; // a comment, which keeps the connection open
        const data = lines.map(line => line.slice(5).trimStart()).join("\n");
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  } catch (problem) {
    throw problem.name === "AbortError" ? problem : new Failure(CUT_OFF);
  } finally {
    reader.cancel().catch(() => {});
  }
}

// How fast an answer comes: marks in milliseconds, and words about them.
export class Clock {
  began = performance.now();
  first = null;
  last = null;

  tick() {
    this.last = performance.now();
    this.first ??= this.last;
  }

  // The figures of the usage of either API, to keep.
  stats(usage) {
    const tokens = usage?.output_tokens ?? usage?.completion_tokens ?? null;
    const seconds = (this.last - this.first) / 1000;
    return {
      tokens,
      prompt: usage?.input_tokens ?? usage?.prompt_tokens ?? null,
      cached: (usage?.input_tokens_details ?? usage?.prompt_tokens_details)?.cached_tokens ?? null,
      first: this.first === null ? null : (this.first - this.began) / 1000,
      rate: tokens > 1 && seconds > 0.01 ? (tokens - 1) / seconds : null,
    };
  }
}

export const seconds = value => `${value < 10 ? value.toFixed(value < 1 ? 2 : 1) : Math.round(value)} s`;

export function describe(stats) {
  const said = [];
  if (stats.tokens !== null) said.push(`${stats.tokens} tokens`);
  if (stats.rate !== null) said.push(`${stats.rate.toFixed(1)} tok/s`);
  if (stats.first !== null) said.push(`first after ${seconds(stats.first)}`);
  if (stats.prompt !== null) said.push(`${stats.cached ?? 0} of ${stats.prompt} prompt tokens cached`);
  return said.join(" · ");
}
