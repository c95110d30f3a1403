"""Which items of its lists a run uses, and of which shapes: fixed when it begins, whatever becomes of the files."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from mg.dataset.latent_sources import Shape
from mg.dataset.manifest import Item
from mg.errors import BadClip, UserError
from mg.files import write_text

FILE_NAME = "items.json"
"""Name of the plans' file in a run's folder."""

_FORMAT = "mg.items.1"


@dataclass(frozen=True)
class ItemPlan:
    """The usable items of one list, or of several that are mixed.

    Attributes:
        lists: stands for the lists' names and captions, in order, see `lists_mark`.
        shapes: number of an item -> its shape; items without are not used.
    """

    lists: str
    shapes: Mapping[int, Shape]

    def changed(self, items: Sequence[Item], shapes: Mapping[int, Shape]) -> dict[int, BadClip]:
        """Return what is wrong with the items that have other shapes by now: number -> fault."""
        faults = {}
        for number in self.shapes.keys() & shapes.keys():
            was, now = self.shapes[number], shapes[number]
            if (was.size, was.frames) != (now.size, now.frames):
                what = f"its latents have become {now.size}, {now.frames} frames, instead of {was.size}, {was.frames}"
                faults[number] = BadClip(items[number].path, what)
        return faults


def lists_mark(lists: Iterable[Iterable[Item]]) -> str:
    """Return 16 hexadecimal digits that stand for the names and captions of lists of items, in their order."""
    digest = hashlib.sha256()
    for items in lists:
        for item in items:
            digest.update(json.dumps([item.name, item.caption]).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def write_plans(path: str | Path, plans: Mapping[str, ItemPlan]) -> None:
    """Write plans by name, atomically; equal plans give equal bytes.

    Raises:
        UserError: a disk that refuses.
    """
    text = json.dumps({name: _packed(plan) for name, plan in plans.items()})
    write_text(path, json.dumps({"format": _FORMAT, "crc32": zlib.crc32(text.encode()), "plans": text}) + "\n")


def read_plans(path: str | Path) -> dict[str, ItemPlan]:
    """Read plans by name; none where there is no such file.

    Raises:
        UserError: the file is damaged, or cannot be read.
    """
    remedy = "delete it, and the items are looked at anew: those that are unusable now are then left out of the run"
    try:
        said = json.loads(Path(path).read_text("utf-8"))
        if said["format"] != _FORMAT or zlib.crc32(said["plans"].encode()) != said["crc32"]:
            raise ValueError("another format, or changed")
        return {name: _unpacked(values) for name, values in json.loads(said["plans"]).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from error


def _packed(plan: ItemPlan) -> dict[str, object]:
    """Write each shape once: there are few of them, and many items."""
    shapes = sorted(set(plan.shapes.values()), key=str)
    numbers = {shape: number for number, shape in enumerate(shapes)}
    items = [[number, numbers[shape]] for number, shape in sorted(plan.shapes.items())]
    return {"lists": plan.lists, "shapes": [astuple(shape) for shape in shapes], "items": items}


def _unpacked(values: Mapping) -> ItemPlan:
    shapes = [Shape(tuple(size), frames, fps) for size, frames, fps in values["shapes"]]
    return ItemPlan(values["lists"], {number: shapes[which] for number, which in values["items"]})
