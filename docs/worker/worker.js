// `/?q=...` responds with the whole answer, `/stream?q=...` with a stream of events.
const MODEL = "@hf/meta-llama/meta-llama-3-8b-instruct";

export default {
  async fetch(request, env) {
    const { pathname, searchParams } = new URL(request.url);
    const messages = [{ role: "user", content: searchParams.get("q") ?? "What is RoPE?" }];
    if (pathname === "/stream") {
      const stream = await env.AI.run(MODEL, { messages, stream: true });
      return new Response(stream, { headers: { "content-type": "text/event-stream" } });
    }
    try {
      return Response.json(await env.AI.run(MODEL, { messages, temperature: Number(searchParams.get("t") ?? 0) }));
    } catch (error) {
      return Response.json({ error: `${error.name}: ${error.message}` }, { status: 400 });
    }
  },
};
