import os
import subprocess
import sys

import pytest

from streamlearn.errors import ResourceError
from streamlearn.shards.directory import DirectoryLock

HOLD = """
import sys, pathlib
from streamlearn.shards.directory import DirectoryLock
lock = DirectoryLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_second_holder_is_told_who_holds_the_directory(tmp_path):
    with DirectoryLock(tmp_path / "out"), pytest.raises(ResourceError) as refused:
        DirectoryLock(tmp_path / "out")
    assert f"process {os.getpid()} on " in str(refused.value)


def test_lock_is_free_after_release(tmp_path):
    first = DirectoryLock(tmp_path)
    first.release()
    first.release()
    DirectoryLock(tmp_path).release()


def test_lock_dies_with_its_process(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ResourceError, match=f"is being written by process {holder.pid} on "):
            DirectoryLock(tmp_path)
        holder.kill()
    DirectoryLock(tmp_path).release()


def test_directory_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ResourceError, match="cannot write in") as refused:
        DirectoryLock(tmp_path / "file" / "out")
    assert refused.value.cause == "Not a directory"
