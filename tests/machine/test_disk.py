"""The disk's rate: what is read, how, and what happens where that is refused. No test asks how fast this disk is."""

import errno
import os

import pytest

from cgpt.errors import InputError
from cgpt.machine import disk
from cgpt.machine.disk import ALIGN, DiskRate, disk_rate


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(os.urandom(10 * ALIGN + 7))
    return path


@pytest.fixture
def reads(monkeypatch):
    """(offset, bytes got) of every read."""
    seen, preadv = [], os.preadv

    def watched(file, buffers, offset):
        got = preadv(file, buffers, offset)
        seen.append((offset, got))
        return got

    monkeypatch.setattr(os, "preadv", watched)
    return seen


@pytest.mark.parametrize("readers", [1, 3])
def test_reads_whole_requests_at_many_places(readers, file, reads):
    found = disk_rate(file, 0.05, request_bytes=2 * ALIGN - 1, readers=readers)
    assert (found.request_bytes, found.readers) == (2 * ALIGN, readers)
    assert found.bytes_per_second > 0
    if found.direct and hasattr(os, "O_DIRECT"):
        assert reads.pop(0) == (0, ALIGN)  # the trial
    assert len(reads) >= readers
    assert {offset % ALIGN for offset, _ in reads} == {0}
    assert {offset // ALIGN for offset, _ in reads} <= set(range(9))
    assert {got for _, got in reads} == {2 * ALIGN}
    assert len(reads) < 20 or len(set(reads)) > 1


def test_counts_what_was_read_in_the_time(file, monkeypatch):
    clock = iter([10.0, 11.0, 12.0, 12.5])  # begin, after each of two reads, end
    monkeypatch.setattr(disk.time, "perf_counter", lambda: next(clock))
    assert disk_rate(file, 2.0, request_bytes=ALIGN, readers=1).bytes_per_second == 2 * ALIGN / 2.5


@pytest.mark.parametrize("size", [1, ALIGN, ALIGN + 1])
def test_a_file_smaller_than_a_request(size, tmp_path, reads):
    (tmp_path / "small").write_bytes(b"x" * size)
    found = disk_rate(tmp_path / "small", 0.001, readers=1)
    assert found.request_bytes == -(-size // ALIGN) * ALIGN
    assert reads[-1] == (0, size)


@pytest.mark.parametrize("refused", ["open", "read"])
def test_through_the_cache_where_direct_reads_are_refused(refused, file, monkeypatch):
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("this system has no O_DIRECT")
    opened, preadv, dropped, direct = os.open, os.preadv, [], set()

    def open_(path, flags, *rest, **how):
        if flags & os.O_DIRECT and refused == "open":
            raise OSError(errno.EINVAL, "Invalid argument")
        descriptor = opened(path, flags, *rest, **how)
        if flags & os.O_DIRECT:
            direct.add(descriptor)
        else:
            direct.discard(descriptor)  # the number is used again
        return descriptor

    def preadv_(descriptor, buffers, offset):
        if descriptor in direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        assert dropped[-1] == (offset, 2 * ALIGN, os.POSIX_FADV_DONTNEED)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "preadv", preadv_)
    monkeypatch.setattr(os, "posix_fadvise", lambda descriptor, *what: dropped.append(what))
    found = disk_rate(file, 0.01, request_bytes=2 * ALIGN, readers=1)
    assert found == DiskRate(found.bytes_per_second, 2 * ALIGN, 1, direct=False)
    assert dropped


def test_closes_the_file(file, tmp_path):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("this system does not list descriptors")
    before = descriptors()
    disk_rate(file, 0.001)
    assert descriptors() == before


@pytest.mark.parametrize("problem", [OSError(errno.EIO, "Input/output error"), 0])
def test_names_a_file_that_fails(problem, file, monkeypatch):
    """An I/O error; the end of the file, where it became shorter."""

    def fail(*_):
        if problem:
            raise problem
        return 0

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(InputError, match=r"model\.safetensors: (Input/output error|it became shorter)"):
        disk_rate(file, 0.01)


def test_refuses_what_is_no_file(file, tmp_path):
    for path, why in {
        tmp_path: "is a directory",
        tmp_path / "none": "No such file",
        os.devnull: "not a regular",
    }.items():
        with pytest.raises(InputError, match=why):
            disk_rate(path)
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="is empty"):
        disk_rate(tmp_path / "empty")
    for numbers in dict(seconds=0), dict(seconds=float("nan")), dict(request_bytes=0), dict(readers=0):
        with pytest.raises(InputError, match=next(iter(numbers))):
            disk_rate(file, **numbers)


def test_refuses_a_file_that_may_not_be_read(file):
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(InputError, match="Permission"):
        disk_rate(file)
