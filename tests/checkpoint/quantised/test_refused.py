"""A quantised checkpoint that is not read as it was meant is refused: one line names the field or the tensor."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama3.checkpoint import load_folder
from llama3.errors import CheckpointError
from tests.quantised_files import BF16, BY_NAME, save, write
from tests.tiny import random_tensors, tiny_config, write_meta

Q = "model.layers.0.self_attn.q_proj."


def config(change: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda fields, tensors: change(fields)


def weights(**changes: Any) -> Callable[[Any, Any], Any]:
    return config(lambda fields: fields["config_groups"]["group_0"]["weights"].update(changes))


def group(**changes: Any) -> Callable[[Any, Any], Any]:
    return config(lambda fields: fields["config_groups"]["group_0"].update(changes))


def put(part: str, value: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """Another tensor in the place of one of the first matrix's; None removes it."""

    def change(fields: Any, tensors: Any) -> None:
        new = value(tensors.pop(Q + part, None))
        if new is not None:
            tensors[Q + part] = np.ascontiguousarray(new)

    return change


def spoilt(number: float) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array = array.copy()
        array.flat[3 % array.size] = number
        return array

    return change


def state(**changes: Any) -> Callable[[Any], Any]:
    return lambda text: np.frombuffer(json.dumps(json.loads(text.tobytes()) | changes).encode(), np.uint8)


def gptq_as(form: str) -> Callable[[Any, Any], Any]:
    return config(lambda fields: fields.update(sym=True, checkpoint_format=form))


def without_order(fields: Any, tensors: Any) -> None:
    fields["desc_act"] = True
    del tensors[f"{Q}g_idx"]


