// The AI SDK with Cloudflare's provider. `model` makes a language model by its name and options.
import { generateText, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";
import { LONG, MODEL, QUESTION, RESULT, SCHEMA, TOOL, CITY, WEATHER, results, thrown } from "./checks.mjs";

const get_weather = tool({
  description: TOOL.function.description,
  inputSchema: jsonSchema(CITY),
  execute: () => RESULT,
});
const bare = tool({ description: TOOL.function.description, inputSchema: jsonSchema(CITY) });

export const run = (provider) => {
  const model = provider(MODEL);
  const ask = (more) => generateText({ model, messages: QUESTION, temperature: 0, maxRetries: 0, ...more });
  const stream = (more) => streamText({ model, messages: QUESTION, temperature: 0, maxRetries: 0, ...more });
  return results({
    plain: async () => {
      const { text, finishReason, usage } = await ask();
      return { text, finishReason, usage };
    },
    stream: async () => {
      const answer = stream();
      const pieces = [];
      for await (const piece of answer.textStream) pieces.push(piece);
      return { pieces, finishReason: await answer.finishReason, usage: await answer.usage };
    },
    json: async () => (await ask({ output: Output.object({ schema: jsonSchema(SCHEMA) }) })).output,
    json_without_schema: async () => (await ask({ output: Output.json(), maxOutputTokens: 400 })).text,
    call: async () => {
      const { toolCalls, finishReason } = await ask({ messages: WEATHER, tools: { get_weather: bare } });
      return { toolCalls, finishReason };
    },
    streamed_call: async () => {
      const answer = stream({ messages: WEATHER, tools: { get_weather: bare } });
      return { toolCalls: await answer.toolCalls, finishReason: await answer.finishReason };
    },
    round_trip: async () => {
      const { steps } = await ask({ messages: WEATHER, tools: { get_weather }, stopWhen: stepCountIs(2) });
      return {
        results: steps[0].toolResults.map(({ output }) => output),
        prompts: steps.map(({ usage }) => usage.inputTokens),
      };
    },
    bad_input: () => thrown(() => ask({ temperature: 9 })),
    too_long: () => thrown(() => ask({ maxOutputTokens: 100000 })),
    abort: async () => {
      const { max_tokens, ...more } = LONG;
      let found = {};
      // On a busy machine the SDK once returned without an error; the cause is not known. The server did stop.
      for (let attempt = 0; attempt < 3 && !found.message; attempt++) {
        const abort = new AbortController();
        setTimeout(() => abort.abort(), 100 * 2 ** attempt);
        found = await thrown(() => ask({ ...more, maxOutputTokens: max_tokens, abortSignal: abort.signal }));
      }
      return found;
    },
  });
};
