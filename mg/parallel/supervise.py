"""Start a training again after crashes, hangs and the end of its time, as long as it gets on."""

import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from mg.config.supervise import SuperviseConfig
from mg.errors import EXIT_RESTART, NoGoodClip, NumericalAbort, UserError
from mg.log import get_logger

FINAL = (0, UserError.exit_code, NumericalAbort.exit_code, NoGoodClip.exit_code)
"""Exit codes after which the same command would end the same way: complete, a mistake, NaN, bad videos."""
MOST_SECONDS = 600.0
"""No pause is longer."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def supervise(config: SuperviseConfig, command: Sequence[str]) -> int:
    """Run a command until it ends for good; return its last exit code, 128 + n after signal n.

    A signal to this process is passed on, and the end that follows is the last one.

    Raises:
        UserError: no command, or it cannot be started, or it does not say where its checkpoints are.
    """
    if not command:
        raise UserError("there is no command to run; give it after the options: scripts/train.py --config ...")
    return _Supervisor(config, command).run()


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint that was committed in a run's folder, -1 without any."""
    names = [path.parent.name.removeprefix("step-") for path in folder.glob("step-*/manifest.json")]
    return max((int(name) for name in names if name.isdigit()), default=-1)


class _Supervisor:
    def __init__(self, config: SuperviseConfig, command: Sequence[str]) -> None:
        self._config, self._command = config, list(command)
        self._folder = Path(config.run_folder or _output_path(command))
        self._process: subprocess.Popen | None = None
        self._told = threading.Event()

    def run(self) -> int:
        before = {number: signal.signal(number, self._pass_on) for number in _SIGNALS}
        try:
            return self._run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self) -> int:
        failures = 0
        while True:
            step = newest_step(self._folder)
            code = self._once()
            reached = newest_step(self._folder)
            if code in FINAL or self._told.is_set():
                return code
            failures = 0 if reached > step else failures + 1
            said = f"exit code {code}, newest checkpoint of step {reached}" if reached >= 0 else f"exit code {code}"
            if failures >= self._config.max_failures:
                get_logger().error(f"{said}: {failures} ends in a row without a new checkpoint; giving up")
                return code
            pause = self._pause(code, failures)
            get_logger().warning(f"{said}: started again in {pause:g} s")
            if self._told.wait(pause):
                return code

    def _pause(self, code: int, failures: int) -> float:
        if code == EXIT_RESTART and not failures:
            return 0.0
        return min(MOST_SECONDS, self._config.pause_seconds * 2.0 ** max(failures - 1, 0))

    def _once(self) -> int:
        try:
            # In a session of its own: Ctrl-C in a terminal comes through `_pass_on`, once.
            self._process = subprocess.Popen(self._command, start_new_session=True)
        except OSError as error:
            raise UserError(f"{self._command[0]}: cannot be started ({error.strerror}); check the command") from error
        if self._told.is_set():  # the signal came before there was anyone to pass it on to
            self._process.terminate()
        code = self._process.wait()
        return 128 - code if code < 0 else code

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._told.set()
        if self._process is not None:
            self._process.send_signal(number)


def _output_path(command: Sequence[str]) -> str:
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word.startswith("--output_path"):
            value = word.partition("=")[2] or following
            if value:
                return value
    raise UserError("run_folder is missing, and the command has no --output_path; name the training's output folder")
