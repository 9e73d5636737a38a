"""The HTTP server: Cloudflare Workers AI's API for this model, and OpenAI's, on your machine (extra `server`).

Reading order: app, service, body, responses, api_formats, streaming, chat_completions, completions; then auth,
access_log, metrics, timeouts, threads, models_api, playground and main.
"""
