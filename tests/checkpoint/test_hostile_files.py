"""Ten thousand damaged directories: a typed error or a model, never a crash, never more than 256 MB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_ten_thousand_mutations(tmp_path: Path) -> None:
    script = ROOT / "tests" / "support" / "mutate_checkpoints.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "10000", "1"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=1700,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["escaped"] == []
    outcomes = report["outcomes"]
    assert sum(outcomes.values()) == 10_000
    assert outcomes["CheckpointError"] > 5000
    assert outcomes["ConfigError"] > 500
    assert outcomes["loaded"] > 100  # some damage is none: then the mutations are not all trivial
