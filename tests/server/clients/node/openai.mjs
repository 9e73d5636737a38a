// OpenAI's package: `node openai.mjs ADDRESS TOKEN` prints the results of its checks as JSON.
import OpenAI from "openai";
import { LONG, MODEL, QUESTION, RESULT, SCHEMA, TOOL, WEATHER, results, thrown } from "./checks.mjs";

const [address, token] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: token, maxRetries: 0 });
const ask = (more, options) =>
  client.chat.completions.create({ model: MODEL, messages: QUESTION, temperature: 0, ...more }, options);
const collect = async (stream) => {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
};

const checks = {
  plain: () => ask({}),
  stream: async () => collect(await ask({ stream: true, stream_options: { include_usage: true } })),
  json: () =>
    client.chat.completions.parse({
      model: MODEL,
      messages: QUESTION,
      response_format: { type: "json_schema", json_schema: { name: "answer", schema: SCHEMA, strict: true } },
    }),
  call: () => ask({ messages: WEATHER, tools: [TOOL] }),
  streamed_call: async () =>
    client.chat.completions
      .stream({ model: MODEL, messages: WEATHER, tools: [TOOL], temperature: 0 })
      .finalChatCompletion(),
  round_trip: async () => {
    const called = [];
    const runner = client.chat.completions.runTools(
      {
        model: MODEL,
        messages: WEATHER,
        temperature: 0,
        tools: [{ type: "function", function: { ...TOOL.function, function: (x) => (called.push(x), RESULT) } }],
      },
      { maxChatCompletions: 2 },
    );
    await runner.done().catch(() => null); // the demo may call the tool again
    return { called, prompts: runner.allChatCompletions().map(({ usage }) => usage.prompt_tokens) };
  },
  raw_text: () => client.completions.create({ model: MODEL, prompt: ["The KV cache"], temperature: 0, max_tokens: 9 }),
  models: async () => (await client.models.list()).data.map(({ id }) => id),
  one_model: async () => (await client.models.retrieve(MODEL)).id,
  bad_input: () => thrown(() => ask({ temperature: 9 })),
  bad_model: () => thrown(() => ask({ model: "gpt-4" })),
  bad_token: () =>
    thrown(() => new OpenAI({ baseURL: `${address}/v1`, apiKey: "wrong", maxRetries: 0 }).models.list()),
  bad_route: () => thrown(() => client.embeddings.create({ model: MODEL, input: "x" })),
  too_long: () => thrown(() => ask({ max_tokens: 100000 })),
  abort: async () => {
    const stream = await ask({ ...LONG, stream: true });
    for await (const _ of stream) break; // leaves the loop, which ends the request
    const abort = new AbortController();
    setTimeout(() => abort.abort(), 100);
    return thrown(() => ask(LONG, { signal: abort.signal }));
  },
};

console.log(JSON.stringify(await results(checks)));
