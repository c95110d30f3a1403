"""One process at a time trains in a run's folder."""

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO

from mg.errors import UserError
from mg.log import get_logger

LOCK = ".lock"


def lock_folder(folder: Path) -> TextIO:
    """Keep other processes out of a run's folder until the file returned is closed or this process ends, however.

    Raises:
        UserError: another process has it; the message says which.
    """
    file = open(folder / LOCK, "a+", encoding="utf-8")  # not emptied: what stands there is the other one's
    try:
        # A lock of the process, not of the file opened: it is also known to other machines of a network disk.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise UserError(f"--output_path={folder}: {holder} is training there; stop it (touch {folder}/STOP), or "
                            "choose another folder") from error
        get_logger().warning(f"{folder}: cannot be locked ({error.strerror}); start no second training there")
        return open(os.devnull)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
