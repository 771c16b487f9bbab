"""Bringing an index to the state of a folder, also when the process is killed on the way."""

from __future__ import annotations

import os
import random
import shutil
import time

import pytest

from o1_retriever.documents import Chunking
from o1_retriever.errors import DocumentError, InputError, SettingsError
from o1_retriever.index.folder import FolderOptions, sync_folder
from o1_retriever.index.index import Index
from tests.support.index_worker import OPTIONS, TinyEmbedder, answers, contents, finish, numbered, worker


@pytest.fixture
def embedder():
    return TinyEmbedder()


@pytest.fixture
def index(tmp_path, embedder):
    with Index(tmp_path / "index", embedder) as index:
        yield index


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "notes"
    write(folder, "tea.md", "# Tea\n\nSteep the leaves.\n\n## Green\n\nAt 70 degrees.")
    write(folder, "deep/er/coffee.txt", "Grind the beans.")
    write(folder, "page.html", "<title>Page</title><p>Water boils.</p>")
    write(folder, "rows.jsonl", '{"_id": "1", "text": "A row."}\n{"_id": "2", "text": "Another row."}\n')
    return folder


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def texts(index):
    return sorted(document.text for document in index.documents())


def counts(report):
    return report.added, report.removed, report.unchanged, report.new, report.changed, report.same


def test_a_folder_is_indexed_with_sources_and_titles(index, folder, embedder):
    report = sync_folder(index, folder)
    assert counts(report) == (6, 0, 0, 4, 0, 0)
    assert report.files == 4
    assert (report.root, report.vanished, report.skipped, report.ignored) == (str(folder), [], [], {})
    (hits,) = index.search([embedder.vector("# Tea\n\nSteep the leaves.")], k=1, where={"source": "tea.md"})
    assert hits[0].source == "tea.md"
    assert hits[0].metadata["title"] == "Tea"
    assert {document.metadata["source"] for document in index.documents()} == {
        *("tea.md", "deep/er/coffee.txt", "page.html", "rows.jsonl")
    }
    assert index.info().roots == {str(folder): 4}


def test_again_changes_nothing(index, folder, embedder):
    sync_folder(index, folder)
    before, generation = contents(index), index.generation
    embedder.texts.clear()
    assert counts(sync_folder(index, str(folder) + os.sep)) == (0, 0, 6, 0, 0, 4)
    assert (contents(index), index.generation, embedder.texts) == (before, generation, [])


def test_changed_files_lose_their_old_documents(index, folder, embedder):
    sync_folder(index, folder)
    embedder.texts.clear()
    write(folder, "deep/er/coffee.txt", "Roast the beans.")
    write(folder, "rows.jsonl", '{"_id": "2", "text": "Another row."}\n')
    report = sync_folder(index, folder)
    assert counts(report) == (2, 3, 3, 0, 2, 2)
    assert "Roast the beans." in texts(index)
    assert not {"Grind the beans.", "A row."} & set(texts(index))
    assert embedder.texts == ["Roast the beans."], "a text that moved keeps its vector"


def test_a_changed_title_or_field_reaches_the_index(index, folder):
    sync_folder(index, folder)
    write(folder, "rows.jsonl", '{"_id": "9", "text": "A row."}\n{"_id": "2", "text": "Another row."}\n')
    assert counts(sync_folder(index, folder)) == (1, 0, 5, 0, 1, 3)
    assert index.ids({"_id": "9"})
    assert not index.ids({"_id": "1"})


def test_vanished_files_are_reported_and_removed_only_when_asked(index, folder):
    sync_folder(index, folder)
    (folder / "page.html").unlink()
    shutil.rmtree(folder / "deep")
    report = sync_folder(index, folder)
    assert report.vanished == ["deep/er/coffee.txt", "page.html"]
    assert (report.removed, report.pruned, len(index)) == (0, False, 6)
    report = sync_folder(index, folder, prune=True)
    assert (report.removed, report.pruned, len(index)) == (2, True, 4)
    assert sync_folder(index, folder).vanished == []


