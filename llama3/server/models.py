"""The names of the model that requests may use."""

from llama3.errors import ContractError

NO_SUCH_MODEL = 5007  # Cloudflare's error code
MODELS = ("@hf/meta-llama/meta-llama-3-8b-instruct", "@cf/meta/llama-3-8b-instruct")


def unknown_model(name: str) -> ContractError | None:
    """The error for a model id that is not served; None if it is."""
    if name in MODELS:
        return None
    return ContractError(f"AiError: No such model: No such model {name[:100]} or task", NO_SUCH_MODEL, 400)
