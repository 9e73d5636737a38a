// Tests run inside the Workers runtime. `env.AI` is the binding, and `SELF` is the Worker itself.
import { env, SELF } from "cloudflare:test";
import { expect, it } from "vitest";

const MODEL = "@hf/meta-llama/meta-llama-3-8b-instruct";
const messages = [{ role: "user", content: "What is RoPE?" }];

it("answers whole", async () => {
  const { response, usage } = await env.AI.run(MODEL, { messages, temperature: 0 });
  expect(response).not.toBe("");
  expect(usage.total_tokens).toBe(usage.prompt_tokens + usage.completion_tokens);
});

it("streams", async () => {
  const stream = await env.AI.run(MODEL, { messages, stream: true });
  expect(await new Response(stream).text()).toMatch(/data: \[DONE\]\n\n$/);
});

it("says what is wrong with an input", async () => {
  await expect(env.AI.run(MODEL, { messages, temperature: 9 })).rejects.toThrow("'/temperature' must be <= 5");
});

it("answers through the Worker", async () => {
  const reply = await SELF.fetch("https://example.com/?q=What+is+RoPE");
  expect((await reply.json()).response).not.toBe("");
});
