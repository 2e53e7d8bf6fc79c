"""A few kills at random moments, over verbs that other tests do not strike; `python -m benchmarks.kills` makes hundreds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="forks and process groups are POSIX")


def test_kills_at_random_moments_change_nothing(tmp_path):
    command = [sys.executable, "-m", "benchmarks.kills", str(tmp_path), "--kills", "4", "--seed", "3"]
    done = subprocess.run(
        [*command, "--verbs", "align", "evaluate"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert sum(len(one["kills"]) for one in told) >= 4 and not any(one["problem"] for one in told)
