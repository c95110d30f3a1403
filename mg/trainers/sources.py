"""Where a run begins: its own checkpoints, their remote copies, another run's checkpoint, another run's weights."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mg.config.trainer import TrainerConfig
from mg.errors import UserError
from mg.files import write_bytes
from mg.log import get_logger
from mg.trainers import checkpoint
from mg.trainers.checkpoint import Checkpoint
from mg.trainers.remote import RECORDS, Outcome, RemoteFolder, is_url, logs_in, split_step
from mg.trainers.runlog import STEPWISE
from mg.trainers.stored import StoredTensors

COURSE = ("optimizer", "schedule", "lr_reduce_on_plateau", "spike", "loss_scale")
"""Sections of the trainer's settings that decide where a run goes, beside its fingerprint."""


OPTIONS = ("output_path", "remote", "resume_from")

Check = Callable[[Checkpoint, str], object]
"""Called with a checkpoint and its place; raises UserError where the run cannot go on with it."""


@dataclass(frozen=True)
class Found:
    """A checkpoint to go on with; `option`, one of `OPTIONS`, is where it was found."""

    checkpoint: Checkpoint
    option: str
    place: str


def find(output: Path, config: TrainerConfig, remote: RemoteFolder | None, check: Check) -> Found | None:
    """Return the checkpoint to resume, None for a new run.

    The newest valid one in `output`, or of its remote copies where they are ahead; only without either, resume_from.
    What is not in `output` is copied there from a URL, with the logs; from a path it is read, and the logs are copied.
    Nothing of it is copied that `check` refuses, and the checkpoint itself comes last: whatever breaks off before, the
    next start copies everything again.

    Raises:
        UserError: `check` refuses what is elsewhere; resume_from names nothing whole, or an earlier step of `output`
            itself; the remote folder cannot be reached and there is nothing in `output`.
    """
    own = checkpoint.newest(output)
    if remote is not None:
        with Outcome() as outcome:
            fetched = remote.fetch_newest(output, -1 if own is None else own.step)
        if outcome.error is None and fetched is not None:
            check(fetched, f"{remote.url}/{fetched.folder.stem}")
            with Outcome() as outcome:
                remote.fetch_logs(output)
                best = _fetch_best(remote, fetched, output)
            if outcome.error is None:
                *_, newest = map(checkpoint.adopt, (*best, fetched))
                return Found(newest, "remote", remote.url)
        if outcome.error is not None and own is None:
            raise _unreachable(remote, outcome.error) from outcome.error
        if outcome.error is not None:
            get_logger().warning(f"{remote.url}: cannot be reached ({outcome.error}); going on with what is here")
    if own is not None:
        if config.resume_from is not None:
            _check_not_earlier(output, own, config.resume_from)
        return Found(own, "output_path", str(own.folder))
    if config.resume_from is None:
        return None
    found = _other(config.resume_from, output, check)
    return Found(found, "resume_from", config.resume_from)


@contextmanager
def record_to_read(output: Path, config: TrainerConfig, name: str) -> Iterator[Path]:
    """Yield where to read a record of the run that `find` will go on with; there may be none.

    Nothing is copied to `output`: the data may be opened with it, and then the run may still be refused.

    Raises:
        UserError: it cannot be reached.
    """
    own, place, option = max(checkpoint.committed(output), default=-1), None, "train.remote"
    if config.remote is not None:
        remote = RemoteFolder(config.remote, option)
        with Outcome() as outcome:
            place = remote.url if max(remote.steps(), default=-1) > own else None
        if outcome.error is not None and own < 0:
            raise _unreachable(remote, outcome.error) from outcome.error
    if place is None and own < 0:
        place, option = config.resume_from, "train.resume_from"
    run = str(output) if place is None else split_step(place)[0]
    if not is_url(run):
        yield Path(run) / name
        return
    with tempfile.TemporaryDirectory(prefix="mg-record-") as temporary:
        with Outcome() as outcome:
            RemoteFolder(run, option).fetch_logs(Path(temporary), [name])
        if outcome.error is not None:
            raise UserError(f"{run}/{name}: cannot be read ({outcome.error}); try again later") from outcome.error
        yield Path(temporary) / name


