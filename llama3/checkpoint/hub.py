"""From a model's name to a folder on this machine: the demo, a folder, or a repository on the Hugging Face hub."""

import re
from pathlib import Path

from llama3.checkpoint.folder import TOKENIZERS
from llama3.checkpoint.shards import explain_other_format
from llama3.errors import CheckpointError
from llama3.resources import resource

EXAMPLE = "meta-llama/Meta-Llama-3-8B-Instruct"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def resolve(model: str | Path | None) -> Path:
    """The folder of a model. None means the demo that ships; otherwise a folder, or a hub repository "owner/name".

    A complete copy in the hub's cache is used without a request to the hub. `download` looks for a newer one. Raises
    CheckpointError if there is no such folder, DownloadError if the download fails.
    """
    if model is None:
        return resource("weights", "demo")
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(explain_other_format(path) or f"{path} is a file; expected the folder that holds it")
    if not isinstance(model, str) or not REPOSITORY.fullmatch(model):
        raise CheckpointError(f"{model}: no such folder; expected a folder, or a name on the hub such as {EXAMPLE}")
    from llama3.checkpoint.transfer import cached

    folder = cached(model)
    # Another program may have cached the weights without a tokenizer.
    if folder and any((folder / name).is_file() for name in TOKENIZERS):
        return folder
    return download(model)


def download(repo: str, to: str | Path | None = None, revision: str | None = None) -> Path:
    """Download the files that are needed to run a model. Returns their folder: `to`, or one in the hub's cache.

    After an interruption, the next call continues at the byte where the last one stopped. An incomplete download cannot
    be mistaken for a complete one. `to` does not exist until all files have arrived (until then they are in `to` +
    ".partial"), and in the cache the revision's ref points to the old commit until then. Without a network, a complete
    copy in the cache is returned.

    HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE work as usual with huggingface_hub. Raises DownloadError.
    """
    from llama3.checkpoint.transfer import fetch  # here, because huggingface_hub takes a second to import

    return fetch(repo, None if to is None else Path(to).absolute(), revision)
