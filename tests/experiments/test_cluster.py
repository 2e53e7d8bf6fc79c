"""Stages on a Ray cluster of two nodes on this machine: what is lost goes on, what fails does not."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock
from tests.experiments import tiny
from tests.experiments.toys import Shared, Toy, ran, wait_for

from inoculate import cli
from inoculate.core.errors import InputError
from inoculate.core.hardware import parse_hardware
from inoculate.experiments import cluster, session
from inoculate.experiments.cluster import Cluster, check_on
from inoculate.experiments.cluster_needs import Needs
from inoculate.experiments.plan import plan
from inoculate.experiments.recipe import load_recipe
from inoculate.experiments.runner import in_order, run_stages
from inoculate.experiments.stage import Context
from inoculate.experiments.store import Store

MIB = 2**20
LONG = {"align.training.max_steps": 240}


def node(**resources):
    return {"Resources": resources}


@pytest.mark.parametrize("on", ["rai", "ray:", "ray://", "ray://head", "http://head:8265", "ray://a b:1"])
def test_a_place_that_is_none(tmp_path, capsys, on):
    with pytest.raises(SystemExit) as end:
        cli.main(["run", str(tiny.write(tmp_path)), "--store", str(tmp_path / "store"), "--on", on])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"inoculate: --on: no place to run stages (found '{on}', expected ray (the cluster of")
    assert not (tmp_path / "store").exists()


def test_without_the_extra(monkeypatch):
    monkeypatch.setattr(cluster, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"Ray is not installed .*pip install 'inoculate\[cluster\]'"):
        check_on("ray")


def test_a_device_that_no_node_has():
    check_on("ray", "cuda")
    with pytest.raises(InputError, match=r"--device: no device of a node \(found 'cuda:1'"):
        check_on("ray", "cuda:1")


@pytest.mark.parametrize(
    ("on", "field", "found"),
    [("ray://127.0.0.1:9", "--on", "ray://127.0.0.1:9"), ("ray", "RAY_ADDRESS", "127.0.0.1:9")],
)
def test_an_address_where_nobody_answers(tmp_path, capsys, monkeypatch, on, field, found):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(SystemExit) as end:
        cli.main(["run", str(tiny.write(tmp_path)), "--store", str(tmp_path / "store"), "--on", on])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"inoculate: {field}: no cluster answers there: ")
    assert f"(found '{found}', expected the address of a running cluster" in line


NODES = [node(CPU=8.0, memory=64e9), node(CPU=6.0, memory=32e9), node(memory=1e9)]
GPUS = [node(CPU=2.0), node(CPU=16.0, GPU=4.0, memory=64e9), node(CPU=12.0, GPU=2.0, memory=64e9)]


@pytest.mark.parametrize(
    ("device", "nodes", "workers", "cpus", "gpus", "slots"),
    [
        ("cpu", NODES, None, 1, 0, 14),
        ("auto", NODES, 2, 6, 0, 2),  # a half of all would fit one node alone
        ("cpu", NODES, 100, 1, 0, 14),
        ("auto", GPUS, None, 4, 1, 6),
        ("cuda", GPUS, 3, 4, 1, 6),
        ("cpu", GPUS, None, 1, 0, 30),
    ],
)
def test_what_a_stage_asks_for(device, nodes, workers, cpus, gpus, slots):
    needs = Needs(device, nodes, workers)
    assert (needs.of(Toy(name="any")), needs.slots(nodes)) == ({"num_cpus": cpus, "num_gpus": gpus}, slots)


@pytest.mark.parametrize(("device", "nodes"), [("cuda", NODES), ("cpu", NODES[2:]), ("auto", [])])
def test_no_node_can_take_a_stage(device, nodes):
    with pytest.raises(InputError, match="no node can take a stage"):
        Needs(device, nodes, None)


def test_memory_is_the_plan_s(tmp_path):
    """On processors the peak, beside a GiB for the process; under a GPU the weights alone pass through main memory."""
    recipe = load_recipe(str(tiny.write(tmp_path)))
    stages = {f"align {stage.defense.name}": stage for stage in in_order(recipe.stages()) if stage.kind == "align"}
    rows = plan(recipe, parse_hardware("H100-80G"), None, 0.4).rows
    planned = {f"{row.kind} {row.title}".strip(): row.cost for row in rows}
    needs, of_gpu = Needs("cpu", NODES, None), Needs("cuda", GPUS, None)
    for name in ("align sft", "align booster"):
        assert needs.of(stages[name])["memory"] == 2**30 + planned[name].peak_bytes
        assert of_gpu.of(stages[name])["memory"] == 2**30 + planned[name].weights_bytes
    assert planned["align booster"].peak_bytes > planned["align sft"].peak_bytes > planned["align sft"].weights_bytes
    assert Needs("cpu", [node(CPU=1.0, memory=5e8)], None).of(stages["align sft"])["memory"] == 5e8


@pytest.fixture(scope="module")
def two_nodes():
    """A head and a node of one processor each, bound to loopback."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # else workers starve beside other tests
        from ray._private import ray_constants
        from ray.cluster_utils import Cluster as Machines

        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        small = {"num_cpus": 1, "object_store_memory": 80 * MIB}
        head = {**small, "include_dashboard": False, "ray_client_server_port": port}
        machines = Machines(initialize_head=True, head_node_args=head)
        machines.other = machines.add_node(**small)
        machines.client = f"ray://127.0.0.1:{port}"
        patch.setenv("RAY_ADDRESS", machines.address)
        yield machines
        machines.shutdown()