def find_here(output: Path, config: TrainerConfig, step: int, option: str) -> Found | None:
    """Return the checkpoint that `find` found in another process, given its step and where it was found.

    Nothing is written, copied or read through a second time: the files have to be there in their size.
    """
    folder, place = checkpoint.step_folder(output, step), config.resume_from
    if option == "resume_from" and place is not None and not is_url(place):
        run, named = split_step(place)
        folder = checkpoint.step_folder(Path(run), step) if named is None else Path(place)
    found = checkpoint.load(folder, checksums=False)
    return None if found is None else Found(found, option, str(folder))


@contextmanager
def other_run(place: str, option: str) -> Iterator[Checkpoint]:
    """Yield the checkpoint that a path or URL names, of a run (its newest) or of one step, to read weights from.

    Raises:
        UserError: there is none, it is damaged, or the URL cannot be reached.
    """
    if not is_url(place):
        yield open_local(place, option)
        return
    with tempfile.TemporaryDirectory(prefix="mg-init-") as temporary:
        yield _fetched(place, option, Path(temporary))


def changes(saved: Checkpoint, fingerprint: Mapping, config: TrainerConfig) -> list[tuple[str, object, object]]:
    """Return (name, before, now) of everything in which the run that wrote `saved` differs from the present one."""
    before, now = dict(saved.state["fingerprint"]), dict(json.loads(json.dumps(fingerprint)))
    defaults = json.loads(json.dumps(asdict(TrainerConfig(steps=1))))
    present = json.loads(json.dumps(asdict(config)))
    for name in COURSE:  # what earlier versions did not know has been as its default is
        stored = _merged(defaults[name], saved.state.get("config", {}).get(name, {}))
        before["trainer"] = {**before.get("trainer", {}), name: stored}
        now["trainer"] = {**now.get("trainer", {}), name: present[name]}
    return checkpoint.differences(before, now)


def tell_change(name: str, before: object, now: object) -> str:
    """Return one of the changes as a text."""
    return f"{name} was {_short(before)} is {_short(now)}"


def check_changes(saved: Checkpoint, place: str, fingerprint: Mapping, config: TrainerConfig) -> list[str]:
    """Return the changes that train.allow_changes admits, as texts; the message calls the checkpoint `place`.

    Raises:
        UserError: there are others; the message names them all.
    """
    allowed = [name.removeprefix("train.") for name in config.allow_changes]
    refused, admitted = [], []
    for name, before, now in changes(saved, fingerprint, config):
        text = tell_change(name, before, now)
        names = (name, name.removeprefix("trainer."))  # of the trainer's own, also as the options are called
        fits = any(f"{one}.".startswith(f"{prefix}.") for one in names for prefix in allowed)
        (admitted if fits else refused).append(text)
    if refused:
        raise UserError(f"{place}: cannot resume, the run differs: {', '.join(refused)}; choose another output "
                        "folder, or name in train.allow_changes what may differ")
    return admitted


def free_changes(saved: Checkpoint, config: TrainerConfig) -> list[str]:
    """Return as texts what may differ without being named, where the learning rate depends on it from here on."""
    before, schedule = saved.state.get("config", {}), config.schedule
    steps, every = before.get("steps", config.steps), before.get("validate_every", config.validate_every)
    texts = []
    if steps != config.steps and (schedule.name != "constant" or schedule.warmup_ratio):
        text = tell_change("train.steps", steps, config.steps)
        texts.append(f"{text}: the learning rate goes on as the schedule has it for the new number")
    if every != config.validate_every and config.lr_reduce_on_plateau.factor != 1:
        text = tell_change("train.validate_every", every, config.validate_every)
        texts.append(f"{text}: the patience of lr_reduce_on_plateau counts validations, which are now others")
    return texts