OTHERS = ("torchao", "hqq", "aqlm", "eetq", "quark", "modelopt", "fbgemm_fp8", "mxfp4", "quanto", "gguf", None)
INT4, INT8, ZEROS, FP8 = "int4 by group", "int8 by row", "int4 with zeros", "float8 by matrix"
STATE = "weight.quant_state.bitsandbytes__nf4"
CASES: list[tuple[str, Callable[[Any, Any], Any], str]] = [
    *((INT4, config(lambda f, m=m: f.update(quant_method=m)), f"quant_method is {m!r}; expected") for m in OTHERS),
    # compressed-tensors: fields
    (INT4, config(lambda f: f.update(format="marlin-24")), "format is 'marlin-24'; expected 'pack-quantized'"),
    (INT4, config(lambda f: f.update(format="nvfp4-pack-quantized")), "format is 'nvfp4-pack-quantized'"),
    (INT4, config(lambda f: f.pop("format")), "format is missing"),
    (INT4, config(lambda f: f.update(kv_cache_scheme={"num_bits": 8})), "kv_cache_scheme is {'num_bits': 8}"),
    (INT4, config(lambda f: f.update(transform_config={"config_groups": {"a": 1}})), "transform_config is"),
    (INT4, config(lambda f: f.update(sparsity_config={"format": "sparse-24-bitmask"})), "sparsity_config has the"),
    (INT4, config(lambda f: f["config_groups"].update(group_1={})), "config_groups has 2 groups; expected one"),
    (INT4, config(lambda f: f.update(config_groups=None)), "config_groups is None; expected an object"),
    (INT4, config(lambda f: f.update(quantization_status="calibration")), "quantization_status is 'calibration'"),
    (INT4, group(targets=["Linear", "Embedding"]), "targets is ['Linear', 'Embedding']; expected ['Linear']"),
    (INT4, group(output_activations={"num_bits": 8}), "output_activations is {'num_bits': 8}; expected null"),
    (INT4, weights(num_bits=3), "weights.num_bits is 3; expected 4 or 8"),
    (INT4, weights(num_bits=2), "weights.num_bits is 2"),
    (INT4, weights(type="float"), "weights.type is 'float'; expected 'int'"),
    (INT4, weights(strategy="tensor_group"), "weights.strategy is 'tensor_group'"),
    (INT4, weights(group_size=0), "weights.group_size is 0; expected a positive number"),
    (INT4, weights(actorder="group"), "weights.actorder is 'group'; expected null"),
    (INT4, weights(dynamic=True), "weights.dynamic is True; expected False"),
    (INT8, weights(num_bits=4), "weights.num_bits is 4; expected 8"),
    ("float8 by block", weights(block_structure=[128]), "block_structure is [128]; expected two numbers"),
    ("float8 by block", weights(block_structure=[2**64, 32]), "block_structure is [18446744073709551616, 32]"),
    # compressed-tensors: tensors
    (INT4, weights(num_bits=8), "proj.weight_packed' has the shape"),
    (INT4, weights(group_size=16), "proj.weight_scale' has the shape"),
    (INT4, weights(symmetric=False), "proj.weight_zero_point' is missing"),
    (INT4, put("weight_scale", lambda a: None), f"{Q}weight_scale' is missing"),
    (INT4, put("weight_shape", lambda a: None), f"{Q}weight_shape' is missing"),
    (INT4, put("weight_shape", lambda a: a[::-1]), f"{Q}weight_shape' says (52, 40); the config requires (40, 52)"),
    (INT4, put("weight_scale", spoilt(np.nan)), f"{Q}weight_scale' holds a number that is not finite"),
    (INT4, put("weight_scale", spoilt(np.inf)), f"{Q}weight_scale' holds a number that is not finite"),
    (INT4, put("weight_packed", lambda a: a[:, :-1]), f"{Q}weight_packed' has the shape"),
    (INT4, put("weight_packed", lambda a: a.astype(np.int64)), f"{Q}weight_packed' is I64; expected I32"),
    (FP8, group(input_activations={"num_bits": 4, "type": "float"}), "input_activations.num_bits is 4; expected 8"),
    (FP8, group(input_activations={"num_bits": 8, "type": "float", "dynamic": "local"}), "dynamic is 'local'"),
    (INT4, put("weight_g_idx", lambda a: np.arange(52)[::-1].astype("i4") // 32), "in another order (act-order)"),
    (INT4, put("bias", lambda a: np.ones(40, "f4")), f"{Q}bias' is not part of the scheme"),
    (ZEROS, put("weight_zero_point", lambda a: a[:-1]), f"{Q}weight_zero_point' has the shape"),
    (ZEROS, put("weight_zero_point", lambda a: np.full((128, 2), 9, "i1")), "holds 9 to 9; expected integers of"),
    (ZEROS, put("weight_zero_point", lambda a: np.ones((16, 2), "i1")), "has the shape (16, 2); expected (128, 2)"),
    (INT8, put("weight", lambda a: a.astype("f4")), f"{Q}weight' is F32; expected I8"),
    (INT8, put("weight", lambda a: a.view(np.uint8)), f"{Q}weight' is U8; expected I8"),
    (FP8, put("weight_scale", lambda a: None), f"{Q}weight_scale' is missing"),
    (FP8, put("weight", lambda a: a.view(np.int8)), f"{Q}weight' is I8; expected F8_E4M3"),
    # fp8
    ("AutoFP8", config(lambda f: f.update(activation_scheme="none")), "activation_scheme is 'none'"),
    ("AutoFP8", config(lambda f: f.update(kv_cache_scheme="static")), "kv_cache_scheme is 'static'"),
    ("AutoFP8", config(lambda f: f.update(weight_block_size=[128, 128])), "proj.weight_scale_inv' is missing"),
    ("AutoFP8", put("weight_scale", spoilt(np.inf)), "not finite"),
    ("fp8 by block", config(lambda f: f.update(weight_block_size=128)), "weight_block_size is 128; expected two"),
    ("fp8 by block", config(lambda f: f.update(weight_block_size=[32, 0])), "weight_block_size is [32, 0]; expected"),
    # GPTQ
    ("GPTQ", config(lambda f: f.update(bits=3)), "bits is 3; expected 4 or 8"),
    ("GPTQ", config(lambda f: f.pop("bits")), "bits is missing"),
    ("GPTQ", config(lambda f: f.update(checkpoint_format="marlin")), "checkpoint_format is 'marlin'"),
    ("GPTQ", config(lambda f: f.update(is_marlin_format=True)), "is_marlin_format is True; expected False"),
    ("GPTQ", config(lambda f: f.update(dynamic={"+:.*": {"bits": 8}})), "dynamic is {"),
    ("GPTQ", config(lambda f: f.update(group_size=-2)), "group_size is -2; expected a positive number"),
    ("GPTQ", config(lambda f: f.update(group_size=2**64)), "group_size is 18446744073709551616; expected"),
    ("GPTQ", put("g_idx", lambda a: a[::-1]), f"{Q}g_idx' puts columns into groups in another order (act-order)"),
    ("GPTQ", put("g_idx", lambda a: np.random.RandomState(0).permutation(a)), "in another order (act-order)"),
    ("GPTQ", put("qzeros", lambda a: np.full_like(a, -1)), f"{Q}qzeros' holds 15, which plus 1 is no code of 4 bits"),
    ("GPTQ", put("qzeros", lambda a: None), f"{Q}qzeros' is missing"),
    ("GPTQ", gptq_as("gptq_v2"), "qzeros' stands for a zero of 7, but quantization_config.sym is true; expected 8"),
    ("GPTQ", put("qzeros", lambda a: np.full_like(a, -0x77777778)), f"{Q}qzeros' stands for a zero of 9"),  # all 8s
    ("GPTQ", without_order, f"{Q}g_idx' is missing, which quantization_config calls for"),
    ("GPTQ", put("scales", spoilt(np.nan)), f"{Q}scales' holds a number that is not finite"),
    ("GPTQ", put("qweight", lambda a: a.T), f"{Q}qweight' has the shape (128, 16); expected (16, 128)"),
    ("GPTQ", put("bias", lambda a: a + 1), f"{Q}bias' is not zero; Llama 3 has no bias"),
    # AWQ
    ("AWQ", config(lambda f: f.update(bits=8)), "bits is 8; expected 4"),
    ("AWQ", config(lambda f: f.update(version="gemv")), "version is 'gemv'; expected 'gemm'"),
    ("AWQ", config(lambda f: f.update(zero_point=False)), "zero_point is False; expected True"),
    ("AWQ", put("qweight", lambda a: a[:, :-1]), f"{Q}qweight' has the shape"),
    ("AWQ", put("scales", lambda a: None), f"{Q}scales' is missing"),
    # bitsandbytes
    ("NF4", config(lambda f: f.update(load_in_4bit=False)), "load_in_4bit is False; expected true"),
    ("NF4", config(lambda f: f.update(load_in_8bit=True)), "load_in_8bit is True; expected False"),
    ("NF4", config(lambda f: f.update(bnb_4bit_quant_type="fp4")), "bnb_4bit_quant_type is 'fp4'; expected 'nf4'"),
    ("NF4", config(lambda f: f.update(bnb_4bit_quant_storage="bfloat16")), "bnb_4bit_quant_storage is 'bfloat16'"),
    ("NF4", put(STATE, lambda a: None), f"{Q}{STATE}' is missing"),
    ("NF4", put(STATE, lambda a: a[:-1]), f"{Q}{STATE}' holds no JSON object"),
    ("NF4", put(STATE, state(blocksize=48)), "expected a multiple of the block size, 48"),
    ("NF4", put(STATE, state(shape=[128, 64])), "shape is [128, 64]; expected [128, 128]"),
    ("NF4", put("weight", lambda a: a[:-1]), f"{Q}weight' has the shape"),
    ("NF4", put(STATE, lambda a: np.frombuffer(b"[1]", np.uint8)), f"{Q}{STATE}' holds no JSON object"),
    ("NF4 twice", put(STATE, state(nested_offset=float("nan"))), "nested_offset is nan; expected a number"),
    ("NF4 twice", put(STATE, state(nested_offset=10**400)), "nested_offset is 1000"),
    ("NF4 twice", put(STATE, state(nested_blocksize=2**40)), "nested_blocksize is 1099511627776; expected a positive"),
    ("NF4 twice", put("weight.nested_absmax", spoilt(np.inf)), "not finite"),
    ("NF4 twice", put("weight.nested_quant_map", lambda a: a[:-1]), "has the shape (255,); expected (256,)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "says"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_an_unknown_scheme_or_a_damaged_file_is_refused_by_name(name: str, change: Any, says: str, tmp_path: Path):
    example = BY_NAME[name]
    tiny = replace(example, config=replace(example.config, n_layers=1))
    folder, _ = write(tmp_path, tiny)
    load_folder(folder)
    fields, tensors = copy.deepcopy(dict(example.fields)), read(folder)
    change(fields, tensors)
    save(folder, tiny.config, tensors, fields)
    with pytest.raises(CheckpointError) as caught:
        load_folder(folder)
    message = str(caught.value)
    assert says in message and message.startswith(str(folder)) and len(message.splitlines()) == 1


def read(folder: Path) -> dict[str, np.ndarray]:
    from llama3.checkpoint.safetensors_file import DTYPES, open_safetensors

    return {name: np.array(a) for name, a in open_safetensors(folder / "model.safetensors", DTYPES).items()}


def test_quantised_tensors_need_a_config_and_a_config_needs_them(tmp_path: Path):
    example = BY_NAME["int8 by row"]
    folder, plain = write(tmp_path, example)
    save(folder, example.config, read(folder), None)
    with pytest.raises(CheckpointError, match=r"is I8; expected BF16, F16, F32: there is no quantization_config"):
        load_folder(folder)
    save(folder, example.config, plain, example.fields)
    with pytest.raises(CheckpointError, match=r"no matrix is quantised, but config\.json has a quantization_config"):
        load_folder(folder)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_embeddings_and_norms_must_be_plain(name: str, tmp_path: Path):
    example = BY_NAME["int8 by row"]
    folder, _ = write(tmp_path, example)
    tensors = read(folder)
    save(folder, example.config, tensors | {name: tensors[name].astype(np.int8)}, example.fields)
    with pytest.raises(CheckpointError, match=f"'{name}' is int8; expected BF16, F16, F32"):
        load_folder(folder)


def test_metas_layout_is_read_unquantised_only(tmp_path: Path):
    config = tiny_config()
    folder = write_meta(tmp_path, config, random_tensors(config))
    (folder / "params.json").unlink()
    example = BY_NAME["int8 by row"]
    save(tmp_path / "other", config, {"a": np.ones(1, BF16)}, example.fields)
    (folder / "config.json").write_bytes((tmp_path / "other" / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="expected tensors under Hugging Face's names"):
        load_folder(folder)


def test_matrices_that_were_left_plain_load_beside_quantised_ones(tmp_path: Path):
    example = BY_NAME["int8 by row"]
    folder, plain = write(tmp_path, example)
    name = f"{Q}weight"
    tensors = {n: a for n, a in read(folder).items() if not n.startswith(Q)} | {name: plain[name].astype(BF16)}
    save(folder, example.config, tensors, example.fields)
    assert load_folder(folder).weights.layers[0].wq.dtype == BF16
