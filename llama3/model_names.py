"""The names of the model that requests may use."""

from pathlib import Path

from llama3.api_format import Llama
from llama3.errors import ContractError

NO_SUCH_MODEL = 5007  # Cloudflare's error code
MODELS = ("@hf/meta-llama/meta-llama-3-8b-instruct", "@cf/meta/llama-3-8b-instruct")
ALIASES = ("llama3", "meta-llama/Meta-Llama-3-8B-Instruct")  # on OpenAI's routes; YAML cannot hold a leading "@"


def unknown_model(name: str, names: tuple[str, ...] = MODELS) -> ContractError | None:
    """The error for a model id that is not served; None if it is."""
    if name in names:
        return None
    return ContractError(f"AiError: No such model: No such model {name[:100]} or task", NO_SUCH_MODEL, 400)


def openai_names(llama: Llama) -> tuple[str, ...]:
    """The names that OpenAI's routes accept: the hosted model's, the aliases, and the loaded model's own name."""
    return (*MODELS, *ALIASES, own_name(llama.checkpoint.path))


def own_name(folder: Path) -> str:
    """The name of a model's folder or, if the folder is in the Hugging Face hub's cache, of its repository."""
    in_cache = [part for part in folder.absolute().parts if part.startswith("models--")]
    return in_cache[-1].removeprefix("models--").replace("--", "/", 1) if in_cache else folder.absolute().name
