"""Small files of many kinds, each with what must come out, and the same files damaged."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.documents import writers
from benchmarks.documents.cases import cases
from o1_retriever.documents import SUFFIXES, ReadOptions, read_sections
from o1_retriever.documents.source import decode, looks_binary
from o1_retriever.documents.structure import as_metadata, is_visible
from o1_retriever.errors import DocumentError, SettingsError

CASES = cases()


def test_there_are_enough_cases_under_different_names() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 120


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_file_is_read_rightly(case, tmp_path: Path) -> None:
    assert case.wrong(tmp_path) == ""


def read(path: Path, **options):
    notes: list[str] = []
    return list(read_sections(path, options=ReadOptions(**options), notes=notes)), notes


@settings(max_examples=60)
@given(data=st.binary(max_size=400), suffix=st.sampled_from(SUFFIXES))
def test_whatever_a_file_holds_it_is_read_or_refused(data, suffix, tmp_path) -> None:
    check_readable(tmp_path / f"any{suffix}", data)


@pytest.mark.parametrize("case", [case for case in CASES if len(case.data) > 200], ids=lambda case: case.name)
def test_a_damaged_file_is_read_or_refused(case, tmp_path) -> None:
    chance = random.Random(case.name)
    for _ in range(6):
        data = bytearray(case.data)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        check_readable(tmp_path / case.name, bytes(data))


def check_readable(path: Path, data: bytes) -> None:
    """Sections of valid text, or a reason in one line."""
    path.write_bytes(data)
    try:
        for section in read_sections(path):
            assert is_visible(section.text)
            section.text.encode()
            assert "\0" not in section.text
            for name, value in section.metadata.items():
                f"{name}{value}".encode()
    except DocumentError as error:
        reason = str(error)
    else:
        return
    assert "\n" not in reason


@given(st.text(max_size=60), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_what_is_marked_or_utf8_comes_back(text, codec) -> None:
    text = text.replace("\r", "").replace("\0", "").replace("\ufeff", "")
    data = text.encode(codec)
    found = decode(data)
    if not found.note:
        assert found.text == text or codec == "utf-8"


@given(
    st.binary(max_size=200),
    st.sampled_from([None, "utf-8", "latin1", "x-sjis", "gb2312", "nonsense", "utf-16"]),
)
def test_no_bytes_are_refused_for_their_encoding(data, declared) -> None:
    decode(data, declared).text.encode()
    looks_binary(data)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
names = st.text(max_size=5) | st.sampled_from(
    ["source", "title", "$x", "#", "chroma:document", "\ud800", "a.b"]
)
inner = st.lists(plain, max_size=3) | st.dictionaries(names, plain, max_size=3)


@settings(max_examples=60)
@given(st.dictionaries(names, plain | inner, max_size=4))
def test_any_fields_become_metadata_that_an_index_can_keep(fields) -> None:
    from o1_retriever.index.filters import kept_metadata

    kept = as_metadata(fields)
    assert kept_metadata(kept) == kept


def test_navigation_is_kept_on_request(tmp_path) -> None:
    path = tmp_path / "a.html"
    path.write_text("<nav>Home</nav><p>text</p>")
    assert [section.text for section in read(path)[0]] == ["text"]
    assert [section.text for section in read(path, boilerplate=True)[0]] == ["Home\n\ntext"]


def test_the_field_of_the_text_can_be_named(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "Why?", "text": "no"}\n{"text": "no"}')
    found, notes = read(path, text_field="question")
    assert [(section.text, section.metadata) for section in found] == [("Why?", {"line": 1, "text": "no"})]
    assert notes == ["line 2 is without a text in 'question'; left out."]


def test_a_file_over_the_limit_is_refused_but_rows_are_streamed(tmp_path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 1001)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a row"}\n' * 100)
    with pytest.raises(DocumentError, match=r"more than 1,000 bytes.*--max-megabytes"):
        read(tmp_path / "a.txt", max_bytes=1000)
    assert len(read(tmp_path / "a.jsonl", max_bytes=1000)[0]) == 100
    with pytest.raises(SettingsError, match="max_bytes"):
        ReadOptions(max_bytes=0)


def bomb(size: int) -> dict[str, bytes]:
    return {"word/document.xml": b" " * size}


LAUGHS = "<!DOCTYPE a [<!ENTITY a 'ha'>" + "".join(
    f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 10}'>" for n in range(10)
)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("bomb.docx", lambda: writers.archive(bomb(40_000_000)), "unpacks to 1 files of 40,000,000 bytes"),
        pytest.param(
            "many.docx",
            lambda: writers.archive({f"{n}": "" for n in range(20_001)}),
            "unpacks to 20,001 files",
            marks=pytest.mark.long,
        ),
        ("bomb.txt.gz", lambda: gzip.compress(b"x" * 9_000_000), "more than"),
        ("laughs.xml", lambda: f"{LAUGHS}]><a>&k;</a>".encode(), "expand without bound"),
        (
            "laughs.docx",
            lambda: writers.archive({"word/document.xml": f"{LAUGHS}]><a>&k;</a>"}),
            "declares entities",
        ),
        (
            "laughs.xlsx",
            lambda: writers.archive({"xl/workbook.xml": f"{LAUGHS}]><a>&k;</a>"}),
            "declares entities",
        ),
        (
            "laughs.odt",
            lambda: writers.archive({"content.xml": f"{LAUGHS}]><a>&k;</a>"}),
            "expand without bound",
        ),
        ("deep.json", lambda: b"[" * 1_000_000, "nested too deep"),
    ],
)
def test_what_is_made_to_fill_memory_and_time_is_refused(name, data, message, tmp_path) -> None:
    (tmp_path / name).write_bytes(data())
    start = time.process_time()
    with pytest.raises(DocumentError, match=message):
        read(tmp_path / name, max_bytes=8_000_000)
    assert time.process_time() - start < 10


def test_front_matter_that_stands_for_millions_of_values_is_read_as_text(tmp_path) -> None:
    keys = [f"k{number}" for number in range(60)]
    lines = [f"a: &a {{{', '.join(f'{key}: x' for key in keys)}}}"]
    for outer, inner in zip("bcde", "abcd", strict=True):
        lines.append(f"{outer}: &{outer} {{{', '.join(f'{key}: *{inner}' for key in keys)}}}")
    (tmp_path / "a.md").write_text("\n".join(["---", *lines, "---", "# Title", "text"]))
    start = time.process_time()
    documents, notes = read(tmp_path / "a.md")
    assert "text" in documents[-1].text
    assert ["more than 10,000 values" in note for note in notes] == [True]
    assert time.process_time() - start < 10


ATTRIBUTES = " ".join(f'n{number}="x"' for number in range(30_000))


@pytest.mark.parametrize(
    ("name", "data", "text", "note"),
    [
        (
            "words.eml",
            f"Subject: {'=?utf-8?q?a?= ' * 30_000}\n\nbody",
            "body",
            "'Subject' is longer than 8,000",
        ),
        ("names.eml", f"To: {'<' * 50_000}\nSubject: hi\n\nbody", "hi\n\nbody", "'To' is longer than 8,000"),
        (
            "attributes.xml",
            f"<a {ATTRIBUTES}/>",
            "n0: x",
            "1,000 attributes",
        ),
        ("emphasis.md", f"# {'*a ' * 40_000}\n", "# *a", ""),
        ("keys.md", f"+++\n{'a.' * 40_000}b = 1\n+++\ntext", "+++", "longer than 60,000 characters"),
    ],
)
def test_what_takes_time_by_the_square_is_cut(name, data, text, note, tmp_path) -> None:
    (tmp_path / name).write_text(data)
    start = time.process_time()
    sections, notes = read(tmp_path / name)
    assert sections[0].text.startswith(text)
    assert [note in each for each in notes] == ([True] if note else [])
    assert time.process_time() - start < 10


def test_names_in_an_archive_lead_nowhere(tmp_path) -> None:
    (tmp_path / "secret.xhtml").write_text("<p>secret</p>")
    with zipfile.ZipFile(io.BytesIO(writers.epub("<p>inside</p>"))) as book:
        files = {
            name: book.read(name).replace(b"text/chapter%200", b"../../secret") for name in book.namelist()
        }
    (tmp_path / "book.epub").write_bytes(writers.archive(files))
    found, notes = read(tmp_path / "book.epub")
    assert (found, len(notes)) == ([], 1)
    assert "secret.xhtml' is missing" in notes[0]


def test_an_entity_of_another_file_is_not_fetched(tmp_path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    path = tmp_path / "a.xml"
    path.write_text(
        f"<!DOCTYPE a [<!ENTITY x SYSTEM 'file://{tmp_path}/secret.txt'>]><a><p>open</p><p>&x;</p></a>"
    )
    assert "secret" not in str(read(path))


def test_pipes_devices_and_loops_are_refused_at_once(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    (tmp_path / "endless.txt").symlink_to("/dev/zero")
    for name, message in (
        ("pipe", "no regular file"),
        ("loop", "symbolic links"),
        ("endless", "no regular file"),
    ):
        with pytest.raises(DocumentError, match=message):
            read(tmp_path / f"{name}.txt")


# The peak of this program alone: what the system counts for a process begins with its parent's.
LONG = """
import sys
from o1_retriever.documents import read_sections
notes = []
found = list(read_sections(sys.argv[1], notes=notes))
peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(len(found), notes, int(peak[0].split()[1]) // 1024)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_line_of_a_gigabyte_takes_bounded_memory(tmp_path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(1000):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "after"}\n')
    run = subprocess.run(
        [sys.executable, "-c", LONG, path], capture_output=True, text=True, check=True, timeout=250
    )
    assert run.stdout.startswith("2 ['line 2 is longer than 16,000,000 bytes and was left out.']"), run.stdout
    assert int(run.stdout.split()[-1]) < 400
