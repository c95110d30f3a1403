"""What was done with a list of videos to encode, joined from the reports of all processes."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path

from mg.config.encode_latents import EncodeLatentsConfig
from mg.dataset.buckets import Bucket
from mg.dataset.latents import LatentRecord
from mg.errors import NoGoodClip
from mg.files import write_json
from mg.pipelines.latent_moments import LatentMoments
from mg.pipelines.shares import Share, in_order

LISTED = 1000
"""Videos that could not be used and are listed in the summary; of the others it has the number."""
_COUNTS = ("rows", "encoded", "duplicates", "reused", "skipped")


def summary_path(folder: Path, config: EncodeLatentsConfig) -> Path:
    """Return where the summary of the config's shard belongs."""
    i, n = config.part
    return folder / ("summary.json" if n == 1 else f"summary-{i}of{n}.json")


def write_summary(config: EncodeLatentsConfig, record: LatentRecord, folder: Path, share: Share) -> dict:
    """Join what the processes have left in their shares; the one that leads writes it.

    Raises:
        NoGoodClip: not one video could be used.
    """
    share.wait()
    found = share.collect()
    counts, shapes, moments = Counter(), Counter(), LatentMoments()
    for part, _ in found:
        counts.update(part["counts"])
        shapes.update({Bucket(*size): number for size, number in part["shapes"]})
        moments.join(part["moments"])
    bad = in_order(found, "bad")[:LISTED]
    report = {name: counts[name] for name in _COUNTS}
    report |= {"bad": bad, "shapes": {str(bucket): number for bucket, number in sorted(shapes.items())}}
    report["statistics"] = {"mean": moments.mean, "std": moments.std()} if moments.count else None
    report |= {"tae": asdict(record), "config": asdict(config)}
    if share.leads:
        path = summary_path(folder, config)
        write_json(path, report)
        if counts["skipped"] and counts["skipped"] == counts["rows"]:
            first = f"{bad[0]['video']}: {bad[0]['error']}"
            raise NoGoodClip(f"none of the {counts['rows']} videos could be read ({first}); see {path}")
    return report
