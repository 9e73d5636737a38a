"""Parity: checks whether logits are those that another implementation computes.

    read_reference(path), save_reference(path, reference)
    compare_model(llama.model, reference)   our model against a reference         (`llama3 compare FILE`)
    compare_files(ours, reference)          one reference file against another    (`llama3 compare FILE OTHER`)
    compare_arrays(logits, reference)       arrays of your own against a reference
    assert_close(logits, reference)         the same for tests: raises AssertionError with the report
    explain(ours, config, weights)          the fault that makes a Reference's numbers  (`llama3 compare ... --explain`)

Every compare function takes the limits rtol, max_kl and min_top1, and returns a Report: `.ok` (for the exit code),
`.breaches`, `.as_dict()` (for --json), `str()` (for people). `python -m llama3.parity.write_reference` makes reference
files. Reading order: reference_file, measures, report, compare; for faults: rounding, planted, faults, hidden_bos,
other_output, cast_order, search, trials, explain.
"""

from llama3.parity.compare import assert_close, compare_arrays, compare_files, compare_model
from llama3.parity.explain import explain, explained
from llama3.parity.explanation import Explanation
from llama3.parity.reference_file import Reference, read_reference, save_reference
from llama3.parity.report import Limits, Report

__all__ = [
    "Explanation",
    "Limits",
    "Reference",
    "Report",
    "assert_close",
    "compare_arrays",
    "compare_files",
    "compare_model",
    "explain",
    "explained",
    "read_reference",
    "save_reference",
]
