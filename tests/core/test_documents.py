"""Reading files and cutting them into passages."""

from __future__ import annotations

import io
import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from o1_retriever.documents import (
    SUFFIXES,
    Chunking,
    Document,
    read_documents,
    read_sections,
    split_passages,
)
from o1_retriever.documents.document import passage_spans, passages
from o1_retriever.errors import DocumentError, InputError, O1RetrieverError, SettingsError

words = st.text(st.sampled_from("abcXYZ。！.!?,\"') \t\n\u2028é中"), max_size=400)


@given(
    text=st.one_of(words, st.text(max_size=300)),
    limit=st.integers(20, 90),
    share=st.floats(0, 0.5),
    code=st.booleans(),
)
@example(text="x" * 200, limit=20, share=0.5, code=False)
@example(text="One. Two. Three. Four. Five. Six. Seven. Eight.", limit=20, share=0.5, code=False)
@example(text="a.\n   " + "b" * 50 + "\n\n\n c", limit=20, share=0.5, code=True)
def test_passages_cover_the_text_in_order_within_the_limit(text, limit, share, code):
    chunking = Chunking(max_characters=limit, overlap=int(limit * share))
    spans = passage_spans(text, chunking, code=code)
    covered: set[int] = set()
    for number, (start, end) in enumerate(spans):
        assert 0 < end - start <= limit
        assert text[start:end].strip()
        covered.update(range(start, end))
        if number:
            before = spans[number - 1]
            assert before[0] < start, "passages move forward"
            assert before[1] < end, "each passage says something new"
            assert before[1] - start <= chunking.overlap, "only so much is repeated"
    assert all(position in covered or char.isspace() for position, char in enumerate(text))


def test_paragraphs_stay_together_while_they_fit():
    text = "First paragraph here.\n\nSecond one here.\n\nA third that does not fit any more."
    assert split_passages(text, max_characters=45, overlap=0) == [
        "First paragraph here.\n\nSecond one here.",
        "A third that does not fit any more.",
    ]


def test_a_long_paragraph_breaks_at_sentence_ends_and_repeats_whole_sentences():
    text = "Water boils at 100 degrees. Ice melts at 0. Salt water freezes lower. Steam is hot."
    assert split_passages(text, max_characters=60, overlap=20) == [
        "Water boils at 100 degrees. Ice melts at 0.",
        "Ice melts at 0. Salt water freezes lower. Steam is hot.",
    ]


def test_what_is_repeated_of_a_table_begins_with_a_row():
    rows = [f"| row {number} | {'x' * 10} |" for number in range(12)]
    first, second = split_passages("\n".join(rows), max_characters=120, overlap=50)[:2]
    assert first.split("\n") == rows[:5]
    assert second.split("\n") == rows[3:8]


def test_a_sentence_does_not_end_before_a_small_letter():
    text = "See e.g. the chapter on heat. " + "Heat flows from hot to cold bodies."
    assert split_passages(text, max_characters=40, overlap=0)[0] == "See e.g. the chapter on heat."


def test_words_longer_than_a_passage_are_cut():
    assert split_passages("x" * 50, max_characters=20, overlap=10) == ["x" * 20, "x" * 20, "x" * 10]


def test_code_keeps_its_indentation():
    text = "if a:\n    first_long_line()\n    second_long_line()\n"
    assert split_passages(text, max_characters=30, overlap=0, code=True) == [
        "if a:\n    first_long_line()",
        "    second_long_line()",
    ]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "x" * 300_000,
            "word " * 60_000,
            ". " * 150_000,
            "." * 300_000,
            "\n" * 300_000,
            " \n" * 150_000,
        ),
        *("a.  " * 75_000, "。" * 300_000, "a.\n" * 100_000, "a. " + " " * 300_000 + "b"),
    ],
)
@pytest.mark.parametrize("code", [False, True])
def test_a_long_text_takes_linear_time(text, code):
    start = time.process_time()
    passages = split_passages(text, code=code)
    assert time.process_time() - start < 2
    assert all(len(passage) <= 800 for passage in passages)


