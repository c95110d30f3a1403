"""A training goes on although latents or embeddings are gone or damaged when it is started again."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from train_toy import IMAGES, VIDEOS, four_channels, rows, settings, tiny_config, write_data

from mg.config.train import FlowValidationConfig
from mg.dataset.generation import GenerationSource
from mg.dataset.item_plan import FILE_NAME as ITEM_PLANS
from mg.dataset.quarantine import FILE_NAME as BAD_VIDEOS
from mg.errors import NoGoodClip, TooManyBadClips, UserError
from mg.log import get_logger
from mg.pipelines.train import train
from mg.pipelines.train_data import open_data, sample_batches, validation_batches


@pytest.fixture(autouse=True)
def preset(monkeypatch):
    four_channels(monkeypatch)


@pytest.fixture
def folder(tmp_path):
    return write_data(tmp_path / "data", VIDEOS + IMAGES)


@pytest.fixture
def config(folder, tmp_path):
    return tiny_config(folder, tmp_path / "run")


@pytest.fixture
def told():
    """Lines of the log."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    get_logger().addHandler(handler)
    yield lines
    get_logger().removeHandler(handler)


def part(config, steps):
    return train(replace(config, train=replace(config.train, steps=steps)))


def damage(path, content):
    path.unlink() if content is None else path.write_bytes(content)


@pytest.mark.parametrize("kind, content", [("latents", None), ("ul2", b"damaged")])
def test_a_resumed_run_has_the_batches_of_the_one_that_met_the_file_on_its_way(
    folder, tmp_path, config, told, monkeypatch, kind, content
):
    bad = folder / kind / "v1.npz"
    source = open_data(config).source
    assert "v1.mp4" in {name for index in range(4, 8) for name in source.batch(index)["names"]}

    whole, real = bad.read_bytes(), GenerationSource.batch

    def batch(self, index, rows=None):
        if index == 4 and whole:
            damage(bad, content)
        return real(self, index, rows)

    monkeypatch.setattr(GenerationSource, "batch", batch)
    straight = replace(config, output_path=str(tmp_path / "straight"), workers=0)
    train(replace(straight, data=settings(folder, in_memory=False)))
    monkeypatch.undo()
    four_channels(monkeypatch)

    bad.write_bytes(whole)
    part(config, 2)
    damage(bad, content)
    told.clear()
    part(config, 3)
    assert sum(str(bad) in line for line in told) == 1
    bad.write_bytes(whole)  # mended: the run goes on as it did
    part(config, 4)
    for name in ("model", "optimizer"):
        file = f"step-00000004/{name}.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()
    assert [row["loss"] for row in rows(tmp_path / "run")] == [row["loss"] for row in rows(tmp_path / "straight")]
    entries = [json.loads(line) for line in (tmp_path / "run" / BAD_VIDEOS).read_text().splitlines()]
    assert [(entry["path"], entry["name"]) for entry in entries] == [(str(bad), "v1.mp4")]


def test_a_file_that_was_bad_at_the_start_may_be_mended(folder, tmp_path, config):
    whole = (folder / "latents" / "v1.npz").read_bytes()
    (folder / "latents" / "v1.npz").unlink()
    part(config, 2)
    plan = (tmp_path / "run" / ITEM_PLANS).read_bytes()
    (folder / "latents" / "v1.npz").write_bytes(whole)
    part(config, 4)
    assert (tmp_path / "run" / ITEM_PLANS).read_bytes() == plan
    assert "v1.mp4" not in {item.name for item in open_data(config).source.items}
    (tmp_path / "run" / ITEM_PLANS).unlink()
    with pytest.raises(UserError, match="the run differs: data.items was"):
        part(config, 5)


def test_another_list_is_planned_anew_once_it_is_admitted(folder, tmp_path, config):
    part(config, 2)
    plan = (tmp_path / "run" / ITEM_PLANS).read_bytes()
    (folder / "few.csv").write_text("".join((folder / "list.csv").read_text().splitlines(True)[:-1]))
    few = replace(config, csv_path=str(folder / "few.csv"))
    with pytest.raises(UserError, match="the run differs: data.items was"):
        part(few, 3)
    assert (tmp_path / "run" / ITEM_PLANS).read_bytes() == plan
    part(replace(few, train=replace(few.train, allow_changes=("data.items",))), 3)
    (folder / "latents" / "v1.npz").unlink()
    part(few, 4)
    assert "v1.mp4" in {item.name for item in open_data(few).source.items}


