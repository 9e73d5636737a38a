"""The HTTP server: the hosted model's API, and OpenAI's, on your own machine (extra `server`).

Reading order: app, service, body, responses, api_formats, streaming, chat_completions, completions; then auth,
access_log, metrics, timeouts, threads, models_api, playground and main.
"""
