// `node ai_sdk_rest.mjs ADDRESS TOKEN` prints the results of the AI SDK's checks by REST as JSON.
import { createWorkersAI } from "workers-ai-provider";
import { run } from "./ai_sdk.mjs";

const [address, apiKey] = process.argv.slice(2);
const here = (url, options) => fetch(String(url).replace("https://api.cloudflare.com", address), options);
console.log(JSON.stringify(await run(createWorkersAI({ accountId: "me", apiKey, fetch: here }))));
