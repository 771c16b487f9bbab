"""Which files of a folder are read, which are not read again, and what the report says of each."""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.documents import writers
from o1_retriever.documents import Chunking, Document, ReadOptions
from o1_retriever.documents.workers import Job, read_files
from o1_retriever.index import folder as folder_module
from o1_retriever.index.files import FILE_TABLE, FolderReport, find_files
from o1_retriever.index.folder import FolderOptions, follow_folder, newer_folders, sync_folder, sync_unread
from o1_retriever.index.index import Index
from tests.support.index_worker import TinyEmbedder


@pytest.fixture
def index(tmp_path):
    with Index(tmp_path / "index", TinyEmbedder()) as index:
        yield index


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


def write(folder, files, *, old=True):
    """Files with their content, as old as files mostly are."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        if old:
            os.utime(path, ns=(time.time_ns() - 10**11, time.time_ns() - 10**11))


def sources(index, folder):
    return set(index.ids_by_source(str(folder)))


def found(folder, **options):
    return {file.source for file in find_files(folder, **options).files}


def test_what_is_installed_or_built_is_passed_over_and_counted(folder) -> None:
    names = ("node_modules", "build", "dist", "env", "venv", "__pycache__", ".git", "x.egg-info")
    write(
        folder,
        {**{f"deep/{name}/a.md": "no" for name in names}, "a.md": "yes", ".env.md": "no", "~$b.docx": "no"},
    )
    result = find_files(folder)
    assert [file.source for file in result.files] == ["a.md"]
    assert sum(result.passed_over.values()) == len(names) + 2
    assert result.passed_over["hidden files and folders"] == 2
    assert result.passed_over["folders called build"] == 1
    assert result.passed_over["locks of open Office files"] == 1
    assert found(folder, ignore=False) == {"a.md", *(f"deep/{n}/a.md" for n in names if n != ".git")}


def test_ignore_files_count_where_they_stand_and_the_inner_one_wins(folder) -> None:
    write(
        folder,
        {
            ".gitignore": "*.log\n/secret/\ndrafts\n# a comment\n",
            ".o1ignore": "!kept.log\n",
            "a.log": "",
            "kept.log": "",
            "secret/a.md": "",
            "sub/secret/a.md": "",
            "sub/drafts/a.md": "",
            "sub/.o1ignore": "*.md\n!b.md\n!c.log\n",
            "sub/b.md": "",
            "sub/c.log": "",
            "sub/d.log": "",
        },
    )
    assert found(folder) == {"kept.log", "sub/b.md", "sub/c.log"}
    assert "a.log" in found(folder, ignore=False)


def test_the_rules_are_those_of_git(folder) -> None:
    lines = ["*.txt", "!keep.txt", "/top.md", "a/**/z.md", "dir/", "sp\\ ace.md", "[ab].rst", "deep/*.rst"]
    write(folder, {".gitignore": "\n".join(lines)})
    names = [
        *(
            "x.txt",
            "keep.txt",
            "a/keep.txt",
            "top.md",
            "a/top.md",
            "a/z.md",
            "a/b/z.md",
            "a/b/c/z.md",
            "dir/x.md",
        ),
        *("b/dir/x.md", "sp ace.md", "a.rst", "c.rst", "deep/c.rst", "deep/e/c.rst"),
    ]
    write(folder, dict.fromkeys(names, "x"))
    subprocess.run(["git", "init", "-q", folder], check=True)
    known = subprocess.run(
        ["git", "ls-files", "-zo", "--exclude-standard"],
        cwd=folder,
        capture_output=True,
        check=True,
        text=True,
    )
    assert found(folder) == set(known.stdout.split("\0")) - {"", ".gitignore"}


def test_files_without_a_suffix_are_read_where_they_hold_text(index, folder) -> None:
    write(folder, {"README": "text", "Makefile": "all:", "tool": b"\x7fELF\0\0\0\0", "x.xyz": "?"})
    report = sync_folder(index, folder)
    assert sources(index, folder) == {"README", "Makefile"}
    assert report.ignored == {".xyz": 1, "programs and other binary files": 1}


def test_a_file_that_has_not_changed_is_not_read_again(index, folder, monkeypatch) -> None:
    write(folder, {"a.md": "# A\none", "b.md": "two", "empty.txt": " ", "cut.docx": b"PK"})
    first = sync_folder(index, folder)
    jobs = []
    monkeypatch.setattr(
        folder_module, "read_files", lambda found, **how: jobs.extend(found) or read_files(found, **how)
    )
    second = sync_folder(index, folder)
    assert jobs == []
    assert (second.same, second.added, second.passages) == (2, 0, 2)
    assert second.skipped == first.skipped
    write(folder, {"b.md": "other"}, old=False)
    third = sync_folder(index, folder)
    assert [job.source for job in jobs] == ["b.md"]
    assert (third.same, third.changed, third.added, third.removed) == (1, 1, 1, 1)


def test_a_folder_without_changes_needs_no_embedder(index, folder, tmp_path) -> None:
    write(folder, {"a.md": "# A\none", "b.md": "# A\none", "c.md": "two", "empty.txt": " ", "x.xyz": "?"})
    options = FolderOptions(embedder="tiny")
    first = sync_folder(index, folder, options=options)
    with Index(tmp_path / "index") as bare:
        again = sync_unread(bare, folder, options=options)
        assert again is not None
        assert (again.same, again.added, again.copies) == (2, 0, first.copies)
        assert (again.skipped, again.ignored) == (first.skipped, first.ignored)
        for other in (
            FolderOptions(embedder="another"),
            FolderOptions(),
            FolderOptions(embedder="tiny", chunking=Chunking(max_characters=100, overlap=0)),
            FolderOptions(embedder="tiny", reading=ReadOptions(boilerplate=True)),
        ):
            assert sync_unread(bare, folder, options=other) is None
        (folder / "c.md").unlink()
        pruned = sync_unread(bare, folder, options=options, prune=True)
        assert pruned is not None
        assert (pruned.vanished, pruned.removed, sources(bare, folder)) == (["c.md"], 1, {"a.md"})
        write(folder, {"d.md": "new"})
        assert sync_unread(bare, folder, options=options) is None
        assert sources(bare, folder) == {"a.md"}
    assert sync_folder(index, folder, options=options).added == 1


class Counting(TinyEmbedder):
    """Remembers how many texts came at once."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def encode_documents(self, documents, **how):
        self.sizes.append(len(documents))
        return super().encode_documents(documents, **how)


