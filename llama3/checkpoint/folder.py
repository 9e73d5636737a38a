"""A folder -> a Checkpoint: weights, config, tokenizer, stop tokens. All of it fits together, or nothing is loaded."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama3.checkpoint.config_file import config_from_hf, config_from_meta
from llama3.checkpoint.names import HUGGING_FACE, check, layout_of, to_weights
from llama3.checkpoint.shards import find_weights, read_tensors
from llama3.config import ModelConfig
from llama3.errors import CheckpointError
from llama3.json_text import read_json_file
from llama3.model.weights import Weights
from llama3.tokenizer import Tokenizer
from llama3.tokenizer_file import LLAMA3_1_SPECIAL, LLAMA3_SPECIAL

CONFIGS = ("config.json", "params.json")  # Hugging Face's and Meta's
TOKENIZERS = ("tokenizer.model", "original/tokenizer.model", "tokenizer.json")  # the first that is there is read


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    config: ModelConfig
    weights: Weights
    tokenizer: Tokenizer | None  # None: the folder has none; only token ids go in and out
    stop_ids: frozenset[int]  # each of these tokens ends an answer
    layout: str  # whose tensor names: "Hugging Face" or "Meta"
    files: tuple[Path, ...]  # of safetensors
    dtypes: dict[str, int]  # dtype -> parameters stored in it

    @property
    def parameters(self) -> int:
        """A tied embedding counts once."""
        return sum(self.dtypes.values())

    @property
    def size(self) -> int:
        """Bytes of the weights' files."""
        return sum(file.stat().st_size for file in self.files)


def load_folder(path: str | Path) -> Checkpoint:
    """Read a checkpoint in Hugging Face's form (config.json) or Meta's (params.json), its weights as safetensors.

    The weights keep the file's dtype (bfloat16, float16 or float32, also mixed), mapped and read-only. Raises
    CheckpointError or TokenizerError with the file and the field at fault.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    source = find_weights(folder)
    tensors, files = read_tensors(source)
    with _blame(source):
        layout = layout_of(tensors)
    config = _read_config(folder, layout)
    with _blame(source):
        check(config, tensors, layout)
        weights = to_weights(config, tensors, layout)
    tokenizer = _read_tokenizer(folder, config)
    stop_ids = _read_stop_ids(folder, config) | (tokenizer.stop_ids if tokenizer else frozenset())
    return Checkpoint(folder, config, weights, tokenizer, stop_ids, layout, files, _dtypes(config, weights))


@contextmanager
def _blame(path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_config(folder: Path, layout: str) -> ModelConfig:
    """The config that belongs to the tensors' layout, else the other one: Meta's names also come with a config.json."""
    config, params = folder / "config.json", folder / "params.json"
    file = config if layout == HUGGING_FACE or not params.is_file() else params
    if not file.is_file():
        raise CheckpointError(f"{folder}: neither config.json nor params.json is there; one says the model's shape")
    fields = read_json_file(file)
    with _blame(file):
        return config_from_hf(fields) if file == config else config_from_meta(fields)


def _read_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer | None:
    file = next((folder / name for name in TOKENIZERS if (folder / name).is_file()), None)
    if file is None:
        return None
    # tokenizer.model names no special tokens; a tokenizer.json beside it does. Without one, Llama 3.1 and its kin are
    # known by their scaled RoPE.
    named = _added_tokens(folder / "tokenizer.json")
    default = LLAMA3_1_SPECIAL if config.rope_scaling else LLAMA3_SPECIAL
    tokenizer = Tokenizer.from_file(file, sorted(named, key=named.__getitem__) or default)
    if named and tokenizer.special != named:
        raise CheckpointError(f"{file}: its {len(tokenizer.ranks)} tokens and the ids in tokenizer.json do not fit")
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{file}: token ids up to {tokenizer.vocab_size - 1}, but the model knows {config.vocab_size} tokens: "
            "this vocabulary belongs to another model"
        )
    return tokenizer


def _added_tokens(file: Path) -> dict[str, int]:
    if not file.is_file():
        return {}
    try:
        added = [(token["content"], token["id"]) for token in read_json_file(file)["added_tokens"]]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: added_tokens: expected objects with content and id") from error
    if not all(type(content) is str and type(token) is int for content, token in added):
        raise CheckpointError(f"{file}: added_tokens: expected a text as content and a whole number as id")
    return dict(added)


def _read_stop_ids(folder: Path, config: ModelConfig) -> frozenset[int]:
    """`eos_token_id` of both files, an id or a list of ids. Instruct models name <|eot_id|> in only one of them."""
    found: set[int] = set()
    for file in (folder / "generation_config.json", folder / "config.json"):
        value: Any = read_json_file(file).get("eos_token_id") if file.is_file() else None
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int and 0 <= i < config.vocab_size for i in ids):
            raise CheckpointError(
                f"{file}: eos_token_id is {value!r}; expected token ids from 0 to {config.vocab_size - 1}"
            )
        found.update(ids)
    return frozenset(found)


def _dtypes(config: ModelConfig, weights: Weights) -> dict[str, int]:
    arrays = [weights.tok_embeddings, weights.norm, *([] if config.tied_embeddings else [weights.output])]
    for layer in weights.layers:
        arrays += vars(layer).values()
    count: Counter[str] = Counter()
    for array in arrays:
        count[array.dtype.name] += array.size
    return dict(count.most_common())