@pytest.mark.parametrize(
    "options", [{"max_characters": 19}, {"overlap": 401}, {"overlap": -1}, {"max_characters": 50.0}]
)
def test_chunking_out_of_range_is_refused(options):
    with pytest.raises(SettingsError, match=next(iter(options))):
        Chunking(**options)


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path):
    return [(section.metadata.get("title"), section.text) for section in read_sections(path)]


@pytest.mark.parametrize(
    "data",
    [
        "Grüße\nzwei".encode(),
        b"\xef\xbb\xbf" + "Grüße\nzwei".encode(),
        "Grüße\r\nzwei".encode("utf-16"),
        b"\xfe\xff" + "Grüße\rzwei".encode("utf-16-be"),
        "Grüße\nzwei".encode("utf-32"),
    ],
    ids=["utf-8", "utf-8 with mark", "utf-16-le", "utf-16-be", "utf-32"],
)
def test_text_is_read_in_its_encoding_with_plain_line_ends(tmp_path, data):
    assert read(write(tmp_path, "a.TXT", data)) == [(None, "Grüße\nzwei")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.md", b"GIF89a\0\0", "looks binary"),
        ("README", b"\x7fELF\2\1\1\0\0\0", "looks binary"),
        ("a.docx", b"PK", "no intact archive"),
        ("a.docx", b"\xd0\xcf\x11\xe0rest", "encrypted, or of an Office before 2007"),
        ("a.xyz", b"text", "suffix '.xyz' is unknown; expected one of .*.jsonl"),
        ("a.doc", b"text", "^[^,]*.doc is not read; expected docx.*soffice --convert-to docx"),
        ("a.pdf", b"no pdf at all", "cannot be read as PDF"),
        ("a.pdf", b"", "cannot be read as PDF"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        (
            "a.jsonl",
            b'{"other": "x", "id": 1}',
            "line 1 is without a text in 'text' or 'contents'.*--text-field",
        ),
        ("a.jsonl", b'{"text": 5}\n{"text": null}', "lines 1, 2 are without a text"),
        ("a.jsonl", b"[1]", "line 1 is no object"),
        ("a.jsonl.gz", b"no gzip", "cannot be unpacked"),
    ],
)
def test_what_cannot_be_read_says_why_in_one_line(tmp_path, name, data, message):
    path = write(tmp_path, name, data)
    with pytest.raises(DocumentError, match=message) as caught:
        list(read_sections(path))
    assert caught.value.path == str(path)
    assert str(path) not in caught.value.reason
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InputError | O1RetrieverError)


def test_a_missing_file_is_a_document_error(tmp_path):
    with pytest.raises(DocumentError, match="No such file"):
        list(read_sections(tmp_path / "none.txt"))


def test_markdown_sections_carry_the_path_of_their_headings(tmp_path):
    text = (
        "---\ntitle: x\n---\nintro\n# Tea\n## Green ##\nSteep briefly.\n\n```\n# not a heading\n```\n\n"
        "Black\n-----\nSteep long.\n# Coffee\n"
    )
    assert read(write(tmp_path, "a.md", text)) == [
        ("x", "\nintro"),
        ("x > Tea > Green", "# Tea\n## Green ##\nSteep briefly.\n\n```\n# not a heading\n```\n"),
        ("x > Tea > Black", "Black\n-----\nSteep long.\n"[:-1]),
        ("x > Coffee", "# Coffee"),
    ]


@given(st.text(st.sampled_from("# -=`~ab\n."), max_size=120))
def test_markdown_loses_nothing(text):
    from o1_retriever.documents.markup import markdown_blocks
    from o1_retriever.documents.structure import sections

    joined = "".join(section.text for section in sections(markdown_blocks(text)))
    assert "".join(joined.split()) == "".join(text.split())