def test_a_damaged_plan_is_refused_by_name(tmp_path, config):
    part(config, 1)
    (tmp_path / "run" / ITEM_PLANS).write_text("{")
    with pytest.raises(UserError, match=r"items\.json: cannot be read .*delete it"):
        part(config, 2)


def named(batches):
    found = [(name, batch["latent"][row], batch["noise"][row])
             for batch in batches for row, name in enumerate(batch["names"])]  # fmt: skip
    assert len({name for name, *_ in found}) == len(found)  # each once
    return {name: values for name, *values in found}


@pytest.mark.parametrize("started_again", [False, True])
def test_a_validation_leaves_out_what_has_become_unreadable(folder, config, told, started_again):
    """The others keep their noise, also in a run that is started again."""
    valid = FlowValidationConfig(csv_path=str(folder / "list.csv"))
    config = replace(config, valid=valid, data=settings(folder, in_memory=False))
    data = open_data(config)
    batches = validation_batches(data.valid, 3, None)
    before = named(batches())
    assert len(before) == 7
    (folder / "latents" / "v3.npz").unlink()
    if started_again:
        data.write_plans(folder.parent / "run")
        batches = validation_batches(open_data(config).valid, 3, None)
    told.clear()
    for _ in range(2):
        after = named(batches())
        assert before.keys() - after.keys() == {"v3.mp4"} and len(after) == 6
        assert all(np.array_equal(one, other) for name in after for one, other in zip(after[name], before[name],
                                                                                      strict=True))  # fmt: skip
    assert sum("v3.npz" in line for line in told) == (not started_again)


def test_a_validation_of_which_nothing_is_left_ends_the_run(folder, config):
    (folder / "one.csv").write_text("video,caption\nv3.mp4,caption of v3.mp4\n")
    (folder / "two.csv").write_text("video,caption\nv3.mp4,caption of v3.mp4\nv4.mp4,caption of v4.mp4\n")
    config = replace(config, data=settings(folder, in_memory=False))
    one, two = (
        validation_batches(open_data(replace(config, valid=FlowValidationConfig(csv_path=str(path)))).valid, 3, None)
        for path in (folder / "one.csv", folder / "two.csv")
    )
    for name in ("v3", "v4"):
        (folder / "latents" / f"{name}.npz").unlink()
    with pytest.raises(NoGoodClip, match=r"^valid.csv_path: none of its 1 videos is readable any more; .*v3\.npz"):
        list(one())
    with pytest.raises(TooManyBadClips, match="2 of 2 files are bad"):
        list(two())


def test_samples_are_of_what_is_readable(folder, tmp_path, config):
    open_data(config).write_plans(tmp_path / "run")
    _, _, before, _ = sample_batches(open_data(config), 3)
    (folder / "latents" / f"{before[0].removeprefix('caption of ').removesuffix('.mp4')}.npz").unlink()
    _, _, after, _ = sample_batches(open_data(config), 3)
    assert len(after) == 3 and before[0] not in after


def test_another_machine_goes_on_with_the_same_items(folder, tmp_path, config):
    """A video that was not there when the run began, and one that could not be read for once, are both good by now."""
    config = replace(config, data=settings(folder, max_bad=0.5))
    left, met = folder / "latents" / "v1.npz", folder / "latents" / "v3.npz"
    whole, url = left.read_bytes(), f"file://{tmp_path}/there"
    said = json.dumps({"path": str(met), "name": "v3.mp4", "reason": "for once"}) + "\n"

    def run(name, steps, **changes):
        train(replace(config, output_path=str(tmp_path / name), train=replace(config.train, steps=steps, **changes)))

    left.unlink()
    for name, steps, remote in (("straight", 3, None), ("first", 1, url)):
        (tmp_path / name).mkdir()
        (tmp_path / name / BAD_VIDEOS).write_text(said)
        run(name, steps, remote=remote)
    left.write_bytes(whole)
    with pytest.raises(UserError, match="the run differs: trainer.seed was 0 is 1; "):
        run("refused", 3, remote=url, seed=1)
    assert not {BAD_VIDEOS, ITEM_PLANS} & {path.name for path in (tmp_path / "refused").iterdir()}
    run("second", 3, remote=url)
    assert [row["loss"] for row in rows(tmp_path / "second")] == [row["loss"] for row in rows(tmp_path / "straight")]
    for record in (BAD_VIDEOS, ITEM_PLANS):
        assert (tmp_path / "second" / record).read_bytes() == (tmp_path / "first" / record).read_bytes()
