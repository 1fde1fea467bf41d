"""Conversions by workers of Ray: the same bytes for any number of them, workers that are killed, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir
from pathlib import Path
from typing import Any

import pytest
import torch

import moeify
from cli.command_line import environment, process
from cli.test_resume import contents
from cli.tiny_models import batches, deep_stack, example
from moeify.errors import ConversionError
from moeify.export.folder import package_versions
from moeify.frontend.load_model import load_model
from moeify.ir.model_graph import ModelGraph
from moeify.pipeline.each_layer import EachLayer
from moeify.pipeline.pipeline import Pipeline
from moeify.splice.eager_host import EagerHost
from moeify.workers.model_source import ModelSource, graph_digest
from moeify.workers.ray_workers import RayWorkers
from moeify.workers.session import ray_session
from moeify_passes import Calibrate, ClusterNeurons, FindFeedForward, InsertRouter, NormRegression, SplitExperts
from workers.mortal import Fail, Wait

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

FACTORY = "cli.tiny_models:deep_stack"
#: The model is to be filled in, and then the output.
D2DMOE = (
    f"convert {{}} -o {{{{}}}} --factory {FACTORY} --example cli.tiny_models:example --recipe d2dmoe --experts 4"
    " --calibrate cli.tiny_models:batches"
)
DENSE = {"each-layer.prefix": "dense"}
#: Recipes that ask for the prefix's inputs, for effects on the output, for gradients, and for weights alone.
RECIPES: dict[str, dict[str, Any]] = {
    "best": {"recipe": "best", "active": 0.5, "settings": DENSE | {"cluster-neurons.experts": 8}, "tokens": 100},
    "llama-moe": {"recipe": "llama-moe", "experts": 4, "top_k": 2, "tokens": 100},
    "emoe": {"recipe": "emoe", "experts": 4, "top_k": 2, "calibrate": None},
    "d2dmoe": {"recipe": "d2dmoe", "experts": 4, "calibrate": ["cli.tiny_models:batches", "cli.tiny_models:batches"]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "deep.pt"
    torch.save(deep_stack().state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def converted(model: Path, output: Path, recipe: str, **options: Any) -> dict[str, bytes]:
    given = {"calibrate": "cli.tiny_models:batches", "factory": FACTORY, "example": "cli.tiny_models:example"}
    moeify.convert(model, output, **(given | RECIPES[recipe] | options))
    return contents(output)


def ray_processes(place: Path) -> dict[int, str]:
    """Number -> command line of the processes of Ray that were started in that folder, where they stay: others of the machine
    are none of ours."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            started = (folder / "cwd").readlink()
        except OSError:
            continue
        if started == place and ("moeify-ray-" in line or line.startswith("ray::")):
            found[int(folder.name)] = line
    return found


