"""`llama3 doctor`: check whether this machine can run the model on its GPU, and say what is missing."""

import argparse
from dataclasses import asdict

from llama3.cli.options import Parser, common_options, positive
from llama3.cli.terminal import columns, prepare_hub, print_json
from llama3.errors import RequestError

DESCRIPTION = """\
Check everything that running on a GPU needs: the model's shape, CuPy, its compiler, cuBLAS,
the driver, the GPU and its memory. The exit code is 1 if something is missing.

  llama3 doctor
  llama3 doctor meta-llama/Meta-Llama-3-8B-Instruct --device cuda:1 --slots 8"""


def parser() -> Parser:
    parser = Parser("llama3 doctor [MODEL] [OPTIONS]", DESCRIPTION)
    option = parser.group("batch")
    option("--slots", metavar="N", type=positive, default=1, help="sequences at once, with full contexts (default 1)")
    common_options(parser, json="print the same as one JSON object")
    return parser


def run(args: argparse.Namespace) -> int:
    if len(args.words) > 1:
        raise RequestError(f"doctor takes one model, but got {len(args.words)}: {' '.join(args.words)}")
    prepare_hub(args.quiet)
    from llama3.checkpoint import load_folder, resolve
    from llama3.cuda.doctor import examine
    from llama3.model.linear_choice import choose_linear

    checkpoint = load_folder(resolve(args.words[0] if args.words else args.model))
    device = args.device if args.device.startswith("cuda") else "cuda"
    linear = choose_linear(checkpoint.weights, args.linear, args.activations)
    checks = examine(checkpoint, device, args.slots)
    ok = all(check.ok for check in checks)
    if args.json:
        records = [{"name": c.name, "ok": c.ok, "found": c.found, "mend": c.fix} for c in checks]
        facts = {"path": str(checkpoint.path.absolute()), "device": device, "ok": ok, "checks": records}
        print_json(facts | {"cpu": asdict(linear)})
        return 0 if ok else 1
    rows = [("model", str(checkpoint.path.absolute())), ("CPU", f"ok: {linear.kind} multiplies: {linear.why}")]
    for check in checks:
        rows.append((check.name, f"{'ok: ' if check.ok else 'MISSING: '}{check.found}"))
        if check.fix:
            rows.append(("", f"-> {check.fix}"))
    print(columns(rows))
    print(f"\nThe model runs on {device}." if ok else f"\nThe model does not run on {device}; it runs on the CPU.")
    return 0 if ok else 1
