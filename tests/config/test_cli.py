import importlib.util
import math
import sys
import types
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from mg.config import cli
from mg.config.generate import GenerateConfig
from mg.config.tae_train import TaeTrainConfig
from mg.errors import BadClip, NoGoodClip, NumericalAbort, UserError

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float = 1e-4
    """Peak rate, at 100 % of the run."""
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self):
        if self.lr <= 0:
            raise UserError(f"optim.lr={self.lr} must be above 0")


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long.

    Attributes:
        steps: of the whole run,
            resumed parts included.
    """

    steps: int
    lengths: tuple[int, ...] | None = None
    optim: Optim = field(default_factory=Optim)

    def __post_init__(self):
        if self.steps < 1:
            raise UserError(f"steps: {self.steps} must be at least 1")
        if self.steps == 13:
            raise ValueError("an unlucky\nnumber")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run."""

    ckpt_path: str | None = None
    name: Literal["one", "two"] = "one"
    tile: bool = False
    kind: Literal["euler", "midpoint"] | None = None
    size: tuple[int, int] | int = 64
    save: bool | None = None
    folder: Path = Path("out")
    train: Train = field(default_factory=lambda: Train(steps=10))


@dataclass(frozen=True, kw_only=True)
class Needs:
    csv_path: str


def parse(*argv):
    return cli.parse(Run, argv, prog="run.py")


def complaint(*argv):
    with pytest.raises(UserError) as caught:
        parse(*argv)
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_code == 2
    return message


@pytest.fixture
def yaml(tmp_path):
    def write(text, name="a.yaml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_nothing_said_gives_the_class_defaults():
    assert parse() == Run()


def test_flags_reach_nested_fields_with_their_types():
    run = parse("--train.steps", "7", "--train.optim.lr=1e-3", "--ckpt_path", "a b #c.ckpt", "--folder", "x/y")
    optim = Optim(lr=1e-3)
    assert run == Run(ckpt_path="a b #c.ckpt", folder=Path("x/y"), train=Train(steps=7, optim=optim))
    assert parse("--train.optim.lr", "1") == Run(train=Train(steps=10, optim=Optim(lr=1.0)))
    assert parse("--ckpt_path", "12").ckpt_path == "12"  # a file may be called so
    assert parse("--ckpt_path", "null").ckpt_path is None


def test_later_files_override_earlier_ones_key_by_key(yaml):
    first = yaml("train: {steps: 5, optim: {lr: 1e-3}}\nname: two\n", "1.yaml")
    second = yaml("train:\n  optim:\n    betas: [0.5, 0.6]\n  lengths: [1, 9]\n", "2.yaml")
    expected = Run(name="two", train=Train(steps=5, lengths=(1, 9), optim=Optim(lr=1e-3, betas=(0.5, 0.6))))
    assert parse("--config", first, f"--config={second}") == expected
    assert parse("-c", second, "-c", first) == expected
    assert parse("-c", first, "-c", yaml("train: {steps: 6}", "3.yaml")).train == Train(steps=6, optim=Optim(lr=1e-3))


def test_flags_override_files_wherever_they_stand(yaml):
    path = yaml("train: {steps: 5}\n")
    assert parse("--train.steps", "6", "--config", path).train.steps == 6
    assert parse("--config", path, "--train.steps", "6").train.steps == 6


@pytest.mark.parametrize(
    ("argv", "tile", "save"),
    [
        (["--tile"], True, None),
        (["--tile", "--save"], True, True),
        (["--tile", "false", "--save=false"], False, False),
        (["--tile", "True", "--save", "null"], True, None),
    ],
)
def test_bools_stand_bare_or_with_a_value(argv, tile, save):
    run = parse(*argv, "--name", "two")
    assert (run.tile, run.save, run.name) == (tile, save, "two")


@pytest.mark.parametrize("size", [["[0.1,0.2]"], ["0.1", "0.2"]])
def test_tuples_are_lists_or_words(size):
    run = parse("--train.optim.betas", *size, "--train.lengths", "1", "2", "3")
    assert run.train.optim.betas == (0.1, 0.2) and run.train.lengths == (1, 2, 3)


def test_a_tuple_of_one_needs_no_brackets():
    assert parse("--train.lengths", "7").train.lengths == (7,)
    assert parse("--train.lengths", "[7]", "--name", "two").train.lengths == (7,)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--nam", "one"], ["--nam one", "did you mean --name?"]),  # no abbreviations
        (["--train.step", "3"], ["--train.step 3", "--train.steps?"]),
        (["--train.lr", "3"], ["(did you mean --train.optim.lr?)"]),  # left out a section
        (["--learning_rate", "3"], ["(here: --train.optim.lr)"]),
        (["--save", "perhaps"], ["save: perhaps is not of type bool"]),
        (["--size", "64x64"], ["size: 64x64: give one number or two, such as 64 64;"]),
        (["--size", "64,64"], ["size: 64,64: give one number or two"]),
        (["--size", "1", "2", "3"], ["size: [1, 2, 3]: give one number or two"]),
        (["--kind", "heun"], ["kind: heun is not one of 'euler', 'midpoint';"]),
        (["stray"], ["unrecognized arguments: stray"]),
        (["--name", "three"], ["name: three is not one of 'one', 'two'"]),
        (["--train.steps", "x"], ["train.steps: x is not of type int"]),
        (["--train.steps", "1.5"], ["train.steps: 1.5 is not of type int"]),
        (["--train.optim.betas", "0.1", "0.2", "0.3"], ["train.optim.betas: [0.1, 0.2, 0.3] is not of type tuple"]),
        (["--train.lengths", "x"], ["train.lengths: ['x'] is not of type int", "tuple[int, ...], null"]),
        (["--tile", "maybe"], ["tile: maybe is not of type bool"]),
        (["--ckpt_path"], ["--ckpt_path", "expected one argument"]),
        (["--train", '{"step": 3}'], ["'train'", "'step'"]),
        (["--config"], ["--config", "missing"]),
        (["--config", "no/such.yaml"], ["--config no/such.yaml: No such file"]),
        (["--config", "."], ["--config .: Is a directory"]),
    ],
)
def test_wrong_command_lines_are_told_in_one_line(argv, parts):
    message = complaint(*argv)
    for part in parts:
        assert part in message


