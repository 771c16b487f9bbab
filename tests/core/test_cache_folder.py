"""Where the thought cache lies, and who can read it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from o1_retriever.cache import ThoughtCache, default_cache_path
from o1_retriever.cache.sqlite import default_for
from o1_retriever.errors import CacheError
from tests.support.caches import FILE, vector

# Where it lies ---------------------------------------------------------------------------------------


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o777])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="no POSIX modes")
def test_nobody_else_can_read(tmp_path, umask):
    folder = tmp_path / "new" / "cache"
    with ThoughtCache(folder) as cache:
        cache.put_vectors([(b"k", vector(1))])
        os.umask(0o022)
        assert mode(folder) == mode(folder.parent) == 0o700
        modes = {file.name: mode(file) for file in folder.iterdir()}
    if umask != 0o777:
        assert set(modes) >= {FILE, f"{FILE}-wal", f"{FILE}-shm"}
        assert set(modes.values()) == {0o600}


@pytest.mark.skipif(os.name == "nt", reason="no POSIX modes")
def test_a_folder_that_was_there_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "notes.txt").write_text("mine")
    with ThoughtCache(tmp_path):
        assert mode(tmp_path) == 0o755
        assert mode(tmp_path / FILE) == 0o600


@pytest.mark.skipif(os.name == "nt", reason="no POSIX modes")
def test_the_default_folder_is_closed_even_if_something_else_created_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("O1_RETRIEVER_CACHE")
    folder = default_cache_path()
    folder.mkdir(mode=0o755, parents=True)
    assert mode(folder) == 0o755
    with ThoughtCache() as cache:
        assert cache.path == folder
        assert mode(folder) == 0o700


def test_the_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("O1_RETRIEVER_CACHE", str(tmp_path / "mine"))
    assert default_cache_path() == tmp_path / "mine"
    with ThoughtCache() as cache:
        assert cache.path == tmp_path / "mine"
        assert (tmp_path / "mine" / FILE).exists()
    monkeypatch.delenv("O1_RETRIEVER_CACHE")
    assert default_cache_path().is_absolute()
    assert default_cache_path().name == "o1-retriever"


def test_the_default_of_each_platform():
    home = Path("~")
    assert default_for("linux", {}) == home / ".cache" / "o1-retriever"
    assert default_for("linux", {"XDG_CACHE_HOME": "/var/me"}) == Path("/var/me/o1-retriever")
    assert default_for("linux", {"XDG_CACHE_HOME": "relative"}) == home / ".cache" / "o1-retriever"
    assert default_for("linux", {"O1_RETRIEVER_CACHE": "here", "XDG_CACHE_HOME": "/x"}) == Path("here")
    assert default_for("darwin", {"XDG_CACHE_HOME": "/x"}) == home / "Library" / "Caches" / "o1-retriever"
    assert default_for("win32", {"LOCALAPPDATA": "/L"}) == Path("/L/o1-retriever")
    assert default_for("win32", {}) == home / "AppData" / "Local" / "o1-retriever"


def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThoughtCache("cache") as cache:
        cache.put_vectors([(b"k", vector(1))])
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        cache._db.release()
        assert cache.get_vectors([b"k"])[0] is not None
        assert cache.path == tmp_path / "cache"


@pytest.mark.parametrize("name", ["file", "file/below", "link", "nul\x00", "x" * 300, "directory", ""])
def test_a_folder_that_cannot_be_one_is_an_error_that_helps(tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deep")
    (tmp_path / "directory" / FILE).mkdir(parents=True)
    with pytest.raises(CacheError) as caught:
        ThoughtCache(tmp_path / name if name else "")
    assert "cache=False" in str(caught.value)
    assert (tmp_path / "file").read_text() == "in the way"


AS_NOBODY = """
import os, sys
from o1_retriever.cache import ThoughtCache
from o1_retriever.errors import CacheError
if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)
try: ThoughtCache(sys.argv[1])
except CacheError as error: print(error)
else: print("opened")
"""


HOMELESS = """
import os, sys
from o1_retriever.cache import ThoughtCache
from o1_retriever.errors import CacheError
os.setgroups([]); os.setgid(54321); os.setuid(54321); os.environ.clear()
print(ThoughtCache(sys.argv[1]).info().thoughts)
try: ThoughtCache()
except CacheError as error: print(error)
"""


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become a stranger")
def test_a_user_without_a_home_needs_a_named_folder(root):
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o777)
        command = [sys.executable, "-c", HOMELESS, str(Path(top) / "cache")]
        out = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert out.stdout.startswith("0\n"), out.stderr
    assert out.stdout.strip().endswith("Set O1_RETRIEVER_CACHE to a folder.")


@pytest.mark.skipif(os.name == "nt", reason="no POSIX modes")
@pytest.mark.parametrize("below", ["", "new"])
def test_a_folder_without_permission_is_an_error_that_helps(root, below):

    with tempfile.TemporaryDirectory() as top:  # pytest's own folders are closed to other users
        Path(top).chmod(0o755)
        locked = Path(top) / "locked"
        locked.mkdir(mode=0o555)
        out = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(locked / below)], cwd=root, capture_output=True, text=True
        )
    reason = "Permission denied" if below else "it is not writable"
    assert f"cannot be used: {reason}" in out.stdout, out.stderr
    assert "cache=False" in out.stdout
