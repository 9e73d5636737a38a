"""What benchmarks/cpu.py measures side by side: our kinds of product, transformers, and llama.cpp, on the same weights.

A side decodes one token for each of several sequences, and reads a prompt. Both give logits, so that a run can check
that the sides compute the same model before it times them.
"""

import ctypes
import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from random_8b import CONFIG, projections  # the file beside this one

from llama3.cpu_model import CpuModel
from llama3.model.batch import Batch
from llama3.model.linear_choice import choose_linear
from llama3.model.weights import Weights

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Side(Protocol):
    def start_decoding(self, k: np.ndarray, v: np.ndarray) -> None:
        """k, v (sequences, n_layers, n_kv_heads, length, head_dim): what each sequence has in its cache."""

    def decode(self, tokens: list[int]) -> np.ndarray:
        """The next token of each sequence -> logits (sequences, vocab_size). The cache is then as it was before."""

    def prompt(self, tokens: list[int]) -> np.ndarray:
        """Read a prompt into an empty cache -> logits of its last token, (1, vocab_size)."""


class Ours:
    def __init__(self, weights: Weights, linear: str, activations: str = "float32"):
        self.model = CpuModel(CONFIG, weights, linear=choose_linear(weights, linear, activations))

    def start_decoding(self, k: np.ndarray, v: np.ndarray) -> None:
        sequences, *_, length, _ = k.shape
        self.cache = self.model.new_cache(sequences, length + 1)
        for slot in range(sequences):
            self.cache.restore(slot, k[slot], v[slot])

    def decode(self, tokens: list[int]) -> np.ndarray:
        length = self.cache.lengths[0]
        logits = self.model.forward(
            Batch.of([(slot, [token]) for slot, token in enumerate(tokens)]), self.cache, np.arange(len(tokens))
        )
        for slot in range(len(tokens)):
            self.cache.truncate(slot, length)
        return logits

    def prompt(self, tokens: list[int]) -> np.ndarray:
        cache, chunk = self.model.new_cache(1, len(tokens)), self.model.prefill_chunk
        for begin in range(0, len(tokens), chunk):
            rows = tokens[begin : begin + chunk]
            last = [len(rows) - 1] if begin + chunk >= len(tokens) else []
            logits = self.model.forward(Batch.of([(0, rows)]), cache, np.array(last, int))
        return logits