def test_what_is_gathered_is_embedded_and_written_together(folder, tmp_path) -> None:
    write(folder, {f"{n}.md": f"# A{n}\none\n# B{n}\ntwo\n# C{n}\nthree" for n in range(10)})
    with Index(tmp_path / "index", embedder := Counting()) as index:
        least, before = index.portion(2), index.generation
        report = sync_folder(index, folder, options=FolderOptions(batch_size=2))
        assert (report.added, sum(embedder.sizes)) == (30, 30)
        assert min(embedder.sizes[:-1]) >= least, "no few that are left over are embedded alone"
        assert index.generation == before + 1 + len(embedder.sizes), "the graph is begun once"


class Weighing(TinyEmbedder):
    """Counts the documents that have come into memory, each time that some are embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.most = self.count(), 0

    @staticmethod
    def count() -> int:
        return sum(type(each) is Document for each in gc.get_objects())

    def encode_documents(self, documents, **how):
        self.texts.clear()
        self.most = max(self.most, self.count() - self.before)
        return super().encode_documents(documents, **how)


@pytest.mark.parametrize("processes", [0, 1])
def test_no_more_documents_are_in_memory_than_are_written_at_once_and_read_ahead(
    folder, tmp_path, processes
) -> None:
    write(folder, {f"{n}.txt": f"Text {n}." for n in range(300)})
    with Index(tmp_path / "index", embedder := Weighing()) as index:
        report = sync_folder(index, folder, options=FolderOptions(batch_size=4, processes=processes))
    assert report.added == 300
    assert embedder.most <= 170, "64 as they were read and as they are kept, and 32 that wait"


def test_a_file_is_read_again_where_its_documents_are_gone_or_it_is_cut_in_another_way(index, folder) -> None:
    write(folder, {"a.md": "One sentence here. Another sentence."})
    sync_folder(index, folder)
    index.delete(where={"source": "a.md"})
    assert sync_folder(index, folder).added == 1
    options = FolderOptions(chunking=Chunking(max_characters=20, overlap=0))
    assert sync_folder(index, folder, options=options).passages == 2
    (index.folder / FILE_TABLE).write_bytes(b"no database at all" * 100)
    assert sync_folder(index, folder, options=options).same == 1, "a damaged table costs a reading"


def test_exact_copies_are_kept_once_and_all_of_them_named(index, folder) -> None:
    write(folder, {"a.md": "same", "deep/b.md": "same", "c.txt": "same", "d.md": "diff"})
    report = sync_folder(index, folder)
    assert report.copies == {"a.md": ["deep/b.md"]}
    assert sources(index, folder) == {"a.md", "c.txt", "d.md"}
    assert [each.metadata.get("also_in") for each in index.documents({"source": "a.md"})] == [["deep/b.md"]]
    assert sync_folder(index, folder).same == 3
    (folder / "a.md").unlink()
    report = sync_folder(index, folder)
    assert (report.moved, report.copies, sources(index, folder)) == (
        [("a.md", "deep/b.md")],
        {},
        {"deep/b.md", "c.txt", "d.md"},
    )


def test_a_moved_file_is_noticed_and_keeps_its_vectors(index, folder) -> None:
    write(folder, {"a.md": "one", "b.md": "two"})
    sync_folder(index, folder)
    index._embedder.texts.clear()
    (folder / "deep").mkdir()
    (folder / "a.md").rename(folder / "deep" / "c.md")
    report = sync_folder(index, folder)
    assert (report.moved, report.vanished, report.removed) == ([("a.md", "deep/c.md")], [], 1)
    assert sources(index, folder) == {"deep/c.md", "b.md"}
    assert index._embedder.texts == []


def test_the_report_says_what_became_of_every_file(index, folder, tmp_path) -> None:
    write(
        folder,
        {
            "a.md": "one",
            "b.md": "one",
            "rows.jsonl": '{"text": "x"}\n{',
            "latin.txt": "caf\xe9".encode("latin-1"),
            "invisible.txt": "\u200b\u2060",
            "broken.pdf": b"%PDF-1.4",
            "c.xyz": "x",
            "build/d.md": "x",
            "old.doc": "x",
        },
    )
    report = sync_folder(index, folder)
    assert [(entry.source, entry.status) for entry in report.entries] == [
        *(("a.md", "new"), ("b.md", "copy"), ("broken.pdf", "skipped"), ("invisible.txt", "skipped")),
        *(("latin.txt", "new"), ("old.doc", "skipped"), ("rows.jsonl", "new")),
    ]
    assert "soffice --convert-to docx" in dict(report.skipped)["old.doc"]
    assert dict(report.notes) == {
        "rows.jsonl": "line 2 is not JSON; left out.",
        "latin.txt": "its encoding is a guess: CP1252.",
    }
    assert dict(report.kinds())[".md"] == {"read": 1, "copies": 1, "passages": 1}
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["passages"] == 3
    assert saved["passed_over"] == {"folders called build": 1}
    assert [entry["reason"] for entry in saved["entries"] if entry["source"] == "invisible.txt"] == [
        "it has no text."
    ]


def test_the_index_says_when_a_folder_is_newer(index, folder) -> None:
    write(folder, {"a.md": "one", "b.md": "one", "c.md": "three"})
    sync_folder(index, folder)
    assert list(newer_folders(index)) == []
    write(folder, {"a.md": "other", "d.md": "new"}, old=False)
    (folder / "c.md").unlink()
    (newer,) = newer_folders(index)
    assert (newer.path, newer.changed, newer.gone) == (folder, 2, 1)
    sync_folder(index, folder)
    assert list(newer_folders(index)) == []


def jobs_of(folder):
    return [
        Job(path=str(folder / file.source), source=file.source, root="r", size=file.size)
        for file in find_files(folder).files
    ]


def read(folder, processes):
    pieces = read_files(jobs_of(folder), chunking=Chunking(), options=ReadOptions(), processes=processes)
    return [(piece.job.source, piece.documents, piece.done, piece.notes, piece.error) for piece in pieces]


def test_processes_read_what_is_read_here_in_the_same_order(folder) -> None:
    write(folder, {f"{n}.md": f"# {n}\n" + "text " * n for n in range(30)})
    write(
        folder, {"long.jsonl": '{"text": "row"}\n' * 1200 + "{", "none.pdf": b"x", "a.docx": writers.docx("")}
    )
    assert read(folder, 2) == read(folder, 0)


@pytest.fixture
def hostile(monkeypatch):
    """A reader that kills its process, hangs or fills memory, as a fault in a library would."""
    code = (
        "import os, time\n"
        "from o1_retriever.documents import readers, workers\n"
        "def bad(source):\n"
        "    what = source.text()\n"
        "    if what == 'crash': os._exit(9)\n"
        "    if what == 'hang': time.sleep(600)\n"
        "    if what == 'fill': bytearray(10**11)\n"
        "    if what == 'fail': raise KeyError('x')\n"
        "    yield from ()\n"
        "readers._READERS['.bad'] = bad\n"
        "workers.serve()\n"
    )
    from o1_retriever.documents import workers

    monkeypatch.setattr(workers, "_SERVE", code)


def test_a_file_that_crashes_hangs_or_fills_memory_costs_itself_alone(hostile, folder, monkeypatch) -> None:
    write(folder, {"a.bad": "crash", "b.bad": "hang", "c.bad": "fill", "d.bad": "fail", "e.md": "kept"})

    def read_here(*names: str) -> tuple[dict[str, str], list[str]]:
        jobs = [Job(path=str(folder / name), source=name, root="", size=5) for name in names]
        pieces = list(read_files(jobs, chunking=Chunking(), options=ReadOptions(), processes=1))
        errors = {piece.job.source: piece.error for piece in pieces if piece.done}
        return errors, [document.text for piece in pieces for document in piece.documents]

    errors, texts = read_here("a.bad", "c.bad", "d.bad", "e.md")
    assert "crashed (exit status 9)" in errors["a.bad"]
    assert "needs more than 2 GB" in errors["c.bad"]
    assert "failed (KeyError: 'x')" in errors["d.bad"]
    assert texts == ["kept"]
    with monkeypatch.context() as patch:  # a patience that a process may need to begin with
        patch.setattr("o1_retriever.documents.workers._PATIENCE_S", 1.0)
        errors, _ = read_here("b.bad")
    assert "said nothing for 1 seconds" in errors["b.bad"]
    assert read_here("e.md")[1] == ["kept"]


def test_whoever_stops_listening_ends_the_processes(folder) -> None:
    write(folder, {f"{n}.txt": "text " * 20000 for n in range(20)})
    before = children()
    pieces = read_files(jobs_of(folder), chunking=Chunking(), options=ReadOptions(), processes=2)
    next(pieces)
    assert len(children() - before) == 2
    pieces.close()
    assert children() == before


def children() -> set[str]:
    return {
        child for each in Path("/proc/self/task").glob("*/children") for child in each.read_text().split()
    }


STOPPED = """
import sys
from o1_retriever.index.files import FolderReport
from o1_retriever.index.folder import follow_folder, sync_folder
from o1_retriever.index.index import Index
from tests.support.index_worker import TinyEmbedder
with Index(sys.argv[1], TinyEmbedder(delay=0.5)) as index:
    print("open", flush=True)
    report = sync_folder(index, sys.argv[2])
    print(report.added, report.passages)