def test_any_number_of_workers_gives_the_bytes_of_one_process(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = {recipe: converted(model, tmp_path / recipe, recipe) for recipe in RECIPES}
    default, term = Path(tempfile.gettempdir(), "ray").exists(), signal.getsignal(signal.SIGTERM)
    own = tempfile.mkdtemp(prefix="r")  # paths of sockets are short
    monkeypatch.setattr(tempfile, "tempdir", own)
    for workers in (1, 2, 3):
        with ray_session(workers, None):  # is used by all of them
            for recipe, expected in alone.items():
                assert converted(model, tmp_path / f"{recipe}-{workers}", recipe, workers=workers) == expected
    monkeypatch.undo()
    os.rmdir(own)  # nothing is left in it
    assert Path(tempfile.gettempdir(), "ray").exists() == default
    assert signal.getsignal(signal.SIGTERM) is term


def test_the_command_says_nothing_of_ray_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    line = D2DMOE.format(model) + " --json --quiet"
    home = set(os.listdir(Path.home()))
    one, two = (process(line.format(name) + more, tmp_path) for name, more in (("one", ""), ("two", " --workers 2")))
    assert (one.code, two.code, one.err, two.err) == (0, 0, "", "")
    assert two.data | {"folder": ""} == one.data | {"folder": ""}
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert not ray_processes(tmp_path)
    assert ".ray" not in set(os.listdir(Path.home())) - home


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def workers(model: Path, place: Path) -> Iterator[RayWorkers]:
    """Two of them, started in the folder `place`, for as long as tests use them."""
    host = EagerHost(load_model(model, factory=FACTORY, example=example()))
    source = ModelSource(
        model, FACTORY, example(), torch.float32, False, host.loaded.source, graph_digest(host.traced), package_versions()
    )
    with ExitStack() as stack:
        with chdir(place):
            stack.enter_context(ray_session(2, None))
        yield RayWorkers(source)


def run(inner: tuple[Any, ...], model: Path, workers: RayWorkers | None, data: Any = None) -> dict[str, torch.Tensor]:
    host = EagerHost(load_model(model, factory=FACTORY, example=example()))
    steps = (
        Calibrate(tokens=100), *inner, ClusterNeurons(experts=4), SplitExperts(), InsertRouter(top_k=2, by=NormRegression())
    )  # fmt: skip
    pipeline = Pipeline((FindFeedForward(), EachLayer(steps, prefix="dense")))
    pipeline.run(ModelGraph(host), list(batches()) if data is None else data, workers=workers)
    values: dict[str, torch.Tensor] = host.model.state_dict()
    return values


def killing(folder: Path, times: int) -> Callable[[], list[int]]:
    """Kills the processes that Wait names, one after another, in a thread; gives their numbers when all are dead."""
    killed: list[int] = []

    def kill() -> None:
        for number in range(times):
            while not (begun := folder / f"{number}.begun").exists():
                time.sleep(0.05)
            killed.append(int(begun.read_text()))
            os.kill(killed[-1], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()

    def end() -> list[int]:
        thread.join(10)
        return killed

    return end


def test_what_a_killed_worker_did_is_done_again(model: Path, workers: RayWorkers, tmp_path: Path) -> None:
    expected = run((Wait(str(tmp_path), 0),), model, None)
    end = killing(tmp_path, 2)
    found = run((Wait(str(tmp_path), 2),), model, workers)
    assert len(set(end())) == 2, "two workers died in the midst of a layer"
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_workers_that_walk_may_die_too(model: Path, workers: RayWorkers, place: Path) -> None:
    """All of them, as soon as they work."""
    expected = run((), model, None)
    killed, done = list[int](), threading.Event()

    def kill() -> None:
        while not done.is_set() and len(killed) < 3:
            for number, line in ray_processes(place).items():
                if line.startswith("ray::advance"):
                    os.kill(number, signal.SIGKILL)
                    killed.append(number)
            time.sleep(0.02)

    thread = threading.Thread(target=kill, daemon=True)
    for number, line in ray_processes(
        place
    ).items():  # new ones have to read the model first, and are in the midst of it for long
        if line.startswith("ray::IDLE"):
            os.kill(number, signal.SIGKILL)
    thread.start()
    found = run((), model, workers)
    done.set()
    thread.join(10)
    assert killed
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_an_error_in_a_worker_is_one_line(model: Path, workers: RayWorkers) -> None:
    with pytest.raises(ConversionError) as error:
        run((Fail(),), model, workers)
    assert str(error.value) == "pass fail failed after calibrate: ZeroDivisionError: division by zero"
    with pytest.raises(ConversionError) as error:
        run((), model, workers, [(torch.full((3, 8), torch.nan),)])
    assert str(error.value) == "0: an input on the calibration data is not finite; check the model's weights"


def test_what_kills_every_worker_is_given_up(model: Path, workers: RayWorkers, tmp_path: Path) -> None:
    killing(tmp_path, 6)
    with pytest.raises(ConversionError, match="a task was given up after 5 more tries, as its worker died each time"):
        run((Wait(str(tmp_path), 6),), model, workers)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_listens_beyond_this_machine(workers: RayWorkers, place: Path) -> None:
    inodes = set()
    for number in ray_processes(place):
        for handle in Path(f"/proc/{number}/fd").glob("*"):
            try:
                inodes.add(os.readlink(handle))
            except OSError:
                continue
    hosts = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:  # it listens
                hosts.add(fields[1].split(":")[0])
    loopback = socket.inet_pton(socket.AF_INET, "127.0.0.1")[::-1].hex().upper()
    assert hosts
    assert {host[-8:] for host in hosts} == {loopback} or hosts <= {loopback, "00000000000000000000000001000000"}


#: Nothing of the cluster is seen from outside.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
#: How those who may use the cluster are known.
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[int, int]]:
    """A cluster of one machine that runs by itself: its port, and that of Ray's client."""
    ports = _free_port(), _free_port()
    calm = environment(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0", **LOOPBACK, **AUTH)
    with tempfile.TemporaryDirectory(prefix="moeify-ray-", ignore_cleanup_errors=True) as folder:
        line = (
            f"start --head --block --num-cpus 2 --port {ports[0]} --ray-client-server-port {ports[1]} --temp-dir {folder}"
            " --include-dashboard=false"
        )
        command = [str(Path(sys.executable).parent / "ray"), *line.split()]
        with subprocess.Popen(command, env=calm, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as head:
            try:
                _wait_for(ports)
                _warm(ports[1], calm)
                yield ports
            finally:
                head.terminate()
                head.wait(60)


def _warm(port: int, calm: dict[str, str]) -> None:
    """Ray gives the server of a client 30 seconds to start, which reading a package just installed may take."""
    connect = [sys.executable, "-c", f"import ray; ray.init('ray://127.0.0.1:{port}'); ray.shutdown()"]
    for _ in range(3):
        if subprocess.run(connect, env=calm, capture_output=True, check=False).returncode == 0:
            return


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _wait_for(ports: tuple[int, ...]) -> None:
    for port in ports:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)


@pytest.mark.parametrize("address", ["127.0.0.1:{0}", "ray://127.0.0.1:{1}"])
def test_a_cluster_gives_the_same_bytes(
    address: str, cluster: tuple[int, int], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (LOOPBACK | AUTH).items():
        monkeypatch.setenv(name, value)
    line = D2DMOE.format(model)
    assert process(line.format("one"), tmp_path).code == 0
    done = process(f"{line.format('two')} --cluster {address.format(*cluster)}", tmp_path)
    assert done.code == 0, done.err
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