class Transformers:
    """Hugging Face's LlamaForCausalLM, in bfloat16 on the same memory, or in float32 on a copy."""

    def __init__(self, weights: Weights, dtype: str):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

        self.dtype = getattr(torch, dtype)
        torch.set_num_threads(THREADS)
        c = CONFIG
        config = LlamaConfig(
            hidden_size=c.dim,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            num_key_value_heads=c.n_kv_heads,
            head_dim=c.head_dim,
            intermediate_size=c.hidden_dim,
            vocab_size=c.vocab_size,
            rms_norm_eps=c.norm_eps,
            max_position_embeddings=c.max_seq_len,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            dtype=self.dtype,
        )
        with torch.device("meta"):
            model: Any = LlamaForCausalLM(config)
        model.load_state_dict({name: self._tensor(w) for name, w in hf_names(weights).items()}, assign=True)
        model.model.rotary_emb = LlamaRotaryEmbedding(config)  # its table is no parameter, and was on "meta" too
        self.model = model.eval()

    def _tensor(self, w: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(w.view(np.int16)).view(torch.bfloat16).to(self.dtype)

    def _logits(self, ids: Any, **arguments: Any) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return self.model(ids, logits_to_keep=1, **arguments).logits[:, -1].float().numpy()

    def start_decoding(self, k: np.ndarray, v: np.ndarray) -> None:
        import torch
        from transformers import DynamicCache

        self.cache = DynamicCache()
        for layer in range(CONFIG.n_layers):
            self.cache.update(*(torch.from_numpy(a[:, layer]).to(self.dtype) for a in (k, v)), layer)

    def decode(self, tokens: list[int]) -> np.ndarray:
        import torch

        logits = self._logits(torch.tensor(tokens)[:, None], past_key_values=self.cache)
        self.cache.crop(-1)  # remove the last position
        return logits

    def prompt(self, tokens: list[int]) -> np.ndarray:
        import torch

        return self._logits(torch.tensor([tokens]), use_cache=False)


def hf_names(weights: Weights) -> dict[str, np.ndarray]:
    """The matrices by Hugging Face's names."""
    names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    names += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    state = {
        "model.embed_tokens.weight": weights.tok_embeddings,
        "model.norm.weight": weights.norm,
        "lm_head.weight": weights.output,
    }
    for i, layer in enumerate(weights.layers):
        state[f"model.layers.{i}.input_layernorm.weight"] = layer.attention_norm
        state[f"model.layers.{i}.post_attention_layernorm.weight"] = layer.ffn_norm
        for name, w in zip(names, projections(layer), strict=True):
            state[f"model.layers.{i}.{name}.weight"] = w
    return state


class LlamaCpp:
    """llama.cpp in bfloat16, through llama-cpp-python. It reads a GGUF file, which the extra package `gguf` writes.

    It decodes one sequence only, whose keys and values it computes from tokens, so its logits are compared for prompts.
    """

    def __init__(self, weights: Weights, context: int):
        import llama_cpp

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.gguf")
            write_gguf(file, weights)
            self.model = llama_cpp.Llama(
                str(file), n_ctx=context, n_batch=512, n_threads=THREADS, n_threads_batch=THREADS, verbose=False
            )  # the file stays mapped after it is gone

    def start_decoding(self, k: np.ndarray, v: np.ndarray) -> None:
        if len(k) > 1:
            raise NotImplementedError("llama-cpp-python decodes one sequence")
        self.model.reset()
        self.model.eval([1] * k.shape[3])

    def decode(self, tokens: list[int]) -> np.ndarray:
        length = self.model.n_tokens
        self.model.eval(tokens)
        logits = self._last_logits()
        self.model._ctx.kv_cache_seq_rm(0, length, -1)
        self.model.n_tokens = length
        return logits

    def prompt(self, tokens: list[int]) -> np.ndarray:
        self.model.reset()
        self.model.eval(tokens)
        return self._last_logits()

    def _last_logits(self) -> np.ndarray:
        pointer = self.model._ctx.get_logits_ith(-1)
        return np.ctypeslib.as_array(
            ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (1, CONFIG.vocab_size)
        ).copy()


def write_gguf(path: Path, weights: Weights) -> None:
    """GGUF has the rows of wq and wk in pairs, as Meta has them; ours are in split halves."""
    import gguf

    c = CONFIG
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(c.max_seq_len)
    writer.add_embedding_length(c.dim)
    writer.add_block_count(c.n_layers)
    writer.add_feed_forward_length(c.hidden_dim)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("no_vocab")

    def add(name: str, w: np.ndarray) -> None:
        if w.ndim == 1:
            writer.add_tensor(f"{name}.weight", w.astype(np.float32))
        else:
            writer.add_tensor(f"{name}.weight", w.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

    def pairs(w: np.ndarray) -> np.ndarray:
        return w.reshape(-1, 2, c.head_dim // 2, c.dim).swapaxes(1, 2).reshape(w.shape)

    add("token_embd", weights.tok_embeddings)
    for i, layer in enumerate(weights.layers):
        parts = {
            "attn_norm": layer.attention_norm,
            "attn_q": pairs(layer.wq),
            "attn_k": pairs(layer.wk),
            "attn_v": layer.wv,
            "attn_output": layer.wo,
            "ffn_norm": layer.ffn_norm,
            "ffn_gate": layer.w1,
            "ffn_down": layer.w2,
            "ffn_up": layer.w3,
        }
        for name, w in parts.items():
            add(f"blk.{i}.{name}", w)
    add("output_norm", weights.norm)
    add("output", weights.output)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