def test_all_options_that_begin_with_the_word_are_named():
    with pytest.raises(UserError) as caught:
        cli.parse(GenerateConfig, ["--pipeline", "p", "--prompt", "a", "--guidance", "4"])
    found = str(caught.value).partition("(did you mean ")[2].partition("?)")[0].split(", ")
    assert set(found) == {"--guidance_scale", "--guidance_mode", "--guidance_schedule"}


@pytest.mark.parametrize("name", ["--steps", "--num_inference_steps"])
def test_what_other_programs_call_an_option_is_known(name):
    with pytest.raises(UserError, match=r"\(here: --num_sampling_steps\)"):
        cli.parse(GenerateConfig, [name, "4"])


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("train:\n  step: 3\n", "unknown option train.step (did you mean train.steps?)"),
        ("tran: {steps: 3}\n", "unknown option tran"),
        ("config: b.yaml\n", "unknown option config"),
        ("1: 2\n", "unknown option 1"),
        ("train: 3\n", "train: 3 must be a section"),
        ("train:\n", "train: None must be a section"),
        ("train: {steps: 3\n", "not valid YAML"),
        ('ckpt_path: !!python/object/apply:os.system ["true"]\n', "not valid YAML"),
        ("", "holds no options"),
        ("- a\n- b\n", "holds no options"),
        ("just words", "holds no options"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_wrong_files_are_named(yaml, text, part):
    path = yaml(text)
    message = complaint("--config", path)
    assert message.startswith(f"--config {path}: ") and part in message


@pytest.mark.parametrize(
    ("text", "part"), [("train: {steps: true}", "train.steps: True is not of type int"), ("name: 3", "name: 3 is not")]
)
def test_wrong_types_in_a_file_name_the_option(yaml, text, part):
    assert part in complaint("--config", yaml(text))


def test_failing_checks_tell_the_dotted_path(yaml):
    assert complaint("--train.steps", "0") == "train.steps: 0 must be at least 1"
    assert complaint("--train.optim.lr=-1e-3") == "train.optim.lr=-0.001 must be above 0"
    assert complaint("--config", yaml("train: {steps: 13}")) == "train: an unlucky number"


def test_failing_checks_of_the_training_config():
    for argv, message in {
        "--data.size=[0,8]": "data.size: (0, 8) must be at least 1 in both directions",
        "--loss.kl_weight=-1": "loss.kl_weight=-1.0 must be 0 or above",
        "--train.optimizer.lr=0": "train.optimizer.lr=0.0 must be a finite number above 0",
    }.items():
        with pytest.raises(UserError) as caught:
            cli.parse(TaeTrainConfig, [argv])
        assert str(caught.value) == message


def test_missing_option_is_named():
    with pytest.raises(UserError, match="csv_path"):
        cli.parse(Needs, [])
    assert cli.parse(Needs, ["--csv_path", "x"]) == Needs(csv_path="x")


def test_a_choice_of_dataclasses_is_refused():
    @dataclass(frozen=True, kw_only=True)
    class Choice:
        part: Optim | None = None

    Choice.__annotations__["part"] = Optim | None
    with pytest.raises(TypeError, match=r"Choice\.part"):
        cli.parse(Choice, [])


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.parse(Run, ["--help"], prog="run.py", description="What it does.")
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "usage: run.py" in text and "What it does." in text
    assert "--train.optim.lr LR Peak rate, at 100 % of the run. (type: float, default: 0.0001)" in text
    assert "--train.steps STEPS of the whole run, resumed parts included. (type: int, default: 10)" in text
    assert " A run: --ckpt_path" in text and " How long: --train CONFIG" in text and " Optim: --train.optim" in text


def test_print_config_shows_what_would_run(capsys, yaml):
    with pytest.raises(SystemExit) as caught:
        parse("--print_config", "--tile", "--config", yaml("train: {steps: 5}"))
    assert caught.value.code == 0
    assert cli.load(Run, yaml(capsys.readouterr().out, "printed.yaml")) == Run(tile=True, train=Train(steps=5))


def test_dump_and_load_are_inverse(yaml):
    optim = Optim(lr=math.pi * 1e-7, betas=(0.0, 1e-30))
    run = Run(ckpt_path="12", save=True, folder=Path("a/ü b"), train=Train(steps=3, lengths=(1, 2), optim=optim))
    assert cli.load(Run, yaml(cli.dump(run))) == run
    for path in (None, "12", "true", "1e-3", "2024-01-01", "2.5e+10", "a: b", "a #b", "~/x"):
        assert cli.load(Run, yaml(cli.dump(Run(ckpt_path=path)))).ckpt_path == path


def leave(monkeypatch, capsys, outcome, argv=("run.py", "--x", "1")):
    def main(words):
        assert words == list(argv[1:])
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(sys, "argv", list(argv))
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    return caught.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "code", "text"),
    [
        (None, 0, ""),
        (4, 4, ""),
        (UserError("--x: 1 is wrong;\n  take 2"), 2, "error: --x: 1 is wrong; take 2\n"),
        (NoGoodClip("none is readable"), 5, "error: none is readable\n"),
        (NumericalAbort("NaN"), 3, "error: NaN\n"),
        (BadClip("a  b.mp4", "truncated"), 2, "error: a  b.mp4: truncated\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_run_turns_errors_into_a_line_and_an_exit_code(monkeypatch, capsys, outcome, code, text):
    assert leave(monkeypatch, capsys, outcome) == (code, text)


def test_run_tells_an_error_with_its_notes(monkeypatch, capsys):
    error = BadClip("a.mp4", "truncated")
    error.__notes__ = ["while building batch 3", "in epoch\n2"]
    line = "error: a.mp4: truncated (while building batch 3) (in epoch 2)\n"
    assert leave(monkeypatch, capsys, error) == (2, line)


def test_run_leaves_defects_their_traceback(monkeypatch):
    def main(argv):
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", ["run.py"])
    with pytest.raises(ZeroDivisionError):
        cli.run(main)


@pytest.mark.parametrize("stopped", [False, True])
def test_train_tae_takes_the_known_flags_and_reports(monkeypatch, capsys, tmp_path, stopped):
    seen = []

    def train_tae(config):
        seen.append(config)
        return {"loss": 0.12345678, "val_psnr": 25.5, "step": 40, "steps": 100000, "stopped": stopped,
                "restart": stopped}  # fmt: skip

    pipeline = types.ModuleType("mg.pipelines.train_tae")
    pipeline.train_tae, pipeline.FINAL_WEIGHTS, pipeline.CONFIG_RECORD = train_tae, "tae.safetensors", "config.yaml"
    monkeypatch.setitem(sys.modules, "mg.pipelines.train_tae", pipeline)
    spec = importlib.util.spec_from_file_location("train_tae_script", ROOT / "scripts/train_tae.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    config_path = ROOT / "configs/tae/train/mixed_256x256x16.yaml"
    flags = ["--csv_path", "a.csv", "--video_folder", "v", "--output_path", str(tmp_path / "out")]
    assert script.main(["--config", str(config_path), *flags]) == (75 if stopped else 0)
    plain = asdict(cli.load(TaeTrainConfig, config_path))
    plain.update(csv_path="a.csv", video_folder="v", output_path=str(tmp_path / "out"))
    assert [asdict(config) for config in seen] == [plain]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 40/100000") and ("same command" in lines[0]) == stopped
    assert lines[1:3] == ["loss: 0.123457", "val_psnr: 25.5"]
    assert len(lines) == 4 and f"{tmp_path}/out/tae.safetensors" in lines[3] and "config.yaml" in lines[3]
