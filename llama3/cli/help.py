"""`llama3 --help`: what to type, first; then the commands, the options, the environment, the exit codes."""

from llama3.cli.terminal import columns

EXAMPLES = [
    ('llama3 "What is RoPE?"', "ask; the answer streams to standard output"),
    ("llama3 chat", "a conversation"),
    ('llama3 "Sum this up:" < notes.txt', "standard input follows the prompt"),
    ('llama3 --raw "Once upon a time"', "continue a text instead of answering it"),
    ('llama3 --temperature 0 "..."', "always the likeliest token: the same answer every time"),
    ("llama3 download OWNER/NAME", "fetch a model from the Hugging Face hub"),
    ('llama3 --model OWNER/NAME "..."', "ask that model"),
]
COMMANDS = {
    "generate": "answer one prompt. The default: a first word that is no command is the prompt",
    "chat": "talk, with a history; /help there lists what it can do",
    "serve": "answer over HTTP, as Cloudflare Workers AI's hosted model does",
    "download": "fetch a checkpoint, into the hub's cache or a folder",
    "tokenize": "show the tokens of a text, or the text of tokens",
    "info": "describe a checkpoint: shape, parameters, bytes, special tokens",
    "doctor": "can this machine run the model on its GPU? What is missing, and how to mend it",
    "compare": "measure a model against a reference file, or one file against another",
}
ENVIRONMENT = [
    ("LLAMA3_MODEL, ...", "every option: --top-p is LLAMA3_TOP_P. An option given wins. LLAMA3_STOP: one text a line"),
    ("LLAMA3_DEBUG=1", "errors come with a traceback"),
    ("NO_COLOR", "no colours"),
    ("HF_TOKEN, HF_HOME, ...", "the Hugging Face hub's own: your key, the cache's place, HF_HUB_OFFLINE=1"),
]
EXIT_CODES = [
    ("0", "fine"),
    ("1", "something failed: files, memory, the network"),
    ("2", "a wrong option, parameter or prompt"),
    ("3", "compare found a difference above its limits"),
    ("130", "stopped with Ctrl-C"),
    ("141", "whoever read the output has gone (llama3 ... | head)"),
]


def opening() -> str:
    return f"""Llama 3, written to be read: type a question, and it answers.

{columns(EXAMPLES)}

Commands (llama3 COMMAND --help says more):
{columns(list(COMMANDS.items()))}"""


def everything(options: str) -> str:
    """`options` is argparse's list for `generate`."""
    return f"""{opening()}

{options}

Environment:
{columns(ENVIRONMENT)}

Exit codes:
{columns(EXIT_CODES)}"""
