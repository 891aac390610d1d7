"""The kernels as an H100 runs them, as far as that can be seen without one: they compile.

The interpreter, which tests what they compute, accepts more than the compiler does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import compile_kernels

pytest.importorskip("triton", reason="the kernels need triton")


@pytest.mark.parametrize("name", compile_kernels.KERNELS)
def test_compiles_for_an_h100(name: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, compile_kernels.__file__, name],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[0]) > 1000
