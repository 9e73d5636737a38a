"""The HTTP server: Cloudflare Workers AI's API for this model, and OpenAI's, on your machine (extra `server`).

Reading order: app, service, body, responses, binding, streaming; then names, auth, cors, access_log,
metrics, parser, timeouts, listener, log_filter, threads, models_api, playground and main. What OpenAI's routes read and
write is in `llama3/openai_api/`.
"""
