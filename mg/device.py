"""The device: which backend runs, in which mode, with which floating types; nothing else asks what device this is.

Importing this module sets environment variables (those the user has not set) and does not import MindSpore.
"""

import functools
import importlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mg.errors import UserError
from mg.log import get_logger

if TYPE_CHECKING:
    import mindspore

TARGETS = ("Ascend", "GPU", "CPU")
"""Backends, in the order in which `auto` tries them."""
MODES = ("graph", "pynative")
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

# MindSpore reads these when it loads or when its first kernel runs, so they are set here rather than in `setup`, which
# a user of the library may never call.
_ENVIRONMENT = {
    # On AVX-512 processors the CPU convolutions of MindSpore 2.9 and 2.10 fall to a reference kernel, about 100 times
    # slower; with the instruction set capped at AVX2 they do not.
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    # MindSpore's debris of failed compilations (rank_0/om) belongs in a temporary folder, not in the working directory.
    "MS_OM_PATH": str(Path(tempfile.gettempdir()) / f"mg-mindspore-{os.getuid()}"),
    # Errors only: the warnings are MindSpore's own business.
    "GLOG_v": "3",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)


@dataclass(frozen=True)
class Device:
    """The backend chosen: `target` is "Ascend", "GPU" or "CPU", `mode` "graph" or "pynative", `reason` says why."""

    target: str
    mode: str
    reason: str

    def compute_dtype(self, name: str) -> "mindspore.Type":
        """Return the MindSpore type that "fp32", "fp16" or "bf16" stands for here; see `compute_dtype`."""
        return _dtype(self.target, name)


def setup(device: str = "auto", mode: str = "graph", device_id: int = 0) -> Device:
    """Choose the backend and the mode; one log line says what was chosen and why.

    It may be called again, to change the mode for instance; the backend of a process cannot change.

    Args:
        device: "auto" (Ascend, then GPU, then CPU), "Ascend", "GPU" or "CPU", in any case of letters.
        mode: "graph" compiles whole networks; "pynative" runs op by op, for debugging.
        device_id: number of the card; 0 is the first one, or under `msrun` the one assigned to the process.

    Raises:
        UserError: unknown or unavailable device, no such card, unknown mode, MindSpore missing, or numpy 2.
    """
    if mode not in MODES:
        raise UserError(f"mode={mode}: choose graph or pynative")
    wanted = {target.lower(): target for target in ("auto", *TARGETS)}.get(device.lower())
    if wanted is None:
        raise UserError(f"device={device}: choose auto, Ascend, GPU or CPU")
    ms = _mindspore()
    target, reason = _choose(wanted, device_id)
    _set_device(ms, target, device_id)
    ms.set_context(mode=ms.GRAPH_MODE if mode == "graph" else ms.PYNATIVE_MODE)
    # A loop in a graph is a call per turn; those over all parameters of a network pass the usual limit of 1,000.
    ms.set_recursion_limit(10_000)
    if mode == "pynative":
        # Without it PyNative is 10 times slower on CPU, and an op's failure surfaces in a later op.
        ms.runtime.launch_blocking()
    if os.environ.get("MS_COMPILER_CACHE_ENABLE", "0") != "0":
        _warn_once("MS_COMPILER_CACHE_ENABLE is set: compiled graphs may be stale and give wrong results; unset it")
    _say_once(f"running on {target} ({reason}), {mode} mode")
    return Device(target, mode, reason)


def facts() -> dict[str, str]:
    """Return for the records what this process computes with: `mindspore` (version), `device` and `mode`."""
    ms = _mindspore()
    mode = "graph" if ms.get_context("mode") == ms.GRAPH_MODE else "pynative"
    return {"mindspore": ms.__version__, "device": _target(), "mode": mode}


def is_ascend() -> bool:
    """Tell whether this process runs on Ascend, where the fused kernels are."""
    return _target() == "Ascend"


def is_cpu() -> bool:
    """Tell whether this process runs on the CPU, whose kernels are of very different quality."""
    return _target() == "CPU"


def compute_dtype(name: str) -> "mindspore.Type":
    """Return the MindSpore type for "fp32", "fp16" or "bf16" on this process' backend.

    BF16 has kernels on Ascend only; elsewhere it is float32, and a log line says so once.

    Raises:
        UserError: another name.
    """
    return _dtype(_target(), name)


def _dtype(target: str, name: str) -> "mindspore.Type":
    if name not in _DTYPES:
        raise UserError(f"dtype={name}: choose fp32, fp16 or bf16")
    if name == "bf16" and target != "Ascend":
        _say_once(f"{target} has no bf16 kernels: computing in fp32")
        name = "fp32"
    return getattr(_mindspore(), _DTYPES[name])


def _target() -> str:
    return _mindspore().get_context("device_target")


@functools.cache
def _mindspore() -> Any:
    """Import MindSpore, once its surroundings are known to suit it."""
    if int(np.__version__.split(".")[0]) >= 2:
        raise UserError(f"numpy {np.__version__}: MindSpore needs numpy 1; run: pip install 'numpy<2'")
    try:
        ms = importlib.import_module("mindspore")
    except ModuleNotFoundError as error:
        if error.name != "mindspore":
            raise
        raise UserError("MindSpore is not installed; for a CPU run: pip install 'mindspore==2.10.*'") from error
    if ms.__version__.split(".")[:2] != ["2", "10"]:
        get_logger().warning("MindSpore %s: this project is tested with 2.10 only", ms.__version__)
    return ms


def _count(target: str) -> int:
    """Return how many cards of a backend this process can use."""
    if target == "CPU":
        return 1
    backend = getattr(_mindspore().device_context, target.lower())
    try:
        return backend.device_count() if backend.is_available() else 0
    except RuntimeError:  # the libraries are there, the driver or the card is not
        return 0


def _choose(wanted: str, device_id: int) -> tuple[str, str]:
    """Return the backend and the reason."""
    if wanted == "auto":
        target = next(target for target in TARGETS if _count(target))
        absent = TARGETS[: TARGETS.index(target)]
        reason = "auto: " + (", ".join(f"no {name}" for name in absent) or "the first choice is there")
    elif _count(wanted):
        target, reason = wanted, "as asked"
    else:
        raise UserError(f"device={wanted}: no {wanted} that this MindSpore can use; use device=auto or device=CPU")
    count = _count(target)
    if not 0 <= device_id < count:
        raise UserError(f"device_id={device_id}: {target} has {count} device(s) here; choose 0 to {count - 1}")
    return target, reason


def _set_device(ms: Any, target: str, device_id: int) -> None:
    try:
        # No number lets msrun assign one.
        ms.set_device(target, device_id or None)
    except RuntimeError as error:
        # MindSpore refuses once a kernel has run, also where nothing would change.
        current = ms.get_current_device()
        if current.device_target != target:
            raise UserError(
                f"device={target}: it cannot be set ({str(error).splitlines()[0]}); choose {current.device_target}, "
                "or call setup before the first computation"
            ) from error
        if device_id and current.device_id != device_id:
            raise UserError(
                f"device_id={device_id}: this process already uses number {current.device_id}; start a new one"
            ) from error


@functools.cache
def _say_once(message: str) -> None:
    get_logger().info(message)


@functools.cache
def _warn_once(message: str) -> None:
    get_logger().warning(message)
