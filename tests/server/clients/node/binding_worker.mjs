// A Worker: `/` gives the results of the checks of `env.AI.run`, `/gateway` the same through an AI Gateway.
import { LONG, MODEL, QUESTION, RESULT, SCHEMA, TOOL, WEATHER, results, thrown } from "./checks.mjs";

export default {
  async fetch(request, env) {
    const gateway = new URL(request.url).pathname === "/gateway" ? { gateway: { id: "any", skipCache: true } } : {};
    const ask = (inputs, options) =>
      env.AI.run(MODEL, { messages: QUESTION, temperature: 0, ...inputs }, { ...gateway, ...options });
    const call = () => ask({ messages: WEATHER, tools: [TOOL.function] });
    const checks = {
      plain: () => ask({}),
      stream: async () => new Response(await ask({ stream: true })).text(),
      json: () => ask({ response_format: { type: "json_schema", json_schema: SCHEMA } }),
      call,
      round_trip: async () => {
        const { tool_calls } = await call();
        const history = [
          ...WEATHER,
          { role: "assistant", content: "", tool_calls },
          { role: "tool", name: "get_weather", content: RESULT },
        ];
        return ask({ messages: history, tools: [TOOL.function] });
      },
      bad_input: () => thrown(() => ask({ temperature: 9 })),
      too_long: () => thrown(() => ask({ max_tokens: 100000 })),
      bad_model: () => thrown(() => env.AI.run("@cf/other", { prompt: "x" }, gateway)),
      abort: async () => {
        const stream = await ask({ ...LONG, stream: true });
        const reader = stream.getReader();
        await reader.read();
        await reader.cancel();
        const abort = new AbortController();
        setTimeout(() => abort.abort(), 100);
        return thrown(() => ask(LONG, { signal: abort.signal }));
      },
    };
    return Response.json(await results(checks));
  },
};