"""


@pytest.mark.long
def test_a_run_that_is_stopped_goes_on_where_it_was(folder, tmp_path) -> None:
    write(
        folder,
        {
            f"{n:03}.md": "\n\n".join(f"Paragraph {n} {m}. " + "word " * 150 for m in range(4))
            for n in range(150)
        },
    )
    command = [sys.executable, "-c", STOPPED, tmp_path / "index", folder]
    added = [0]
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with Index(tmp_path / "index") as index:
            while index.count() == added[-1]:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            added.append(index.count())
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250)
    last, passages = map(int, run.stdout.split()[1:])
    assert 0 < added[1] < added[2] < passages
    assert last <= passages - added[2], "what was embedded is not embedded again"
    with Index(tmp_path / "index") as index:
        assert index.count() == passages == 600


def test_a_folder_is_followed(index, folder) -> None:
    write(folder, {"a.md": "one"})
    stop = threading.Event()
    reports: queue.Queue[FolderReport] = queue.Queue()

    def follow() -> None:
        for report in follow_folder(index, folder, stop=stop):
            reports.put(report)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        assert reports.get(timeout=200).added == 1
        write(folder, {"b.md": "two", ".hidden.md": "no"}, old=False)
        assert reports.get(timeout=200).added == 1
        (folder / "a.md").unlink()
        assert reports.get(timeout=200).vanished == ["a.md"]
        assert sources(index, folder) == {"b.md"}
    finally:
        stop.set()
        thread.join(200)
    assert not thread.is_alive()


def test_processes_have_nothing_to_do_where_nothing_has_changed(index, folder) -> None:
    write(folder, {"a.txt": "One."})
    options = FolderOptions(processes=1)
    assert sync_folder(index, folder, options=options).new == 1
    assert sync_folder(index, folder, options=options).same == 1


@pytest.mark.parametrize("trouble", ["held", "a folder", "no table"])
def test_files_are_indexed_whatever_becomes_of_the_table_of_readings(
    index, folder, trouble, monkeypatch, caplog
) -> None:
    write(folder, {"a.txt": "One.", "b.txt": "Two."})
    sync_folder(index, folder)
    table = index.folder / FILE_TABLE
    holder = sqlite3.connect(table, isolation_level=None)
    monkeypatch.setattr("o1_retriever.index.files._PATIENCE_S", 0.01)
    if trouble == "held":
        holder.execute("BEGIN EXCLUSIVE")
    elif trouble == "a folder":
        table.unlink()
        table.mkdir()
    else:
        holder.execute("DROP TABLE files")
        holder.execute("CREATE TABLE files (nonsense)")
    write(folder, {"c.txt": "Three."})
    report = sync_folder(index, folder, prune=True)
    assert (report.new, report.same, report.removed) == (1, 2, 0)
    assert list(newer_folders(index)) == []
    assert ("What was read is not noted" in caplog.text) == (trouble != "no table")
    holder.close()
    if trouble == "held":  # what another process holds is not thrown away
        assert sync_folder(index, folder).same == 3
        with closing(sqlite3.connect(table)) as opened:
            assert opened.execute("SELECT count(*) FROM files").fetchone() == (3,)
