"""The model to measure: a checkpoint, a model of the package, or a published size with random weights."""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cgpt.checkpoint.locate import SYNTH, locate
from cgpt.checkpoint.sizes import SIZES
from cgpt.models import synth
from cgpt.models.description import describe

Progress = Callable[[int, int], None]


@contextmanager
def checkpoint(
    name_or_dir: str,
    keep: str | None,
    say: Callable[[str], None],
    progress: Progress | None = None,
    revision: str | None = None,
) -> Iterator[Path]:
    """The directory of a model's files, as locate() finds it. A published size is written with random weights: into
    keep/<size>, where it stays and is found the next time, or else for as long as the context lasts, also if Ctrl-C or
    SIGTERM ends it. InputError for a disk too full."""
    if os.path.isdir(name_or_dir) or name_or_dir.removeprefix(SYNTH) not in SIZES:
        yield locate(name_or_dir, revision)
        return
    name_or_dir = name_or_dir.removeprefix(SYNTH)
    gigabytes = f"{describe(name_or_dir)['bytes']['disk'] / 1e9:.1f} GB"
    if keep is not None:
        directory = Path(keep, name_or_dir)
        if directory.is_dir() and any(directory.iterdir()):
            say(f"{name_or_dir}: random weights of {directory}")
        else:
            say(f"{name_or_dir}: writing {gigabytes} of random weights to {directory}, to stay")
            synth.write(name_or_dir, directory, progress=progress)
        yield directory
        return
    with _terminable(), tempfile.TemporaryDirectory(prefix="cgpt-bench-") as temporary:
        directory = Path(temporary, name_or_dir)
        say(f"{name_or_dir}: writing {gigabytes} of random weights to {directory} until the end (--keep DIR, TMPDIR)")
        synth.write(name_or_dir, directory, progress=progress)
        yield directory


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the program by an exception, so that what is temporary is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
