"""The hosted model's HTTP, on your own machine (extra `server`).

Read: app, gate, answers, openai, journal, playground, deadline, main.
"""
