"""Two processes train UTGRec as one process does on the whole batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catalex.artifacts import read_arrays
from catalex.errors import CatalexError
from catalex.tokenizers import utgrec_training
from catalex.tokenizers.utgrec_network import Losses, UTGRecNetwork
from catalex.tokenizers.utgrec_training import _Plan, train_utgrec
from unit.features.tiny import tiny_transformer
from unit.tokenizers.tiny_utgrec import FROZEN, build, calm, domain, mini

SEED = 0
PICTURED = {0, 5, 9, 14, 17}
TOYS = domain("toys", 23, images=lambda item: item in PICTURED)
STEPS: dict[str, Any] = {
    "epochs": 1,
    "batch": 7,
    "quantizer_warmup": 1,
    "revive_every": 2,
    "learning_rate": 1.0,
}
"""21 items in 3 steps: one of warm-up, k-means, then a restart of codes. 7 items are shares of 4 and 3."""
CASES = ("frozen", "mini", "images", "bare")


def settings_of(which: str, folder: Path) -> dict[str, Any]:
    if which == "mini":
        return mini(folder, **STEPS)
    if which == "bare":  # neither positives nor W
        return {**FROZEN, **STEPS, "alignment_weight": 0, "cooccurrence_weight": 0, "projected": False}
    return {**FROZEN, **STEPS}


def trained(which: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The curves, and the weights after three steps."""
    network, material = build(settings_of(which, folder), TOYS, images=which == "images", seed=SEED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utgrec_training, "adam", sgd)
        facts = train_utgrec(network, material, seed=SEED, device="cpu", partial=None, name=which)
    return facts, {name: value.numpy() for name, value in network.state_dict().items()}


def sgd(network: UTGRecNetwork, *settings: Any, **more: Any) -> torch.optim.Optimizer:
    """In place of AdamW, whose first steps turn gradients that are nothing but rounding into full steps."""
    return torch.optim.SGD(network.parameters(), lr=0.0)


def refusal() -> str:
    """What is said of steps of one item."""
    network, material = build({**FROZEN, **STEPS, "batch": 1}, TOYS)
    try:
        train_utgrec(network, material, seed=SEED, device="cpu", partial=None, name="single items")
    except CatalexError as error:
        return str(error)
    return "nothing"


SCRIPT = """
import importlib.util, json, os, sys
from pathlib import Path
import torch, torch.distributed as dist
from accelerate import PartialState
from catalex.artifacts import write_arrays
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
spec = importlib.util.spec_from_file_location("checked", {here!r})
checked = importlib.util.module_from_spec(spec)
spec.loader.exec_module(checked)
dist.init_process_group("gloo", init_method=f"file://{{folder}}/meet", rank=rank, world_size=2)
assert PartialState(cpu=True).num_processes == 2
found = {{"refusal": checked.refusal()}}
for which in checked.CASES:
    facts, weights = checked.trained(which, folder)
    found[which] = facts
    write_arrays(folder / f"{{which}}.{{rank}}.safetensors", weights)
(folder / f"{{rank}}.json").write_text(json.dumps(found))
dist.destroy_process_group()
os._exit(0)  # taking all modules down again takes seconds
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what two gloo processes left, ``<rank>.json`` and ``<case>.<rank>.safetensors``."""
    folder: Path = calm(tiny_transformer(tmp_path_factory.mktemp("gloo")))
    script = folder / "script.py"
    script.write_text(SCRIPT.format(here=__file__, tests=str(Path(__file__).parents[2])))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    # accelerate asks for an address, though they meet in a file
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    started = []
    for rank in range(2):
        with (folder / f"{rank}.err").open("w") as errors:
            started.append(
                subprocess.Popen(
                    [sys.executable, str(script), str(folder), str(rank)],
                    env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stderr=errors,
                )
            )
    try:
        codes = [process.wait(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert codes == [0, 0], "".join((folder / f"{rank}.err").read_text()[-3000:] for rank in range(2))
    return folder


def test_batches_are_met_in_which_one_share_has_no_image() -> None:
    """So that the case "images" shows what it is meant to."""
    plan = _Plan(np.arange(21), 7, 1, SEED)
    shares = [
        [len(PICTURED & set(plan.batch(step)[rank::2].tolist())) for rank in (0, 1)] for step in range(3)
    ]
    assert any(0 in share and sum(share) for share in shares), shares


@pytest.mark.parametrize("which", CASES)
def test_losses_and_weights_are_those_of_one_process(which: str, two: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected, weights = trained(which, two)
    torch.set_num_threads(threads)
    found = [json.loads((two / f"{rank}.json").read_text())[which] for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0]["steps"] == expected["steps"] >= 3
    assert found[0].keys() == expected.keys()
    for name in Losses._fields:
        assert found[0][name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name
    assert found[0]["utilisation"] == expected["utilisation"]
    assert expected["utilisation"]
    assert (expected["image"][0] > 0) == (which == "images")
    assert (expected["alignment"][0] > 0) == (which != "bare")
    start = build(settings_of(which, two), TOYS, images=which == "images", seed=SEED)[0].state_dict()
    moved = {name for name, value in start.items() if np.abs(weights[name] - value.numpy()).max() > 1e-3}
    assert len(moved) > len(start) / 2
    ranks = [read_arrays(two / f"{which}.{rank}.safetensors") for rank in (0, 1)]
    for name, value in weights.items():
        np.testing.assert_array_equal(ranks[0][name], ranks[1][name], err_msg=name)
        np.testing.assert_allclose(ranks[0][name], value, atol=1e-5, err_msg=name)


def test_a_step_that_leaves_a_process_without_items_is_refused(two: Path) -> None:
    for rank in (0, 1):
        said = json.loads((two / f"{rank}.json").read_text())["refusal"]
        assert "a step has fewer items than there are processes (found 1; allowed: at least 2)" in said
        assert "Raise tokenizer.batch" in said
    assert refusal() == "nothing"  # one process can