@given(st.text(st.sampled_from("@# def class x:\n("), max_size=120))
def test_code_loses_nothing(text):
    from o1_retriever.documents.readers import code_sections

    joined = "".join(section.text for section in code_sections(text))
    assert "".join(joined.split()) == "".join(text.split())


def test_python_is_cut_at_its_definitions(tmp_path):
    text = (
        "import os\n\n# Adds.\n@cache\ndef add(a):\n    return a\n\n\nclass Box:\n    def open(self): ...\n"
    )
    found = [(s.metadata, s.text) for s in read_sections(write(tmp_path, "a.py", text))]
    assert found == [
        ({"line": 1}, "import os\n"),
        ({"line": 3, "title": "add"}, "# Adds.\n@cache\ndef add(a):\n    return a\n\n"),
        ({"line": 9, "title": "Box"}, "class Box:\n    def open(self): ...\n"),
    ]


def test_html_keeps_blocks_and_drops_scripts(tmp_path):
    page = (
        "<!doctype html><html><head><title>The &amp; page</title><style>p{}</style></head><body>"
        "<script>if (a < b) alert('no')</script><p>One\n  two<br>three</p><ul><li>a<li>b</ul>"
        "<table><tr><td>x</td><td>y</td></tr></table><h2>Part</h2><pre>  code\n  more</pre><p>end"
        "<svg><text>drawn</text></svg>"
    )
    assert read(write(tmp_path, "a.html", page)) == [
        ("The & page", "The & page\n\nOne two\nthree\n\na\nb\n\nx | y"),
        ("The & page > Part", "Part\n\n  code\n  more\n\nend\n\ndrawn"),
    ]


def test_html_says_its_own_encoding(tmp_path):
    page = '<meta charset="iso-8859-1"><p>caf\xe9'.encode("latin-1")
    assert read(write(tmp_path, "a.htm", page)) == [(None, "café")]


@pytest.mark.parametrize(
    "part", ["<", "<a ", "<!--", "&", "</", "<p>", "<script>", "<![", "<?", "&#", "<pre> "]
)
def test_a_long_page_of_html_takes_bounded_time(tmp_path, part):
    path = write(tmp_path, "a.html", (part * 300_000)[:300_000])
    start = time.process_time()
    list(read_sections(path))
    assert time.process_time() - start < 12


def test_json_lines_become_documents_with_their_fields(tmp_path):
    rows = [
        {"_id": "7", "title": "Tea", "text": "Leaves.", "metadata": {"year": 1999, "deep": {}}, "n": None},
        {"text": "", "title": ""},
        {
            "text": "Only text.",
            "source": "theirs",
            "big": 2**70,
            "ok": True,
            "tags": ["a"],
            "$x": 1,
            "r": 1e999,
        },
    ]
    path = write(tmp_path, "a.jsonl", "\n\n".join(json.dumps(row) for row in rows))
    first, second = read_documents(path, source="a.jsonl", root="r")
    assert (first.text, first.metadata) == (
        "Tea\nLeaves.",
        {
            "_id": "7",
            "title": "Tea",
            "year": 1999,
            "line": 1,
            "source": "a.jsonl",
            "root": "r",
            "position": 0,
        },
    )
    assert second.metadata == {
        **{"source_": "theirs", "big": str(2**70), "ok": True, "tags": ["a"], "x": 1, "r": "inf"},
        **{"line": 5, "source": "a.jsonl", "root": "r", "position": 1},
    }


