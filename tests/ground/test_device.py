"""The choice of backend, the policy of types, and what is set before MindSpore loads."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from mg import device
from mg.errors import UserError

ENVIRONMENT = ("ONEDNN_MAX_CPU_ISA", "MS_OM_PATH", "GLOG_v")


@pytest.fixture
def lines():
    """Log lines of this test, as if nothing had been said before."""
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(f"{record.levelname} {record.getMessage()}")
    logging.getLogger("mg").addHandler(handler)
    for once in (device._say_once, device._warn_once, device._mindspore):
        once.cache_clear()
    yield seen
    logging.getLogger("mg").removeHandler(handler)
    device._mindspore.cache_clear()


@pytest.fixture
def machine(monkeypatch):
    """Pretend that this many cards are there; returns the list of calls of set_device."""
    calls: list[tuple] = []

    def pretend(**cards: int) -> list[tuple]:
        monkeypatch.setattr(device, "_count", lambda target: {"CPU": 1, **cards}.get(target, 0))
        monkeypatch.setattr(ms, "set_device", lambda target, number=None: calls.append((target, number)))
        return calls

    return pretend


@pytest.mark.parametrize(
    ("cards", "target", "reason"),
    [
        ({"Ascend": 8, "GPU": 1}, "Ascend", "auto: the first choice is there"),
        ({"GPU": 2}, "GPU", "auto: no Ascend"),
        ({}, "CPU", "auto: no Ascend, no GPU"),
    ],
)
def test_auto_takes_the_first_backend_there_is_and_says_why(machine, lines, cards, target, reason):
    calls = machine(**cards)
    chosen = device.setup("auto")
    assert chosen == device.Device(target, "graph", reason)
    assert calls == [(target, None)]
    device.setup("auto")
    assert lines == [f"INFO running on {target} ({reason}), graph mode"]  # once


def test_a_device_is_taken_as_asked_in_any_case_of_letters(machine):
    calls = machine(Ascend=8)
    assert device.setup("ascend", device_id=3).reason == "as asked"
    assert device.setup("Cpu").target == "CPU"
    assert calls == [("Ascend", 3), ("CPU", None)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "npu"}, "device=npu: choose auto, Ascend, GPU or CPU"),
        ({"device": "GPU"}, "device=GPU: no GPU that this MindSpore can use; use device=auto or device=CPU"),
        ({"device": "Ascend", "device_id": 8}, "device_id=8: Ascend has 8 device(s) here; choose 0 to 7"),
        ({"device": "Ascend", "device_id": -1}, "device_id=-1: Ascend has 8 device(s) here; choose 0 to 7"),
        ({"device": "CPU", "mode": "eager"}, "mode=eager: choose graph or pynative"),
    ],
)
def test_mistakes_name_option_value_and_remedy(machine, arguments, message):
    calls = machine(Ascend=8)
    with pytest.raises(UserError) as caught:
        device.setup(**arguments)
    assert str(caught.value) == message
    assert calls == []


def test_the_cards_that_mindspore_reports_are_counted(monkeypatch):
    def no_driver():
        raise RuntimeError("driver")

    backend = ms.device_context.ascend
    monkeypatch.setattr(backend, "is_available", lambda: True)
    monkeypatch.setattr(backend, "device_count", lambda: 4)
    assert device._count("Ascend") == 4
    monkeypatch.setattr(backend, "device_count", no_driver)
    assert device._count("Ascend") == 0
    monkeypatch.setattr(backend, "is_available", lambda: False)
    monkeypatch.setattr(backend, "device_count", lambda: 4)
    assert device._count("Ascend") == 0
    assert device._count("CPU") == 1


def test_the_mode_is_set_and_can_change_after_a_computation():
    assert device.setup("CPU", "pynative").mode == "pynative"
    assert ms.get_context("mode") == ms.PYNATIVE_MODE
    assert (Tensor(np.ones(2, np.float32)) + 1).asnumpy().tolist() == [2, 2]
    device.setup("CPU", "graph")
    assert ms.get_context("mode") == ms.GRAPH_MODE and ms.get_context("device_target") == "CPU"


def test_pynative_waits_for_each_op(monkeypatch):
    calls = []
    monkeypatch.setattr(ms.runtime, "launch_blocking", lambda: calls.append(1))
    device.setup("CPU", "graph")
    assert calls == []
    device.setup("CPU", "pynative")
    assert calls == [1]


def test_the_backend_of_a_process_cannot_change(monkeypatch):
    def refuse(target, number=None):
        raise RuntimeError("The 'mindspore.set_device' can not be modified.\nmore")

    monkeypatch.setattr(device, "_count", lambda target: 8)
    monkeypatch.setattr(ms, "set_device", refuse)
    assert device.setup("CPU").target == "CPU"  # what runs already is no change
    with pytest.raises(UserError, match=r"^device=Ascend: it cannot be set .*; choose CPU, or call setup before .*$"):
        device.setup("Ascend")
    with pytest.raises(UserError, match=r"^device_id=2: this process already uses number 0; start a new one$"):
        device.setup("CPU", device_id=2)


@pytest.mark.parametrize(
    ("target", "types"),
    [
        ("Ascend", (ms.float32, ms.float16, ms.bfloat16)),
        ("GPU", (ms.float32, ms.float16, ms.float32)),
        ("CPU", (ms.float32, ms.float16, ms.float32)),
    ],
)
def test_types_by_backend(monkeypatch, target, types):
    names = ("fp32", "fp16", "bf16")
    chosen = device.Device(target, "graph", "")
    assert tuple(chosen.compute_dtype(name) for name in names) == types
    monkeypatch.setattr(ms, "get_context", lambda key: {"device_target": target}[key])
    assert tuple(device.compute_dtype(name) for name in names) == types
    assert device.is_ascend() == (target == "Ascend")


def test_bf16_on_cpu_is_fp32_and_says_so_once(lines):
    for _ in range(3):
        assert device.compute_dtype("bf16") == ms.float32
    assert lines == ["INFO CPU has no bf16 kernels: computing in fp32"]


def test_an_unknown_type_is_refused():
    with pytest.raises(UserError, match="^dtype=float16: choose fp32, fp16 or bf16$"):
        device.compute_dtype("float16")


def test_versions(monkeypatch, lines):
    monkeypatch.setattr(ms, "__version__", "2.7.1")
    device.setup("CPU")
    assert lines[0] == "WARNING MindSpore 2.7.1: this project is tested with 2.10 only"
    device._mindspore.cache_clear()
    monkeypatch.setattr(device.np, "__version__", "2.1.0")
    with pytest.raises(UserError, match="^numpy 2.1.0: MindSpore needs numpy 1; run: pip install 'numpy<2'$"):
        device.setup("CPU")


def test_no_mindspore_is_one_line(monkeypatch, lines):
    monkeypatch.setitem(sys.modules, "mindspore", None)

    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(device.importlib, "import_module", absent)
    with pytest.raises(UserError, match="^MindSpore is not installed; for a CPU run: pip install "):
        device.setup("CPU")


@pytest.mark.parametrize(("value", "warned"), [("1", True), ("0", False)])
def test_the_compile_cache_is_warned_about(monkeypatch, lines, value, warned):
    monkeypatch.setenv("MS_COMPILER_CACHE_ENABLE", value)
    device.setup("CPU")
    assert any("MS_COMPILER_CACHE_ENABLE is set" in line for line in lines) == warned


def run_python(code: str, folder: Path, root: Path, **environment: str) -> str:
    script = folder.parent / "script.py"  # a file: graph mode reads the source of what it compiles
    script.write_text(code)
    kept = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    environment = {**kept, "PYTHONPATH": str(root), **environment}
    done = subprocess.run([sys.executable, script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_sets_the_environment_and_no_mindspore(tmp_path, root):
    (tmp_path / "here").mkdir()
    code = f"import mg.device, os, sys\nprint('mindspore' in sys.modules, *(os.environ[n] for n in {ENVIRONMENT}))"
    loaded, isa, om_path, log_level = run_python(code, tmp_path / "here", root).split()
    assert (loaded, isa, log_level) == ("False", "AVX2", "3")
    assert Path(om_path).is_absolute() and not Path(om_path).is_relative_to(tmp_path / "here")
    own = {"ONEDNN_MAX_CPU_ISA": "SSE41", "MS_OM_PATH": "/x", "GLOG_v": "1"}
    assert run_python(code, tmp_path / "here", root, **own).split() == ["False", "SSE41", "/x", "1"]


FAILED_GRAPH = """
from mg import device
device.setup("CPU")
import mindspore as ms, numpy as np
class Net(ms.nn.Cell):
    def construct(self, x):
        return ms.mint.matmul(x, x)
try:
    Net()(ms.Tensor(np.ones((2, 3), np.float32)))
except RuntimeError:
    print("failed")
"""


def test_a_failed_compilation_leaves_nothing_in_the_working_directory(tmp_path, root):
    (tmp_path / "here").mkdir()
    out = run_python(FAILED_GRAPH, tmp_path / "here", root, TMPDIR=str(tmp_path))
    assert out == "failed"
    assert list((tmp_path / "here").iterdir()) == []
    assert list(tmp_path.glob("mg-mindspore-*/rank_0"))  # it went there instead
