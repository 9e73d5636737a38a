// `node ai_sdk_node.mjs ADDRESS TOKEN PROVIDER` prints the results of the AI SDK's checks as JSON.
import { createOpenAI } from "@ai-sdk/openai";
import { createWorkersAI } from "workers-ai-provider";
import { run } from "./ai_sdk.mjs";

const [address, apiKey, provider] = process.argv.slice(2);
const here = (url, options) => fetch(String(url).replace("https://api.cloudflare.com", address), options);
const openai = createOpenAI({ baseURL: `${address}/v1`, apiKey });
const providers = {
  REST: createWorkersAI({ accountId: "me", apiKey, fetch: here }),
  "OpenAI chat": openai.chat,
  "OpenAI responses": openai,
};

console.log(JSON.stringify(await run(providers[provider])));