def pdf(*pages: str) -> bytes:
    """A PDF with a line of Helvetica on each page, written by hand."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET" if text else ""
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * number} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    body, offsets = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    return (
        f"{body}xref\n0 {size}\n0000000000 65535 f \n{table}"
        f"trailer << /Size {size} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF"
    ).encode()


def encrypted(password: str) -> bytes:
    import pypdf

    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("secret")))
    writer.encrypt(user_password=password, owner_password="owner", algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def test_pdf_is_read_by_page(tmp_path):
    found = list(read_sections(write(tmp_path, "a.pdf", pdf("First page", "", "Third page"))))
    assert [(s.text.strip(), s.metadata) for s in found] == [
        ("First page", {"page": 1}),
        ("Third page", {"page": 3}),
    ]


def test_pdf_that_anyone_may_open_is_read(tmp_path):
    assert [s.text.strip() for s in read_sections(write(tmp_path, "a.pdf", encrypted("")))] == ["secret"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pdf("", ""), "it has 2 pages and no text .images only."),
        (encrypted("x"), "it is encrypted"),
        (pdf("some text")[:300], "cannot be read as PDF"),
    ],
    ids=["images", "encrypted", "cut"],
)
def test_pdf_without_text_is_reported(tmp_path, data, message):
    with pytest.raises(DocumentError, match=message):
        list(read_sections(write(tmp_path, "a.pdf", data)))


def test_passages_begin_with_the_headings_above_them_where_that_is_asked_for(tmp_path):
    path = write(
        tmp_path, "a.md", "# Tea\n## Green\n" + "Steep it briefly in hot water. " * 12 + "\n# Coffee"
    )
    chunking = Chunking(max_characters=120, overlap=40, context=True)
    first, *others, last = read_documents(path, chunking=chunking)
    assert first.text.startswith("# Tea\n## Green\nSteep it"), "nothing is said twice"
    assert {text.text[:18] for text in others} == {"Tea > Green\n\nSteep"}
    assert last.text == "# Coffee"
    assert max(len(each.text) for each in (first, *others, last)) <= 120
    assert all("\n\n#" not in each.text[14:] for each in others)


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [
        ("Tea > Green", "## Green\n\nSteep it.", "Tea\n\n## Green\n\nSteep it."),
        ("Pump > start", "    def start(self):\n        pass", "Pump\n\n    def start(self):\n        pass"),
        ("Tea > Green", "Greener grass.", "Tea > Green\n\nGreener grass."),
        (f"{'A long heading ' * 14}> Tea", "Steep it.", "Tea\n\nSteep it."),
        ("x" * 400, "Steep it.", "Steep it."),
        ("", "Steep it.", "Steep it."),
    ],
)
def test_a_passage_has_the_headings_that_it_does_not_say_itself_and_that_fit(title, text, expected):
    assert passages(text, title, Chunking(context=True), code=True) == [expected]


def test_ids_are_stable_and_say_where_a_text_stands(tmp_path):
    path = write(tmp_path, "a.txt", "One.\n\nTwo.")
    chunking = Chunking(max_characters=20, overlap=0)
    (only,) = read_documents(path, source="a.txt", root="r", chunking=chunking)
    assert [only] == list(read_documents(path, source="a.txt", root="r", chunking=chunking))
    assert only.id.startswith("a.txt#0-")
    others = [
        next(read_documents(path, source="b.txt", root="r", chunking=chunking)),
        next(read_documents(path, source="a.txt", root="s", chunking=chunking)),
        next(read_documents(write(tmp_path, "a.txt", "One!\n\nTwo."), source="a.txt", root="r")),
    ]
    assert len({only.id, *(other.id for other in others)}) == 4
    assert isinstance(only, Document)


PACKED = {
    *(".pdf", ".docx", ".docm", ".pptx", ".pptm", ".xlsx", ".xlsm", ".odt", ".odp", ".ods", ".epub"),
    *(suffix for suffix in SUFFIXES if suffix.endswith(".gz")),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_files_have_no_documents(tmp_path, suffix):
    path = write(tmp_path, f"a{suffix}", b" \n\n ")
    if suffix in PACKED:
        with pytest.raises(DocumentError):
            list(read_documents(path))
    else:
        assert list(read_documents(path)) == []
