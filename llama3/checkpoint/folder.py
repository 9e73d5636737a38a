"""Loads a checkpoint folder: weights, config, tokenizer and stop tokens. Files that do not fit together are refused."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama3.checkpoint.chat_template import read_chat_template
from llama3.checkpoint.config_file import config_from_hf, config_from_meta
from llama3.checkpoint.json_file import read_json_file
from llama3.checkpoint.names import HUGGING_FACE, check, layout_of, shapes, to_weights
from llama3.checkpoint.quantised.schemes import Scheme, read_matrices, scheme_of
from llama3.checkpoint.shards import find_weights, read_tensors
from llama3.config import ModelConfig
from llama3.errors import CheckpointError
from llama3.model.quantised import QuantisedMatrix
from llama3.model.weights import Weights
from llama3.tokenizer import Tokenizer
from llama3.tokenizer_file import LLAMA3_1_SPECIAL, LLAMA3_SPECIAL

CONFIGS = ("config.json", "params.json")  # Hugging Face's and Meta's
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "original/tokenizer.model")  # the first one present is read


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: config, weights and tokenizer, and what is known of its files."""

    path: Path
    config: ModelConfig
    weights: Weights
    tokenizer: Tokenizer | None  # None if the folder has none: then prompts and answers are token ids
    stop_ids: frozenset[int]  # each of these tokens ends an answer
    layout: str  # whose tensor names the files use: "Hugging Face" or "Meta"
    files: tuple[Path, ...]  # the safetensors files
    dtypes: dict[str, int]  # dtype -> how many parameters are stored in it
    scheme: Scheme | None = None  # how matrices are quantised; None: they are not

    @property
    def parameters(self) -> int:
        """The number of parameters. A tied embedding counts once."""
        return sum(self.dtypes.values())

    @property
    def size(self) -> int:
        """The size of the safetensors files, in bytes."""
        return sum(file.stat().st_size for file in self.files)


def load_folder(path: str | Path) -> Checkpoint:
    """Load a checkpoint in Hugging Face's form (config.json) or Meta's (params.json), with weights as safetensors.

    The weights are in the files' dtypes (bfloat16, float16, float32, or several of them), or quantised as config.json
    says (docs/quantised.md). They are read-only views of the memory-mapped files, except tensors that are not aligned,
    Meta's wq and wk, and quantised matrices in another layout than ours, which are copied. Raises CheckpointError or
    TokenizerError, with the file and the field that is wrong.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    source = find_weights(folder)
    tensors, files = read_tensors(source)
    with _errors_in(source):
        layout = layout_of(tensors)
    config, scheme = _read_config(folder, layout)
    with _errors_in(source):
        tensors = read_matrices(scheme, tensors, shapes(config, layout))
        check(config, tensors, layout)
        weights = to_weights(config, tensors, layout)
    tokenizer = _read_tokenizer(folder, config)
    stop_ids = _read_stop_ids(folder, config) | (tokenizer.stop_ids if tokenizer else frozenset())
    stop_ids &= frozenset(range(config.vocab_size))
    return Checkpoint(folder, config, weights, tokenizer, stop_ids, layout, files, _dtypes(config, weights), scheme)


@contextmanager
def _errors_in(path: Path) -> Iterator[None]:
    """Put the path in front of the message of every CheckpointError."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_config(folder: Path, layout: str) -> tuple[ModelConfig, Scheme | None]:
    """Read config.json for Hugging Face's layout; for Meta's, params.json or, if there is none, config.json.

    The scheme says how the matrices are quantised; None: they are not, as always in Meta's layout.
    """
    config, params = folder / "config.json", folder / "params.json"
    file = config if layout == HUGGING_FACE or not params.is_file() else params
    if not file.is_file():
        raise CheckpointError(
            f"{folder}: neither config.json nor params.json is there; one of them must give the model's shape"
        )
    fields = read_json_file(file)
    with _errors_in(file):
        if file == params:
            return config_from_meta(fields), None
        scheme = scheme_of(fields)
        if scheme and layout != HUGGING_FACE:
            raise CheckpointError("there is a quantization_config; expected tensors under Hugging Face's names with it")
        return config_from_hf(fields), scheme


def _read_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer | None:
    file = next((folder / name for name in TOKENIZERS if (folder / name).is_file()), None)
    if file is None:
        return None
    # tokenizer.json names the special tokens, and tokenizer.model does not: there, scaled RoPE shows that the model is
    # Llama 3.1 or later.
    tokenizer = Tokenizer.from_file(file, LLAMA3_1_SPECIAL if config.rope_scaling else LLAMA3_SPECIAL)
    # An added token may have an id without a row in the embedding. It is refused when it is used.
    if len(tokenizer.ranks) > config.vocab_size:
        raise CheckpointError(
            f"{file}: {len(tokenizer.ranks)} tokens of text, but the model's embedding has {config.vocab_size} rows: "
            "this file belongs to another model"
        )
    tokenizer.rows = config.vocab_size
    tokenizer.chat_template = read_chat_template(folder)
    return tokenizer


def _read_stop_ids(folder: Path, config: ModelConfig) -> frozenset[int]:
    """The values of `eos_token_id` in both config files: in each an id or a list of ids. Instruct models give the id of
    <|eot_id|> in only one of the two.

    Ids beyond the embedding are accepted: the model never gives them.
    """
    found: set[int] = set()
    for file in (folder / "generation_config.json", folder / "config.json"):
        value: Any = read_json_file(file).get("eos_token_id") if file.is_file() else None
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(i) is int and i >= 0 for i in ids):
            raise CheckpointError(f"{file}: eos_token_id is {value!r}; expected token ids")
        found.update(ids)
    return frozenset(found)


def _dtypes(config: ModelConfig, weights: Weights) -> dict[str, int]:
    """dtype -> how many parameters are stored in it, the most frequent first."""
    arrays = [weights.tok_embeddings, weights.norm, *([] if config.tied_embeddings else [weights.output])]
    for layer in weights.layers:
        arrays += vars(layer).values()
    count: Counter[str] = Counter()
    for array in arrays:
        count[array.kind if isinstance(array, QuantisedMatrix) else array.dtype.name] += array.size
    return dict(count.most_common())