def test_a_folder_that_has_become_empty_can_be_pruned(index, folder):
    sync_folder(index, folder)
    shutil.rmtree(folder)
    folder.mkdir()
    assert len(sync_folder(index, folder).vanished) == 4
    assert sync_folder(index, folder, prune=True).removed == 6
    with pytest.raises(DocumentError, match="found no files"):
        sync_folder(index, folder)


def test_folders_do_not_touch_each_other(index, folder, tmp_path):
    other = tmp_path / "other"
    write(other, "tea.md", "# Tea\n\nSteep the leaves.")
    index.add(numbered(3))
    sync_folder(index, folder)
    assert counts(sync_folder(index, other, prune=True)) == (1, 0, 0, 1, 0, 0)
    assert len(index) == 3 + 6 + 1, "the same file in two folders is two documents"
    (folder / "tea.md").unlink()
    assert sync_folder(index, folder, prune=True).removed == 2
    assert len(index) == 3 + 4 + 1


def test_a_moved_folder_is_another_one_but_embeds_nothing(index, folder, embedder, tmp_path):
    sync_folder(index, folder)
    embedder.texts.clear()
    folder.rename(tmp_path / "moved")
    assert sync_folder(index, tmp_path / "moved").added == 6
    assert embedder.texts == []
    assert index.delete(where={"root": str(folder)}) == 6


def test_a_named_folder_may_move(index, folder, tmp_path):
    options = FolderOptions(name="notes")
    sync_folder(index, folder, options=options)
    folder.rename(tmp_path / "moved")
    report = sync_folder(index, tmp_path / "moved", options=options)
    assert (report.root, counts(report)) == ("notes", (0, 0, 6, 0, 0, 4))


def test_unreadable_files_are_reported_skipped_and_kept(index, folder):
    sync_folder(index, folder)
    write(folder, "tea.md", b"\x7fELF\0\0")
    write(folder, "picture.txt", b"\x89PNG\0\0")
    write(folder, "broken.pdf", b"%PDF-1.4 nothing")
    write(folder, "empty.txt", b" \n")
    write(folder, "page.html", b"")
    (folder / "nowhere.txt").symlink_to(folder / "gone.txt")
    os.mkfifo(folder / "pipe.txt")
    write(folder, "new.txt", "Something new.")
    report = sync_folder(index, folder, prune=True)
    assert [name for name, _ in report.skipped] == [
        *("broken.pdf", "empty.txt", "nowhere.txt", "page.html", "picture.txt", "pipe.txt", "tea.md")
    ]
    reasons = dict(report.skipped)
    assert "binary" in reasons["picture.txt"]
    assert "link to nothing" in reasons["nowhere.txt"]
    assert reasons["empty.txt"] == reasons["page.html"] == "it has no text."
    assert report.vanished == [], "what cannot be read has not vanished"
    assert "Something new." in texts(index)
    assert "# Tea\n\nSteep the leaves." in texts(index)
    assert "Page\n\nWater boils." not in texts(index)


def test_a_folder_that_cannot_be_listed_keeps_its_documents(index, folder, monkeypatch):
    sync_folder(index, folder)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = sync_folder(index, folder, prune=True)
    assert report.skipped == [("deep", "the folder cannot be read (Permission denied).")]
    assert (report.vanished, len(index)) == ([], 6)


