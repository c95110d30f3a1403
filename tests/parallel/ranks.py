"""Runs every check on this rank under msrun and writes what it found; as a program: ranks.py FOLDER [NAME...].

The checks are those of the module MG_TEST_CHECKS, or of `checks`.
"""

import importlib
import json
import os
import time
import traceback
from pathlib import Path

from mg.config import cli

checks = importlib.import_module(os.environ.get("MG_TEST_CHECKS", "checks"))


def main(argv: list[str]) -> None:
    folder, wanted = Path(argv[0]), argv[1:]
    os.environ["MG_TEST_FOLDER"] = str(folder)
    (folder / f"pid-{os.getpid()}").write_text(str(os.getpid()))
    from mg import device
    from mg.parallel.groups import join_world

    device.setup("CPU", "graph")
    rank, world = join_world()
    failed = False
    with open(folder / f"result-{rank}.jsonl", "w") as out:
        for name, check in checks.of(world).items():
            if wanted and not any(part in name for part in wanted):
                continue
            start = time.perf_counter()
            device.setup("CPU", "graph")  # a check may have left another mode
            try:
                check(rank)
                found = "equal"
            except Exception:  # noqa: BLE001 - whatever a check meets is its finding; the other ranks may be waiting
                found = traceback.format_exc()
                failed = True
            out.write(json.dumps({"check": name, "found": found}) + "\n")
            out.flush()
            print(f"{name}: {time.perf_counter() - start:.1f} s {found if found != 'equal' else ''}", flush=True)
            if failed:
                break  # the members of a group may be out of step from here on
    (folder / f"pid-{os.getpid()}").unlink()


if __name__ == "__main__":
    cli.run(main)
