"""A model's name -> a folder on this machine: the demo, a folder, or a repository on the Hugging Face hub."""

import re
from pathlib import Path

from llama3.checkpoint.folder import TOKENIZERS
from llama3.checkpoint.shards import explain_other_format
from llama3.errors import CheckpointError
from llama3.resources import resource

EXAMPLE = "meta-llama/Meta-Llama-3-8B-Instruct"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def resolve(model: str | Path | None) -> Path:
    """None is the demo that ships; a folder is itself; "owner/name" lies on the hub.

    A complete copy in the hub's cache is used as it is, without asking the hub: `download` looks for a newer one.
    Raises CheckpointError if there is no such folder, DownloadError if the download fails.
    """
    if model is None:
        return resource("weights", "demo")
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(explain_other_format(path) or f"{path} is a file; expected the folder that it lies in")
    if not isinstance(model, str) or not REPOSITORY.fullmatch(model):
        raise CheckpointError(f"{model}: no such folder; expected a folder, or a name on the hub such as {EXAMPLE}")
    from llama3.checkpoint.transfer import cached

    folder = cached(model)
    # Another program may have put the weights there alone.
    if folder and any((folder / name).is_file() for name in TOKENIZERS):
        return folder
    return download(model)


def download(repo: str, to: str | Path | None = None, revision: str | None = None) -> Path:
    """Fetch what is needed to run a model. Returns its folder: `to`, or one in the hub's cache.

    Run again after an interruption, it goes on at the byte where it stopped. Nothing half done can be taken for whole:
    `to` does not exist until all has arrived (the files gather in `to` + ".partial"), and the cache's name for the
    revision keeps pointing at the files before. Without a network, a complete copy in the cache will do.

    HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE act as everywhere with huggingface_hub. Raises DownloadError.
    """
    from llama3.checkpoint.transfer import fetch  # here: huggingface_hub takes a second to import

    return fetch(repo, None if to is None else Path(to).absolute(), revision)
