"""OpenAI's API without HTTP: requests of chat completions, completions and responses, and their answers, as objects.

Reading order: input, output, chat_completions, prompt_logprobs, completions, responses_input, responses.
"""
