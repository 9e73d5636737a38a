"""Reads the chat template of a folder, which says in Jinja how messages become a prompt."""

from pathlib import Path
from typing import Any

from llama3.checkpoint.json_file import read_json_file, read_text_file
from llama3.errors import CheckpointError

TEMPLATE, CONFIG = "chat_template.jinja", "tokenizer_config.json"


def read_chat_template(folder: Path) -> str | None:
    """The template in chat_template.jinja or, without that file, in tokenizer_config.json; None if there is none.

    If tokenizer_config.json has several templates, the one named "default" is taken, else the first. The variables
    bos_token and eos_token are replaced by their values if tokenizer_config.json has them. Raises CheckpointError if
    the template is not text.
    """
    fields = read_json_file(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if (folder / TEMPLATE).is_file():
        template = read_text_file(folder / TEMPLATE)
    else:
        found: Any = fields.get("chat_template")
        if isinstance(found, list):
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
            found = named.get("default") or next(iter(named.values()), None)
        if found is None:
            return None
        if not isinstance(found, str):
            raise CheckpointError(f"{folder / CONFIG}: chat_template is {repr(found)[:60]}; expected text")
        template = found
    for name in ("bos_token", "eos_token"):
        token: Any = fields.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        template = template.replace(name, repr(token)) if isinstance(token, str) else template
    return template
