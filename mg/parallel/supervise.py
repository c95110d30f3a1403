"""Start a training again after crashes, hangs and the end of its time, as long as it gets on."""

import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mg.config.supervise import SuperviseConfig
from mg.errors import EXIT_RESTART, NoGoodClip, NumericalAbort, UserError
from mg.log import get_logger

FINAL = (0, UserError.exit_code, NumericalAbort.exit_code, NoGoodClip.exit_code)
"""Exit codes after which the same command would end the same way: complete, a mistake, NaN, bad videos."""
MOST_SECONDS = 600.0
"""No pause is longer."""
_LOOK_SECONDS = 0.1
"""Between two looks for signals. Nothing waits longer at a stretch: a signal that comes just before the process goes to
sleep does not wake it."""
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
        self._came: list[int] = []
        """Signals to this process, all of them."""

    def run(self) -> int:
        before = {number: signal.signal(number, lambda number, frame: self._came.append(number)) for number in _SIGNALS}
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
            if code in FINAL or self._came:
                return code
            failures = 0 if reached > step else failures + 1
            said = f"exit code {code}, newest checkpoint of step {reached}" if reached >= 0 else f"exit code {code}"
            if failures >= self._config.max_failures:
                get_logger().error(f"{said}: {failures} ends in a row without a new checkpoint; giving up")
                return code
            pause = self._pause(code, failures)
            get_logger().warning(f"{said}: started again in {pause:g} s")
            end = time.monotonic() + pause
            while (left := end - time.monotonic()) > 0 and not self._came:
                time.sleep(min(left, _LOOK_SECONDS))
            if self._came:
                return code

    def _pause(self, code: int, failures: int) -> float:
        if code == EXIT_RESTART and not failures:
            return 0.0
        return min(MOST_SECONDS, self._config.pause_seconds * 2.0 ** max(failures - 1, 0))

    def _once(self) -> int:
        try:
            # In a session of its own: Ctrl-C in a terminal comes through `_came`, once.
            process = subprocess.Popen(self._command, start_new_session=True)
        except OSError as error:
            raise UserError(f"{self._command[0]}: cannot be started ({error.strerror}); check the command") from error
        passed_on = 0
        while (code := process.poll()) is None:
            for number in self._came[passed_on:]:
                process.send_signal(number)
                passed_on += 1
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_SECONDS)
        return 128 - code if code < 0 else code


def _output_path(command: Sequence[str]) -> str:
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if word.startswith("--output_path"):
            value = word.partition("=")[2] or following
            if value:
                return value
    raise UserError("run_folder is missing, and the command has no --output_path; name the training's output folder")
