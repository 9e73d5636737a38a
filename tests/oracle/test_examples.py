"""docs/examples/compare_torch.py, which needs torch."""

import subprocess
import sys

from tests.pages import ROOT


def test_a_torch_model_agrees_with_the_reference_and_a_fault_is_noticed():
    command = [sys.executable, str(ROOT / "docs" / "examples" / "compare_torch.py")]
    ran = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, timeout=300)
    assert ran.returncode == 0, ran.stderr
    right, _, wrong = ran.stdout.partition("with a fault:")
    assert "equal within the limits" in right and "DIFFERS" not in right
    assert "relative error of the logits over 1.0e-05 at 200 of 200 positions, first at 0" in wrong
