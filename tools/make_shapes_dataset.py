"""Make clips of one coloured, moving shape with captions: a data set whose truth can be measured.

Writes videos/*.mp4, train.csv, test.csv and held_out.csv (video, caption and the five attributes), the combinations
that training never shows in held_out_combinations.csv, a contact sheet and, first of all, the options in shapes.json.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path

from mg.config import cli
from mg.config.shapes import ATTRIBUTES, Scene, ShapesConfig
from mg.errors import UserError
from mg.files import writable_folder, write_json, write_text

SETTINGS = "shapes.json"
DECIDING = ("num_clips", "num_test", "num_held_out", "image_size", "num_frames", "fps", "crf", "seed")
"""The options that decide what is in the folder."""
SHEET_ROWS = 16


def prepare_folder(config: ShapesConfig) -> Path:
    """Create the folder with its settings, or check that what is in it was begun with the same ones."""
    folder = writable_folder(config.output_path, "output_path")
    settings = {name: getattr(config, name) for name in DECIDING}
    path = folder / SETTINGS
    if not path.exists():
        if any(folder.iterdir()):
            raise UserError(f"output_path: {folder} holds other files and no {SETTINGS}; give an empty folder")
        write_json(path, settings)
        return folder
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"output_path: {path} is damaged ({error}); give another folder") from error
    if not isinstance(found, dict):
        raise UserError(f"output_path: {path} is not of this tool; give another folder")
    if found != settings:
        pairs = [f"{name} {found.get(name)}" for name in DECIDING if found.get(name) != settings[name]]
        raise UserError(f"output_path: {folder} was made with {', '.join(pairs)}; give the same or another folder")
    return folder


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV in UTF-8, completely or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    write_text(path, text.getvalue())


def main(argv: list[str]) -> None:
    """Write the clips that are not there yet, then the lists."""
    config = cli.parse(ShapesConfig, argv, description=__doc__)
    from tqdm import tqdm

    from mg.dataset.shapes import caption, held_out_combinations, make_clip, splits
    from mg.dataset.video import read_video
    from mg.dataset.video_writer import write_video
    from mg.pipelines.pictures import contact_sheet, write_png
    from mg.rng import stream

    folder = prepare_folder(config)
    parts = splits(config)
    names = {part: [f"videos/{part}_{i:05d}.mp4" for i in range(len(scenes))] for part, scenes in parts.items()}
    jobs = [(part, i, scene) for part, scenes in parts.items() for i, scene in enumerate(scenes)]
    missing = [job for job in jobs if not (folder / names[job[0]][job[1]]).exists()]

    def work(job: tuple[str, int, Scene]) -> None:
        part, i, scene = job
        write_video(folder / names[part][i], make_clip(config, part, i, scene), config.fps, config.crf)

    with ThreadPoolExecutor(config.num_workers) as pool:
        futures = [pool.submit(work, job) for job in missing]
        try:
            for future in tqdm(futures, desc="clips", unit="clip", mininterval=1):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # otherwise Ctrl-C would wait for all clips
            raise
    tables = {}
    for part, scenes in parts.items():
        texts = [caption(scene, stream(config.seed, f"shapes.{part}.caption", i)) for i, scene in enumerate(scenes)]
        tables[part] = [(*row, *astuple(scene)) for *row, scene in zip(names[part], texts, scenes, strict=True)]
    shown = [row for rows in tables.values() for row in rows[: SHEET_ROWS // 2]][:SHEET_ROWS]
    write_png(folder / "sheet.png", contact_sheet([(text, read_video(folder / name)) for name, text, *_ in shown]))
    write_table(folder / "held_out_combinations.csv", ATTRIBUTES[:3], sorted(held_out_combinations(config.seed)))
    for part, rows in tables.items():
        write_table(folder / f"{part}.csv", ("video", "caption", *ATTRIBUTES), rows)
        print(f"{folder / part}.csv: {len(rows)} clips")


if __name__ == "__main__":
    cli.run(main)
