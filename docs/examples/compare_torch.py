"""Check a torch model's logits against a reference file. It needs the extra `oracle`: pip install '.[oracle]'.

    python docs/examples/compare_torch.py [REFERENCE]

The model here is the demo in transformers, from the same weights. Put your model in its place: all that
`compare_arrays` needs is an array (tokens, vocab_size).
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from llama3.parity import compare_arrays, read_reference

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "tests" / "weights" / "demo_reference.safetensors"


@torch.inference_mode()
def logits_of(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    """The logits of every position, (T, vocab_size) float32."""
    return model(torch.from_numpy(np.array(tokens))[None]).logits[0].float().numpy()


def main() -> None:
    reference = read_reference(sys.argv[1] if len(sys.argv) > 1 else REFERENCE)
    model = LlamaForCausalLM.from_pretrained(ROOT / "weights" / "demo", dtype=torch.float32).eval()
    report = compare_arrays(logits_of(model, reference.tokens), reference)
    print(report)

    # A fault: the weight of the final norm is lost. The report says how far off the logits are, and where.
    model.model.norm.weight.data.fill_(1.0)
    report = compare_arrays(logits_of(model, reference.tokens), reference)
    print("\nwith a fault:", *report.breaches, sep="\n  ")


if __name__ == "__main__":
    main()