def take_weights(
    weights: Mapping[str, object], saved: Checkpoint, *, strict: bool, place: str
) -> tuple[StoredTensors, list[str]]:
    """Return the tensors of a checkpoint that fit parameters by name and shape, averaged ones first, and what does not.

    weights: parameters (anything with a shape) by name.

    Raises:
        UserError: something does not fit and `strict` is set, or nothing fits.
    """
    tensors = saved.tensors("model")
    if saved.has("ema"):
        tensors = saved.tensors("ema").over(tensors)
    shapes = tensors.shapes
    wrong = [f"{name} is missing there" for name in sorted(weights.keys() - shapes.keys())]
    wrong += [f"{name} is not in the network" for name in sorted(shapes.keys() - weights.keys())]
    fitting = []
    for name in sorted(weights.keys() & shapes.keys()):
        if shapes[name] == tuple(weights[name].shape):
            fitting.append(name)
        else:
            wrong.append(f"{name} is {shapes[name]} instead of {tuple(weights[name].shape)}")
    if wrong and (strict or not fitting):
        some = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        remedy = "set train.init_strict false to leave these out" if fitting else "give a run of the same model"
        raise UserError(f"train.init_from={place}: does not fit: {some}; {remedy}")
    return tensors.only(fitting), wrong


def _merged(defaults: object, stored: object) -> object:
    if isinstance(defaults, dict) and isinstance(stored, dict):
        return {**stored, **{name: _merged(value, stored.get(name, value)) for name, value in defaults.items()}}
    return stored


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _other(place: str, output: Path, check: Check) -> Checkpoint:
    names = [*(f"{name}.jsonl" for name in STEPWISE), *RECORDS]
    if is_url(place):
        run, _ = split_step(place)
        found = _fetched(place, "train.resume_from", output)
        check(found, f"{run}/{found.folder.stem}")
        with Outcome() as outcome:
            RemoteFolder(run, "train.resume_from").fetch_logs(output, names)
        if outcome.error is not None:
            raise UserError(f"train.resume_from={place}: its logs cannot be copied ({outcome.error}); try again later"
                            ) from outcome.error
        return checkpoint.adopt(found)
    found = open_local(place, "train.resume_from")
    check(found, str(found.folder))
    for log in logs_in(found.folder.parent, names):
        write_bytes(output / log.relative_to(found.folder.parent), log.read_bytes())
    return found


def open_local(place: str, option: str) -> Checkpoint:
    """Return the checkpoint that a path names, of a run (its newest) or of one step.

    Raises:
        UserError: there is none, or it is damaged; the message names the option.
    """
    run, step = split_step(place)
    if step is None:
        found = checkpoint.newest(Path(run))
        if found is None:
            raise UserError(f"{option}={place}: there is no valid checkpoint; give a run's folder or one of its step-*")
        return found
    why = checkpoint.fault(Path(place), checksums=True)
    if why is not None:
        raise UserError(f"{option}={place}: missing, incomplete or damaged ({why}); give another step of the run")
    return checkpoint.load(Path(place), checksums=False)


def _unreachable(remote: RemoteFolder, error: Exception) -> UserError:
    return UserError(f"train.remote={remote.url}: cannot be reached ({error}), and without it a new run would begin; "
                     "try again later, or leave train.remote out")


def _fetched(place: str, option: str, target: Path) -> Checkpoint:
    run, step = split_step(place)
    remote = RemoteFolder(run, option)
    with Outcome() as outcome:
        found = remote.fetch_newest(target) if step is None else remote.fetch(step, target)
    if outcome.error is not None:
        raise UserError(f"{option}={place}: cannot be read ({outcome.error}); check the URL and your permissions"
                        ) from outcome.error
    if found is None:
        raise UserError(f"{option}={place}: there is no valid checkpoint; give a run's folder or one of its step-*")
    return found


def _fetch_best(remote: RemoteFolder, newest: Checkpoint, output: Path) -> list[Checkpoint]:
    """Fetch the best checkpoints as well, so that they stay in the local folder, too."""
    best = {int(step) for step, _ in newest.state.get("best", ())} - {newest.step}
    missing = [step for step in remote.steps() if step in best and not checkpoint.step_folder(output, step).exists()]
    return [found for step in missing if (found := remote.fetch(step, output)) is not None]


def _check_not_earlier(output: Path, own: Checkpoint, place: str) -> None:
    run, step = split_step(place)
    inside = not is_url(place) and Path(run).resolve() == output.resolve()
    if inside and step is not None and step < own.step:
        raise UserError(f"train.resume_from={place}: {output} has newer checkpoints, up to step {own.step}; to go "
                        "back, move those away, or choose another output folder")
