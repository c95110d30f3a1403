"""What a run uses is fixed when it begins: batches planned with files that are gone or damaged when it goes on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from generation_toy import CAPTIONED, ITEMS, LENGTHS, equal, settings, store

from mg.config.generation import TextFolders
from mg.dataset.generation import GenerationSource
from mg.dataset.item_plan import ItemPlan, lists_mark, read_plans, write_plans
from mg.dataset.latent_sources import Shape
from mg.errors import TooManyBadClips, UserError


def names_of(source, indices):
    return {name for index in indices for name in source.batch(index)["names"]}


@pytest.mark.parametrize("in_memory", [None, False])
@pytest.mark.parametrize("mixed", [False, True])
def test_batches_are_those_of_the_run_that_met_the_bad_files_on_its_way(folder, texts, tmp_path, mixed, in_memory):
    """Also where the latents of one item and the text of another go bad, and lists are mixed."""
    option = replace(
        settings(folder, image_ratio=0.3, max_bad=0.3, in_memory=False), text=texts[0], empty_text=texts[1],
        text_lengths=LENGTHS,
    )  # fmt: skip
    lists, weights = CAPTIONED, None
    if mixed:
        lists, weights = {"a": CAPTIONED[:9], "b": CAPTIONED[9:]}, {"a": 1.0, "b": 2.0}
    straight = GenerationSource(lists, option, weights=weights)
    for index in range(10):
        straight.batch(index)
    (folder / "tall1.npz").unlink()
    (folder / "picture2.npz").write_bytes((folder / "picture2.npz").read_bytes()[:-200])
    Path(texts[0].ul2, "wide2.npz").unlink()
    plan = straight.plan
    want = [straight.batch(index) for index in range(10, 40)]
    listed = tmp_path / "bad_videos.jsonl"
    option = replace(option, in_memory=in_memory)
    resumed = GenerationSource(lists, option, weights=weights, plan=plan, bad_list=listed)
    assert [one.name for one in resumed.items] == [one.name for one in straight.items] and resumed.plan == plan
    assert all(equal(resumed.batch(index), batch) for index, batch in enumerate(want, 10))
    bad = {"tall1.mp4", "picture2.png", "wide2.mp4"}
    assert not bad & names_of(resumed, range(10, 40)) and len(names_of(resumed, range(10, 40))) == 13
    for name in bad:  # mended: the run goes on as it did, a new one takes them
        store(folder, name, (1, 2, 4) if name.endswith("png") else (2, 4, 2), 1 if name.endswith("png") else 16)
    again = GenerationSource(lists, option, weights=weights, plan=plan, bad_list=listed)
    assert all(equal(again.batch(index), batch) for index, batch in enumerate(want, 10))
    assert {json.loads(line)["name"] for line in listed.read_text().splitlines()} == bad


def test_what_was_unusable_at_the_start_stays_left_out(folder, caplog):
    away = folder / "wide3.away"
    (folder / "wide3.npz").rename(away)
    first = GenerationSource(ITEMS, settings(folder))
    want = [first.batch(index) for index in range(20)]
    away.rename(folder / "wide3.npz")
    resumed = GenerationSource(ITEMS, settings(folder), plan=first.plan)
    assert all(equal(resumed.batch(index), batch) for index, batch in enumerate(want))
    assert "1 files stay left out, which could not be used when the run began" in caplog.text
    assert "wide3.mp4" in names_of(GenerationSource(ITEMS, settings(folder)), range(20))


def test_latents_of_another_shape_are_bad_and_a_plan_of_another_list_is_passed_over(folder):
    first = GenerationSource(ITEMS, settings(folder))
    store(folder, "wide1.mp4", (1, 2, 4), frames=8)
    resumed = GenerationSource(ITEMS, settings(folder), plan=first.plan)
    assert resumed.buckets == first.buckets and "wide1.mp4" not in names_of(resumed, range(20))
    assert "have become (1, 2, 4), 8 frames, instead of (2, 2, 4), 16" in resumed.bad["/videos/wide1.mp4"]
    other = [replace(ITEMS[0], caption="other words"), *ITEMS[1:]]
    anew = GenerationSource(other, settings(folder), plan=first.plan)
    assert anew.plan != first.plan and "8x16x32" in anew.buckets
    two = {"a": ITEMS[:8], "b": ITEMS[8:]}
    assert GenerationSource(two, settings(folder), weights={"a": 1, "b": 1}, plan=first.plan).plan.lists != (
        first.plan.lists
    )


def test_too_many_that_are_bad_by_then_end_the_run(folder):
    first = GenerationSource(ITEMS, settings(folder, max_bad=0.2))
    for i in range(4):
        (folder / f"wide{i}.npz").write_text("gone")
    with pytest.raises(TooManyBadClips, match=r"4 of 16 files are bad, more than max_bad=0\.2 .*wide0\.npz"):
        GenerationSource(ITEMS, settings(folder, max_bad=0.2), plan=first.plan)


def test_texts_that_are_no_more_in_the_cache(folder, texts):
    option = settings(folder, text=TextFolders(byt5=texts[0].byt5), max_bad=0.5)
    first = GenerationSource(CAPTIONED, option)
    for shard in Path(texts[0].byt5).rglob("shard-*"):
        shard.unlink()
    with pytest.raises(UserError, match="byt5"):  # all of them: nothing to go on with
        GenerationSource(CAPTIONED, option, plan=first.plan)


def test_without_replacement_a_bad_item_is_an_error(folder):
    plain = settings(folder, batch_size=1, in_memory=False)
    source = GenerationSource(ITEMS, plain, replaces=False)
    place = next(index for index in range(16) if source.batch(index)["names"] == ["tall2.mp4"])
    (folder / "tall2.npz").unlink()
    with pytest.raises(UserError, match=r"16x32x16 is readable.*tall2\.npz"):
        source.batch(place)
    assert len(names_of(source, set(range(16)) - {place})) == 15


def test_plans_are_read_as_they_were_written(tmp_path):
    shapes = [Shape((2, 4, 4), 16, 23.976), Shape((1, 4, 4), 1, None), Shape((2, 4, 4), 15, 23.976)]
    plan = ItemPlan(lists_mark([ITEMS]), {number: shapes[number % 3] for number in (0, 1, 2, 5, 9)})
    path = tmp_path / "run" / "items.json"
    assert read_plans(path) == {}
    write_plans(path, {"train": plan, "valid": ItemPlan("", {})})
    assert read_plans(path) == {"train": plan, "valid": ItemPlan("", {})}
    assert list(read_plans(path)["train"].shapes) == [0, 1, 2, 5, 9]
    text = path.read_text()
    for wrong in ("", "{}", "[]", text.replace("23.976", "24.976"), text[:-9], text.replace("items.1", "items.2")):
        path.write_text(wrong)
        with pytest.raises(UserError, match=r"items\.json: cannot be read .*delete it, and the items are looked at"):
            read_plans(path)


def test_lists_are_told_apart_by_names_captions_and_order():
    a, b = ITEMS[:2]
    marks = {lists_mark(lists) for lists in (
        [[a, b]], [[b, a]], [[a], [b]], [[a]], [[a, replace(b, caption=None)]], [[a, replace(b, caption="")]],
        [[a, replace(b, name="\udcff.mp4")]],
    )}  # fmt: skip
    assert len(marks) == 7 and lists_mark([[a, b]]) == lists_mark([(replace(a, row=7, path=Path("/x")), b)])
