"""File systems in memory that fail as remote ones do; registered with fsspec as flaky:// and lossy://."""

from pathlib import Path

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class DriverError(Exception):
    """Drivers raise errors of their own kinds, which are no OSError."""


class Flaky(MemoryFileSystem):
    """The next `failures` writes raise `error`; `written` lists the names of files in order.

    Reading a path with `unreadable` in it raises DriverError; the next `torn` files fetched lose their last byte.
    """

    protocol = "flaky"
    store: dict = {}
    pseudo_dirs = [""]
    failures = 0
    error: type = OSError
    written: list = []
    unreadable: str | None = None
    torn = 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace(f"{cls.protocol}://", "memory://"))

    def put_file(self, lpath, rpath, **options):
        self.fail(rpath)
        super().put_file(lpath, rpath, **options)

    def pipe_file(self, path, value, **options):
        self.fail(path)
        super().pipe_file(path, value, **options)

    def info(self, path, **options):
        self.read(path)
        return super().info(path, **options)

    def cat_file(self, path, **options):
        self.read(path)
        return super().cat_file(path, **options)

    def get_file(self, rpath, lpath, **options):
        self.read(rpath)
        super().get_file(rpath, lpath, **options)
        if type(self).torn:
            type(self).torn -= 1
            Path(lpath).write_bytes(Path(lpath).read_bytes()[:-1])

    @classmethod
    def read(cls, path):
        if cls.unreadable is not None and cls.unreadable in path:
            raise DriverError("connection timed out")

    @classmethod
    def fail(cls, path):
        if cls.failures > 0:
            cls.failures -= 1
            raise cls.error("connection reset")
        cls.written.append(path.rpartition("/")[2])


class Lossy(Flaky):
    """Says that all is well, and loses the last byte of the next `losses` files."""

    protocol = "lossy"
    store: dict = {}
    pseudo_dirs = [""]
    written: list = []
    losses = 0

    def put_file(self, lpath, rpath, **options):
        super().put_file(lpath, rpath, **options)
        if type(self).losses:
            type(self).losses -= 1
            MemoryFileSystem.pipe_file(self, rpath, self.cat_file(rpath)[:-1])


def register():
    """Make both known, empty and healthy."""
    for driver in (Flaky, Lossy):
        fsspec.register_implementation(driver.protocol, driver, clobber=True)
        driver.store.clear()
        driver.written.clear()
        driver.pseudo_dirs[:] = [""]
        driver.failures, driver.error = 0, OSError
        driver.unreadable, driver.torn = None, 0
    Lossy.losses = 0
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
