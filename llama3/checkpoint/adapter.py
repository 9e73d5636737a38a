"""Loads a LoRA adapter as PEFT saves it, from adapter_config.json and adapter_model.safetensors."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from llama3.checkpoint.json_file import read_json_file
from llama3.checkpoint.names import HUGGING_FACE, LAYER, layer_name, shapes
from llama3.checkpoint.safetensors_file import open_safetensors
from llama3.config import ModelConfig
from llama3.errors import CheckpointError
from llama3.model.lora import Adapter, LoraPair

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_RANK = 64
MATRICES = {LAYER[ours][0].removesuffix(".weight"): ours for ours in ("wq", "wk", "wv", "wo", "w1", "w2", "w3")}
TENSOR = re.compile(
    rf"base_model\.model\.model\.layers\.(\d+)\.({'|'.join(map(re.escape, MATRICES))})\.lora_([AB])\.weight"
)
# PEFT's extensions of plain LoRA, which change the result. The value, as JSON, is the one that means "not used".
UNSUPPORTED = {
    "use_dora": "false", "bias": '"none"', "modules_to_save": "null", "fan_in_fan_out": "false", "rank_pattern": "{}",
    "alpha_pattern": "{}", "lora_bias": "false", "layer_replication": "null", "trainable_token_indices": "null",
    "use_qalora": "false", "alora_invocation_tokens": "null", "target_parameters": "null",
}  # fmt: skip
# Values of init_lora_weights that leave the base weights as they are. The others (pissa, olora, corda, loftq, lora_ga)
# change them, and the file does not say how.
INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


def load_adapter(folder: str | Path, config: ModelConfig) -> Adapter:
    """Load an adapter for a model of this config. Its matrices become float32, and b is multiplied by the scale.

    Raises CheckpointError, naming the field or the tensor, unless all of the adapter fits the model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; an adapter is a folder with {CONFIG} and {WEIGHTS}")
    rank, scale, targets = read_config(folder / CONFIG)
    file = folder / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; PEFT's save_pretrained writes it")
    tensors = open_safetensors(file)
    expected, layers = shapes(config, HUGGING_FACE), [dict[str, LoraPair]() for _ in range(config.n_layers)]
    for name in tensors:
        found = TENSOR.fullmatch(name)
        if not found:
            raise CheckpointError(f"{file}: tensor {name!r} is not a LoRA matrix of a linear layer in Llama 3's blocks")
        i, matrix = int(found[1]), MATRICES[found[2]]
        if i >= config.n_layers:
            raise CheckpointError(
                f"{file}: tensor {name!r}, but the model has {config.n_layers} layers; is it for another base model?"
            )
        a, b = (name.replace(f".lora_{found[3]}.", f".lora_{x}.") for x in "AB")
        if missing := [x for x in (a, b) if x not in tensors]:
            raise CheckpointError(f"{file}: tensor {missing[0]!r} is missing")
        out, width = expected[layer_name(i, matrix, HUGGING_FACE)]
        for x, shape in ((a, (rank, width)), (b, (out, rank))):
            if tensors[x].shape != shape:
                raise CheckpointError(
                    f"{file}: tensor {x!r} has the shape {tensors[x].shape}; expected {shape} for rank {rank} on this "
                    "model; is it for another base model?"
                )
            if not np.isfinite(tensors[x].astype(np.float32)).all():
                raise CheckpointError(f"{file}: tensor {x!r} holds a number that is not finite")
        layers[i][matrix] = LoraPair(tensors[a].astype(np.float32), tensors[b].astype(np.float32) * np.float32(scale))
    by_module = {name.split(".")[-1]: ours for name, ours in MATRICES.items()}  # "q_proj" -> "wq"
    for i, layer in enumerate(layers):
        for target in targets:
            if target in by_module and by_module[target] not in layer:
                raise CheckpointError(
                    f"{file}: no matrices for {target} of layer {i}, which {CONFIG} names as a target module"
                )
    return layers


def read_config(file: Path) -> tuple[int, float, list[str]]:
    """The rank, the scale, and the names of the modules that must be present in every layer.

    Raises CheckpointError for a field that is missing or wrong, and for anything but plain LoRA.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; PEFT's save_pretrained writes it")
    fields = read_json_file(file)
    if fields.get("peft_type") != "LORA":
        raise CheckpointError(f"{file}: peft_type is {fields.get('peft_type')!r}; expected 'LORA'")
    for field, unused in UNSUPPORTED.items():
        if fields.get(field) not in (None, False, "none") and fields[field] != {} and fields[field] != []:
            raise CheckpointError(
                f"{file}: {field} is {fields[field]!r}; expected {unused}: only plain LoRA is supported"
            )
    if (found := fields.get("init_lora_weights")) not in INITIALISATIONS:
        raise CheckpointError(
            f"{file}: init_lora_weights is {found!r}, which changes the base, too; expected true: save it as plain "
            "LoRA with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    rank: Any = fields.get("r")
    alpha: Any = fields.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise CheckpointError(f"{file}: r is {rank!r}; expected a rank from 1 to {MAX_RANK}")
    if type(alpha) not in (int, float) or not -1e30 < alpha < 1e30:  # neither NaN nor infinity
        raise CheckpointError(f"{file}: lora_alpha is {repr(alpha)[:60]}; expected a number")
    targets: Any = fields.get("target_modules")
    in_every_layer = not fields.get("layers_to_transform") and not fields.get("exclude_modules")
    required = targets if isinstance(targets, list) and in_every_layer else []
    # rsLoRA (Kalajdzievski 2023) divides by the root of the rank, so that a higher rank does not learn more slowly.
    return rank, alpha / (math.sqrt(rank) if fields.get("use_rslora") else rank), required
