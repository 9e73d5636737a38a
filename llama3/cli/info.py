"""`llama3 info`: describe a checkpoint. The headers of its files are read, and of quantised weights what they need."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llama3.cli.options import Parser, common_options
from llama3.cli.terminal import columns, in_bytes, prepare_hub, print_json
from llama3.errors import RequestError

if TYPE_CHECKING:
    from llama3.checkpoint import Checkpoint

DESCRIPTION = """\
Describe a checkpoint; without MODEL, the demo. A checkpoint on the Hugging Face hub is
downloaded first. Only the headers of its files are read, not the weights. Of quantised weights
the scales are read, too, and GPTQ, AWQ and NF4 are read whole.

  llama3 info
  llama3 info meta-llama/Meta-Llama-3-8B-Instruct"""


def parser() -> Parser:
    parser = Parser("llama3 info [MODEL] [OPTIONS]", DESCRIPTION)
    common_options(parser, device=False, json="print the same as one JSON object")
    return parser


def run(args: argparse.Namespace) -> int:
    if len(args.words) > 1:
        raise RequestError(f"info takes one model, but got {len(args.words)}: {' '.join(args.words)}")
    prepare_hub(args.quiet)
    from llama3.checkpoint import load_folder, resolve

    facts = describe(load_folder(resolve(args.words[0] if args.words else args.model)))
    if args.json:
        print_json(facts)
    else:
        print(as_text(facts))
    return 0


def describe(checkpoint: "Checkpoint") -> dict[str, Any]:
    """The object that --json prints. Sizes are in bytes; parameters are counted, not measured."""
    from llama3.chat import other_chat_format
    from llama3.model.kv_cache import KVCache
    from llama3.model.linear_choice import choose_linear

    config, weights, tokenizer = checkpoint.config, checkpoint.weights, checkpoint.tokenizer
    layers = weights.layers
    arrays = {
        "tok_embeddings": [weights.tok_embeddings],
        "attention": [w for layer in layers for w in (layer.wq, layer.wk, layer.wv, layer.wo)],
        "feed_forward": [w for layer in layers for w in (layer.w1, layer.w2, layer.w3)],
        "norms": [weights.norm, *(w for layer in layers for w in (layer.attention_norm, layer.ffn_norm))],
        "output": [] if config.tied_embeddings else [weights.output],
    }
    parts = {name: sum(w.size for w in part) for name, part in arrays.items() if part}
    scheme = checkpoint.scheme
    template = tokenizer.chat_template if tokenizer else None
    one_token = KVCache(config, slots=1, max_len=1)
    cache_bytes = one_token.k.nbytes + one_token.v.nbytes
    return {
        "path": str(checkpoint.path.absolute()),
        "layout": checkpoint.layout,
        "files": [file.name for file in checkpoint.files],
        "bytes": checkpoint.size,
        "dtypes": checkpoint.dtypes,
        "parameters": {"total": checkpoint.parameters, **parts},
        "bytes_of": {name: sum(w.nbytes for w in part) for name, part in arrays.items() if part},
        "quantised": scheme and {"scheme": scheme.description, "others_round_activations_to": scheme.activations},
        "config": asdict(config),
        "kv_cache_bytes": {"per_token": cache_bytes, "full_context": cache_bytes * config.max_seq_len},
        "vocabulary": {
            "embedding_rows": config.vocab_size,
            "text_tokens": tokenizer and len(tokenizer.ranks),
            "special_tokens": tokenizer and len(tokenizer.special),
            "special": tokenizer and {name: i for name, i in tokenizer.special.items() if "reserved" not in name},
            "added": tokenizer and {token.content: token.id for token in tokenizer.added if not token.special},
        },
        "stop_ids": sorted(checkpoint.stop_ids),
        "linear": asdict(choose_linear(weights)),
        "chat_template": {"found": bool(template), "not_llama_3s": other_chat_format(template)},
    }


def as_text(facts: dict[str, Any]) -> str:
    """What `describe` returns, as two columns for the terminal."""
    c, cache, vocabulary = facts["config"], facts["kv_cache_bytes"], facts["vocabulary"]
    total = facts["parameters"]["total"]
    dtypes = [name if n == total else f"{name} ({n / total:.1%})" for name, n in facts["dtypes"].items()]
    shape = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim")
    scaling = c["rope_scaling"]
    rows = [
        ("path", facts["path"]),
        (
            "files",
            f"{plural(len(facts['files']), 'file')}, {in_bytes(facts['bytes'])}, {facts['layout']} tensor names",
        ),
        ("dtype", ", ".join(dtypes)),
        *show_scheme(facts["quantised"]),
        ("parameters", f"{total:,}"),
        *((f"  {part}", show_part(facts, part)) for part in facts["parameters"] if part != "total"),
        ("shape", ", ".join(f"{name} {c[name]}" for name in shape)),
        ("output", "the embedding matrix (tied)" if c["tied_embeddings"] else "a separate matrix"),
        ("norm_eps", f"{c['norm_eps']:g}"),
        ("rope_theta", f"{c['rope_theta']:,.0f}" + (f", scaled: {show_scaling(scaling)}" if scaling else "")),
        ("context", f"{c['max_seq_len']:,} tokens"),
        ("KV cache", f"{in_bytes(cache['per_token'])} per token, {in_bytes(cache['full_context'])} for a full context"),
        ("on the CPU", f"{facts['linear']['kind']} multiplies: {facts['linear']['why']}"),
        ("vocabulary", show_vocabulary(vocabulary)),
    ]
    if special := vocabulary["special"]:
        names = {i: name for name, i in special.items()}
        reserved = vocabulary["special_tokens"] - len(special)
        rows.append(("special", ", ".join(f"{i} {name}" for i, name in names.items()) + f"; {reserved} reserved"))
        rows.append(("stops at", ", ".join(names.get(i, str(i)) for i in facts["stop_ids"]) or "nothing"))
        if added := vocabulary["added"]:
            rows.append(("added", ", ".join(f"{i} {name}" for name, i in added.items()) + "; found in any text"))
        rows.append(("chat", show_chat(facts["chat_template"])))
    return columns(rows)


def show_part(facts: dict[str, Any], part: str) -> str:
    """Parameters and their share; of a quantised model also bytes, and bits a parameter, scales included."""
    n, size = facts["parameters"][part], facts["bytes_of"][part]
    bits = f"  {in_bytes(size):>8}  {8 * size / n:5.2f} bits each" if facts["quantised"] else ""
    return f"{n:>14,}  {n / facts['parameters']['total']:6.1%}{bits}"


def show_scheme(quantised: dict[str, Any] | None) -> list[tuple[str, str]]:
    if not quantised:
        return []
    rows = [("quantised", quantised["scheme"])]
    if rounded := quantised["others_round_activations_to"]:
        rows.append(("activations", f"float32; programs that compute in 8 bits round them, too ({rounded})"))
    return rows


def show_vocabulary(vocabulary: dict[str, Any]) -> str:
    rows, text, special = (vocabulary[name] for name in ("embedding_rows", "text_tokens", "special_tokens"))
    if text is None:
        return f"{rows:,} ids; there is no tokenizer, so the model takes and gives token ids only"
    surplus = f"; the embedding has {rows:,} rows" if rows != text + special else ""
    return f"{text:,} text tokens, {special:,} special tokens{surplus}"


def show_chat(template: dict[str, Any]) -> str:
    if found := template["not_llama_3s"]:
        return f"refused: the chat template is not Llama 3's ({found}); raw prompts and token ids work"
    return "Llama 3's format" + ("" if template["found"] else "; the folder has no chat template")


def show_scaling(scaling: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in scaling.items())


def plural(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"
