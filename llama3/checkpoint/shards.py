"""Which files of a folder hold the weights: one safetensors file, or several behind an index."""

from pathlib import Path

import numpy as np

from llama3.checkpoint.safetensors_file import open_safetensors
from llama3.errors import CheckpointError
from llama3.json_text import read_json_file

INDEX = ".safetensors.index.json"


def find_weights(folder: Path) -> Path:
    """The weights' file or index: under Hugging Face's name, Meta's, or the only one there is."""
    for name in ("model", "consolidated"):
        for ending in (".safetensors", INDEX):
            if (path := folder / (name + ending)).is_file():
                return path
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found[:3]) + ", ..." * (len(found) > 3)
        raise CheckpointError(f"{folder}: {names}: several files, but no model{INDEX} that says what is in which")
    for path in sorted(folder.iterdir()):
        if explanation := explain_other_format(path):
            raise CheckpointError(explanation)
    raise CheckpointError(f"{folder}: no weights; expected model.safetensors, or model{INDEX} and its shards")


def explain_other_format(path: Path) -> str | None:
    """What to say to somebody who brings Meta's .pth, PyTorch's .bin or llama.cpp's .gguf."""
    if path.suffix not in (".pth", ".pt", ".bin", ".gguf"):
        return None
    return (
        f"{path}: {path.suffix} files are not read; the model's Hugging Face form (safetensors) is needed: "
        "run `llama3 download meta-llama/Meta-Llama-3-8B-Instruct`, or the repository that you want"
    )


def weight_files(source: Path) -> dict[Path, set[str] | None]:
    """The safetensors files behind `source`, each with the tensors that the index promises in it (None: no index).

    Raises CheckpointError unless every shard that the index names is there, in the same folder.
    """
    if not source.name.endswith(INDEX):
        return {source: None}
    weight_map = read_json_file(source).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{source}: expected weight_map, an object that gives each tensor's file")
    files: dict[Path, set[str] | None] = {}
    for name in sorted(set(map(str, weight_map.values()))):
        # A name such as "../x" would have us open files elsewhere.
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{source}: weight_map names {name!r}; expected a safetensors file beside it")
        if not (file := source.parent / name).is_file():
            raise CheckpointError(f"{file}: this shard is missing; {source.name} names it: fetch it again")
        files[file] = {tensor for tensor, shard in weight_map.items() if shard == name}
    return files


def read_tensors(source: Path) -> tuple[dict[str, np.ndarray], tuple[Path, ...]]:
    """All tensors by name, and the files that hold them. Raises CheckpointError where index and shards disagree."""
    files = weight_files(source)
    tensors: dict[str, np.ndarray] = {}
    for file, promised in files.items():
        held = open_safetensors(file)
        if promised is not None:
            if missing := sorted(promised - held.keys()):
                raise CheckpointError(f"{file}: tensor {missing[0]!r} is missing; {source.name} says that it is here")
            if extra := sorted(held.keys() - promised):
                raise CheckpointError(f"{file}: tensor {extra[0]!r} is here; {source.name} does not say so")
        tensors |= held
    return tensors, tuple(files)