def run(tmp_path, stages, on="ray"):
    store, context = Store(tmp_path / "store"), Context(recipe="r", device="cpu")
    with Cluster(on, store, context, None) as crew:
        return run_stages(stages, store, context, crew=crew)


def locked(store: Path) -> list[str]:
    return [file.name for file in store.glob(".*.lock") if not _free(file)]


def _free(file: Path) -> bool:
    with FileLock(file, timeout=10.0):
        return True


def test_a_failure_is_not_retried_and_a_lost_process_is(two_nodes, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "RETRIES", 1)
    broken, refused, dies = (Toy(name=does, does=does) for does in ("raise", "refuse", "die"))
    good, on_broken = Toy(name="good"), Toy(name="on broken", above=(broken,))
    found = run(tmp_path, [broken, refused, dies, on_broken, good])
    assert found.failed[broken.folder] == "toy raise: RuntimeError: something broke"
    assert found.failed[refused.folder].startswith("toy refuse: toy.name: not good (found 'refuse', expected another)")
    assert found.refused == {refused.folder}
    assert found.failed[dies.folder].startswith("toy die: its node or process was lost 2 times: ")
    assert (tmp_path / "store" / f"{dies.folder}.failed" / "records.jsonl").exists()
    assert [stage.name for stage in found.skipped] == ["on broken"]
    assert [stage.name for stage in found.done] == ["good"] and found.computed == 1
    assert sorted(ran(tmp_path)) == ["die", "die", "good", "raise", "refuse"]
    assert not list((tmp_path / "store").glob(".cluster-*"))


@pytest.mark.slow
def test_from_a_machine_outside_the_cluster(two_nodes, tmp_path):
    """By Ray's client, whose server takes long to start on a busy machine."""
    broken, good = Toy(name="broken", does="raise"), Toy(name="good")
    found = run(tmp_path, [broken, good], on=two_nodes.client)
    assert found.failed == {broken.folder: "toy broken: RuntimeError: something broke"}
    assert (found.computed, sorted(ran(tmp_path))) == (1, ["broken", "good"])


def test_work_that_can_be_shared_out_is_on_both_nodes(two_nodes, tmp_path):
    found = run(tmp_path, [Shared(name="shared")])
    assert (found.computed, found.failed, ran(tmp_path)) == (1, {}, ["shared"])


def test_a_store_that_no_node_sees(two_nodes, tmp_path, monkeypatch):
    """A path that means another folder in every process."""
    monkeypatch.chdir(tmp_path)
    found = r"--store: the store is not visible on \S+, \S+ \(found '/proc/self/cwd/store', expected a folder on a file"
    store, context = Store(Path("/proc/self/cwd/store")), Context()
    with pytest.raises(InputError, match=found), Cluster("ray", store, context, None):
        pass
    assert not list((tmp_path / "store").iterdir())


def test_ctrl_c_cancels_the_tasks(two_nodes, tmp_path):
    stage = Toy(name="held", does="hold")
    half = tmp_path / "store" / f"{stage.folder}.partial" / "half.txt"

    def strike():
        wait_for(half)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=strike)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, [stage])
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert not locked(tmp_path / "store")
    assert tiny.names(tmp_path / "store") == {half.parent.name}, "neither failed nor done, and no mark left"


def test_a_node_is_lost_and_the_records_are_those_of_a_quiet_run(two_nodes, tmp_path, monkeypatch):
    """Both alignments run, one on each node, when the second is killed: one goes on from its checkpoint."""
    recipe, store = tiny.write(tmp_path, LONG), tmp_path / "store"
    assert tiny.run(recipe, tmp_path / "quiet")[0] == 0
    monkeypatch.setattr(session, "Context", partial(Context, save_every_s=0.2))
    steps: dict[str, list[int]] = {}
    lost = threading.Event()

    def look() -> dict[str, list[int]]:
        """The steps that each alignment was seen at."""
        for file in store.glob("align-*.partial/progress"):
            try:
                steps.setdefault(file.parent.name, []).append(int(file.read_text().split()[0]))
            except (OSError, ValueError, IndexError):
                continue
        return steps

    def strike():
        deadline = time.monotonic() + 300.0
        while len(list(store.glob("align-*.partial/checkpoint*"))) < 2:
            look()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        two_nodes.remove_node(two_nodes.other, allow_graceful=False)
        lost.set()
        while len(list(store.glob("finetune-*"))) < 2 and time.monotonic() < deadline:
            look()
            time.sleep(0.005)

    thread = threading.Thread(target=strike)
    thread.start()
    code, said = tiny.run(recipe, store, on="ray", workers=None)
    thread.join()
    assert lost.is_set(), "the alignments ended before a node was lost"
    assert code == 0 and said.startswith("7 stages done, 7 of them computed now"), said
    assert tiny.records(store) == tiny.records(tmp_path / "quiet")
    assert len(steps) == 2 and all(seen == sorted(seen) for seen in steps.values()), "none began anew"
    assert tiny.names(store) == tiny.names(tmp_path / "quiet")
