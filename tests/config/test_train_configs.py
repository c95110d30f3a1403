"""The stages' YAML files: sizes fit the position tables, and each stage differs from the one before as documented."""

from dataclasses import replace
from pathlib import Path

import pytest

from mg.config import cli
from mg.config.train import TrainConfig
from mg.dataset.buckets import bucket_sizes
from mg.dataset.prompt_list import read_prompts

FOLDER = Path(__file__).parents[2] / "configs" / "train"
STAGES = {"stage1_t2i_256px": 256, "stage2_t2iv_256px": 256, "stage3_t2iv_768px": 768, "stage4_finetune": 768}
SIZES = ("1b", "5b", "30b")


def config(*names):
    return cli.parse(TrainConfig, [word for name in names for word in ("-c", str(FOLDER / f"{name}.yaml"))])


@pytest.mark.parametrize("name", STAGES)
def test_every_bucket_of_a_stage_has_its_positions_and_none_is_spare(name):
    stage = config(name)
    sides = [side // 16 for size in bucket_sizes(STAGES[name]) for side in size]  # 8 pixels by 2 latent positions
    frames = max(stage.data.frames or (1,))
    assert stage.model.max_length == (-(-frames // 8), max(sides), max(sides))


def test_each_stage_starts_from_the_one_before():
    one, two, three, four = (config(name) for name in STAGES)
    assert one.model.pretrained is None and one.data.image_ratio == 1.0
    for number, stage in enumerate((two, three, four), start=1):
        assert stage.model.pretrained == f"outputs/stage{number}/transformer"
    assert two.data.image_ratio == three.data.image_ratio == 0.1 and four.data.image_ratio == 0.0
    assert [stage.train.optimizer.lr for stage in (one, two, three, four)] == [1e-4, 6e-5, 1e-5, 1e-5]
    assert (four.train.schedule.name, four.train.schedule.end_lr) == ("cosine", 0.0)
    assert {stage.train.steps for stage in (one, two, three)} == {30000, 20000}
    for stage in (one, two, three, four):
        assert stage.loss.sigma_min == 1e-5 and stage.data.timesteps == "logit-normal"
        assert (stage.data.dropout.all, stage.data.dropout.each) == (0.2, 0.0)
        assert stage.model.dtype == "bf16" and stage.train.optimizer.clip_grad_norm == 1.0


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("size", SIZES)
def test_another_size_changes_the_network_and_nothing_of_the_data(stage, size):
    plain, sized = config(stage), config(stage, size)
    assert sized.model.preset == f"llama-{size.upper()}"
    changes = {"preset": plain.model.preset, "recompute_every_nth_block": plain.model.recompute_every_nth_block}
    same = replace(sized, model=replace(sized.model, **changes))
    assert replace(same, train=replace(same.train, accumulation=plain.train.accumulation)) == plain


def test_the_world_of_shapes_is_trained_on_what_its_tools_write():
    shapes = config("tiny_shapes")
    assert shapes.model.preset == "tiny" and shapes.data.batch_size == 64
    lengths = shapes.data.text_lengths
    assert (lengths.ul2, lengths.metaclip, lengths.byt5) == (64, 48, 16)
    assert set(shapes.data.text.by_kind) == {"ul2", "metaclip", "byt5"}
    assert 0.1 <= shapes.data.dropout.all <= 0.2 and 0.99 <= shapes.train.ema_decay < 1
    assert shapes.sample.every % shapes.train.validate_every == 0
    assert Path(shapes.csv_path).parent == Path(shapes.valid.csv_path).parent == Path(shapes.video_folder)


@pytest.mark.parametrize("name", STAGES)
def test_the_empty_prompts_are_where_a_list_of_one_empty_line_puts_them(name, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    (row,) = read_prompts(tmp_path / "empty.txt")
    assert row.text == "" and row.error is None
    paths = {kind: f"data/empty/{kind}/{row.output}" for kind in ("ul2", "metaclip", "byt5")}
    assert config(name).data.empty_text.by_kind == paths
