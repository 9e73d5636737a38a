// A Worker: `/` gives the results of the AI SDK's checks by the binding, `/gateway` those through an AI Gateway.
import { createWorkersAI } from "workers-ai-provider";
import { run } from "./ai_sdk.mjs";

export default {
  async fetch(request, env) {
    const gateway = new URL(request.url).pathname === "/gateway" ? { id: "any", skipCache: true } : undefined;
    return Response.json(await run(createWorkersAI({ binding: env.AI, gateway })));
  },
};
