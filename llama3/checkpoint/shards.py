"""Finds and reads the weights of a folder: one safetensors file, or several shards with an index."""

from pathlib import Path

import numpy as np

from llama3.checkpoint.json_file import read_json_file
from llama3.checkpoint.safetensors_file import DTYPES, open_safetensors
from llama3.errors import CheckpointError

INDEX = ".safetensors.index.json"


def find_weights(folder: Path) -> Path:
    """The weights' file or index: the one with Hugging Face's name, with Meta's, or the folder's only safetensors file.

    Raises CheckpointError if there is none, or if it is unclear which one.
    """
    for name in ("model", "consolidated"):
        for ending in (".safetensors", INDEX):
            if (path := folder / (name + ending)).is_file():
                return path
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found[:3]) + ", ..." * (len(found) > 3)
        raise CheckpointError(f"{folder}: {names}: several files, but no model{INDEX} that assigns tensors to them")
    for path in sorted(folder.iterdir()):
        if explanation := explain_other_format(path):
            raise CheckpointError(explanation)
    raise CheckpointError(f"{folder}: no weights; expected model.safetensors, or model{INDEX} and its shards")


def explain_other_format(path: Path) -> str | None:
    """The error message for Meta's .pth, PyTorch's .bin and llama.cpp's .gguf; None for all other files."""
    if path.suffix not in (".pth", ".pt", ".bin", ".gguf"):
        return None
    return (
        f"{path}: {path.suffix} files are not read; the model's Hugging Face form (safetensors) is needed: "
        "run `llama3 download meta-llama/Meta-Llama-3-8B-Instruct`, or name the repository that you want"
    )


def weight_files(source: Path) -> dict[Path, set[str] | None]:
    """The safetensors files of `source`, each with the tensors that the index lists for it (None: there is no index).

    Raises CheckpointError unless every shard that the index names is in the same folder.
    """
    if not source.name.endswith(INDEX):
        return {source: None}
    weight_map = read_json_file(source).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{source}: expected weight_map, an object that maps each tensor to its file")
    files: dict[Path, set[str] | None] = {}
    for name in sorted(set(map(str, weight_map.values()))):
        # A name such as "../x" would open a file in another folder.
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{source}: weight_map names {name!r}; expected a safetensors file beside it")
        if not (file := source.parent / name).is_file():
            raise CheckpointError(f"{file}: this shard is missing; {source.name} names it: download it again")
        files[file] = {tensor for tensor, shard in weight_map.items() if shard == name}
    return files


def read_tensors(source: Path) -> tuple[dict[str, np.ndarray], tuple[Path, ...]]:
    """All tensors by name, and the files that hold them. Raises CheckpointError where index and shards disagree."""
    files = weight_files(source)
    tensors: dict[str, np.ndarray] = {}
    for file, listed in files.items():
        found = open_safetensors(file, DTYPES)
        if listed is not None:
            if missing := sorted(listed - found.keys()):
                raise CheckpointError(f"{file}: tensor {missing[0]!r} is missing; {source.name} lists it in this file")
            if extra := sorted(found.keys() - listed):
                raise CheckpointError(f"{file}: tensor {extra[0]!r} is not listed for this file in {source.name}")
        tensors |= found
    return tensors, tuple(files)
