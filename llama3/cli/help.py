"""The text of `llama3 --help`: examples first, then commands, options, environment variables and exit codes."""

from llama3.cli.terminal import columns

EXAMPLES = [
    ('llama3 "What is RoPE?"', "ask a question; the answer streams to standard output"),
    ("llama3 chat", "hold a conversation"),
    ('llama3 "Sum this up:" < notes.txt', "add a file to the prompt"),
    ('llama3 --raw "Once upon a time"', "continue a text instead of answering it"),
    ('llama3 --temperature 0 "..."', "always choose the most likely token: the same answer every time"),
    ("llama3 download OWNER/NAME", "fetch a model from the Hugging Face hub"),
    ('llama3 --model OWNER/NAME "..."', "ask that model"),
]
COMMANDS = {
    "generate": "answer one prompt; the default if the first word is not a command",
    "chat": "hold a conversation; type /help there for a list of commands",
    "batch": "answer a file of requests, one on each line",
    "serve": "answer over HTTP, like the model that Cloudflare Workers AI hosts",
    "download": "fetch a checkpoint into the Hugging Face hub's cache or into a folder",
    "quantize": "write a checkpoint with 8 or 4 bits a weight, for less memory",
    "tokenize": "show the tokens of a text, or the text of tokens",
    "info": "describe a checkpoint: shape, parameters, sizes, special tokens",
    "doctor": "check whether this machine can run the model on its GPU, and how to fix what is missing",
    "reference": "write what a model computes for a text, for other implementations to compare with",
    "inspect": "look inside: tokens, attention, the logit lens, how each token was chosen",
    "compare": "compare a model with a reference file, or two reference files",
    "tour": "learn how the model works: pages, and exercises that are checked inside the real model",
}
ENVIRONMENT = [
    (
        "LLAMA3_MODEL, ...",
        "set any option: --top-p is LLAMA3_TOP_P. The command line takes precedence. "
        "A repeatable option such as LLAMA3_STOP takes one value a line",
    ),
    ("LLAMA3_DEBUG=1", "show a traceback with each error"),
    ("NO_COLOR", "if set, do not use colours"),
    (
        "HF_TOKEN, HF_HOME, ...",
        "for the Hugging Face hub: your access token, the folder of its cache; HF_HUB_OFFLINE=1 forbids downloads",
    ),
]
EXIT_CODES = [
    ("0", "success"),
    ("1", "something failed: files, memory, the network"),
    ("2", "an option, a parameter or the prompt is wrong"),
    ("3", "compare found a difference above its limits, or tour check a mistake"),
    ("130", "stopped by Ctrl-C"),
    ("141", "the program that read the output has ended (llama3 ... | head)"),
]


def opening() -> str:
    """What `llama3` shows without a prompt: examples and commands."""
    return f"""Llama 3, written to be read. Ask it a question:

{columns(EXAMPLES)}

Commands (llama3 COMMAND --help describes each):
{columns(list(COMMANDS.items()))}"""


def everything(options: str) -> str:
    """All of `llama3 --help`; `options` lists the options of `generate`."""
    return f"""{opening()}

Options of generate, the default command:

{options}

Environment:
{columns(ENVIRONMENT)}

Exit codes:
{columns(EXIT_CODES)}"""