def test_names_that_are_not_utf8_are_reported(index, folder):
    try:
        (folder / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    except OSError:
        pytest.skip("this file system takes only names in UTF-8")
    report = sync_folder(index, folder)
    assert [name for name, _ in report.skipped] == ["caf\\udce9.txt"]
    assert len(index) == 6


def test_hidden_linked_and_installed_folders_and_the_index_itself_are_passed_over(folder, embedder):
    for name in (".hidden/a.txt", "node_modules/x/a.md", "__pycache__/a.py", ".secret.txt", "venv/a.py"):
        write(folder, name, "never")
    write(folder, "picture.PNG", b"\0")
    write(folder, "Makefile", "all:")
    (folder / "loop").symlink_to(folder)
    (folder / "deep" / "linked.txt").symlink_to(folder / "tea.md")
    with Index(folder / "index", embedder) as index:
        write(folder, "index/documents/stray.txt", "never")
        report = sync_folder(index, folder)
        assert "never" not in texts(index)
        assert len(index.ids_by_source(str(folder))) == 6
    assert report.ignored == {".png": 1}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": ("*.md", "*.html")}, {"tea.md", "page.html"}),
        ({"include": ("deep/*",)}, {"deep/er/coffee.txt"}),
        ({"include": ("er",)}, {"deep/er/coffee.txt"}),
        ({"exclude": ("deep", "*.jsonl")}, {"tea.md", "page.html"}),
        ({"exclude": ("deep/er/*",)}, {"tea.md", "page.html", "rows.jsonl"}),
    ],
)
def test_patterns(index, folder, options, expected):
    sync_folder(index, folder, options=FolderOptions(**options))
    assert set(index.ids_by_source(str(folder))) == expected


def test_other_lengths_of_passages_replace_all(index, folder):
    write(folder, "long.txt", "A sentence of some length. " * 20)
    sync_folder(index, folder)
    report = sync_folder(
        index, folder, options=FolderOptions(chunking=Chunking(max_characters=100, overlap=0))
    )
    assert report.changed == 1
    assert {len(text) <= 100 for text in texts(index)} == {True}


def test_a_folder_that_cannot_be_used_is_an_error_in_one_line(index, tmp_path, folder):
    write(tmp_path, "others/a.xyz", "x")
    write(tmp_path, "others/b.xyz", "x")
    for path, message in [
        (tmp_path / "none", "there is no such folder"),
        (folder / "tea.md", "it is a file; expected a folder"),
        (tmp_path / "others", r"found only other kinds of files \(2 .xyz\); expected some of .txt"),
    ]:
        with pytest.raises(DocumentError, match=message) as caught:
            sync_folder(index, path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="name of the folder is only whitespace"):
        sync_folder(index, folder, options=FolderOptions(name=" "))
    with pytest.raises(SettingsError, match="expected a tuple of patterns"):
        FolderOptions(include="*.md")


def test_a_megabyte_in_one_line_is_indexed(index, folder):
    write(folder, "long.txt", "word " * 200_000)
    assert sync_folder(index, folder, options=FolderOptions(batch_size=256)).added > 1000


def test_the_progress_bars(index, folder, capfd):
    sync_folder(index, folder, show_progress_bar=True)
    shown = capfd.readouterr().err
    assert "4/4" in shown
    assert "6 passages" in shown


def fill(folder, chance):
    """A folder in some state: files of many passages that share texts."""
    shutil.rmtree(folder, ignore_errors=True)
    for number in chance.sample(range(12), 9):
        lines = [f"Sentence {chance.randrange(300)} of a note." for _ in range(chance.randrange(5, 60))]
        write(folder, f"{number % 3}/{number}.txt", "\n\n".join(lines))


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_point_and_run_again_ends_as_if_never_killed(tmp_path, embedder, seed):
    chance = random.Random(seed)
    folder, killed_path = tmp_path / "notes", tmp_path / "killed"
    before: set[str] = set()
    for round_number in range(2):
        fill(folder, chance)
        kept = {path.relative_to(folder).as_posix() for path in folder.rglob("*.txt")}
        for _ in range(2):
            process = worker(killed_path, folder, 0)
            time.sleep(chance.random() * 0.5)
            process.kill()
            process.join()
            with Index(killed_path, embedder) as index:
                sources = set(index.ids_by_source(str(folder)))
                assert kept & before <= sources, "a file that stays is never without documents"
        finish(worker(killed_path, folder, 0))
        before = kept
        with (
            Index(tmp_path / f"whole{round_number}", embedder) as whole,
            Index(killed_path, embedder) as killed,
        ):
            sync_folder(whole, folder, options=OPTIONS)
            assert contents(killed) == contents(whole)
            assert answers(killed) == answers(whole)
