"""Start two gloo processes as a user would, with `accelerate launch`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOW = {"data": ["--multi_gpu"], "weights": ["--use_fsdp", "--fsdp_version", "2"]}
"""What the processes divide among them; on a machine without GPUs the launcher's word for several is the same."""


_NETWORK = ("EADDRINUSE", "DistNetworkError", "connectFullMesh")
"""What is said where another test took the port between its choice and its use."""


def launch(divided: str, *command: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a command in two processes; once more if they could not meet."""
    ran = _launch(divided, command, timeout)
    return _launch(divided, command, timeout) if any(word in ran.stderr for word in _NETWORK) else ran


def _launch(divided: str, command: tuple[str, ...], timeout: float) -> subprocess.CompletedProcess[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    usual = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    arguments = ["launch", *HOW[divided], *usual, "--main_process_ip", "127.0.0.1", "--main_process_port", port]
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", *arguments, *command],
        cwd=ROOT,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
