"""Small files of the kinds that people have, and what must come out of each."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.documents import writers as w
from o1_retriever.documents import read_sections
from o1_retriever.errors import DocumentError

Part = tuple[str, str]  # title, text


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A file, the title and the text of each of its sections, metadata of the first, and what is said of it.

    `error` is a pattern of the reason why a file cannot be read; `notes` are patterns of what is noted.
    """

    name: str
    data: bytes
    parts: tuple[Part, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: str = ""

    def wrong(self, folder: Path) -> str:
        """How what is read differs from what must come out; empty where it does not."""
        path = folder / self.name
        path.write_bytes(self.data)
        notes: list[str] = []
        try:
            found = list(read_sections(path, notes=notes))
        except DocumentError as error:
            return "" if self.error and re.search(self.error, str(error)) else f"raised {error}"
        parts = tuple((str(each.metadata.get("title", "")), each.text.strip()) for each in found)
        if self.error or parts != self.parts:
            return f"found {parts!r}; expected {self.error or self.parts!r}"
        metadata = {key: found[0].metadata.get(key) for key in self.metadata} if found else {}
        if metadata != self.metadata:
            return f"found the metadata {found[0].metadata}; expected {self.metadata}"
        if len(notes) != len(self.notes) or not all(
            any(re.search(pattern, note) for note in notes) for pattern in self.notes
        ):
            return f"noted {notes}; expected {self.notes}"
        return ""


def case(name: str, data: str | bytes, *parts: Part | str, **more: Any) -> Case:
    """A case; a part without a title is a string."""
    pairs = tuple(("", part) if isinstance(part, str) else part for part in parts)
    notes = more.pop("notes", ())
    return Case(
        name=name,
        data=data.encode() if isinstance(data, str) else data,
        parts=pairs,
        notes=(notes,) if isinstance(notes, str) else notes,
        **more,
    )


def cases() -> list[Case]:
    """All cases, in an order that stays."""
    groups: tuple[Callable[[], Iterator[Case]], ...] = (
        _texts,
        _encodings,
        _markdown,
        _markup,
        _pages,
        _charsets,
    )
    return [each for group in (*groups, _rows, _code, _office, _pdfs, _others) for each in group()]


def _texts() -> Iterator[Case]:
    yield case("plain.txt", "One line.\n\nAnother.", "One line.\n\nAnother.")
    yield case("UPPER.TXT", "upper", "upper")
    yield case("README", "A file without a suffix.", "A file without a suffix.")
    yield case("LICENSE", "MIT License", "MIT License")
    yield case("Makefile", "all:\n\techo hi", "all:\n\techo hi")
    yield case("crlf.txt", b"one\r\ntwo\rthree", "one\ntwo\nthree")
    yield case("start.bat", "@echo off\r\nstart", "@echo off\nstart")
    yield case("server.log", "12:00 start\n12:01 stop\n", "12:00 start\n12:01 stop")
    yield case("settings.yaml", "a: 1\nb:\n  - 2\n", "a: 1\nb:\n  - 2")
    yield case("pyproject.toml", "[project]\nname = 'x'\n", "[project]\nname = 'x'")
    yield case(
        "film.srt", "1\n00:00:01,000 --> 00:00:02,000\nHello.\n", "1\n00:00:01,000 --> 00:00:02,000\nHello."
    )
    yield case("emoji.txt", "🙂👩‍👩‍👧", "🙂👩‍👩‍👧")
    yield case("name with spaces & ünï 🙂.md", "# hi\nbody", ("hi", "# hi\nbody"))
    yield case("percent%20.md", "body", "body")
    yield case("a#b.md", "body", "body")
    yield case(
        "one NUL.txt",
        b"a log line\x00 with a NUL\nmore text follows here",
        "a log line  with a NUL\nmore text follows here",
    )
    yield case("empty.txt", "  \n")
    yield case("zero width.txt", "\u200b\u200b\ufeff\u2060")
    yield case("binary.txt", bytes(range(256)) * 4, error="looks binary")
    yield case("program", b"\x7fELF\x02\x01\x01" + bytes(64), error="looks binary")


def _encodings() -> Iterator[Case]:
    text = "Grüße aus Köln.\nZweite Zeile."
    yield case("bom8.txt", b"\xef\xbb\xbf" + text.encode(), text)
    yield case("bom16le.txt", text.encode("utf-16"), text)
    yield case("bom16be.txt", b"\xfe\xff" + text.encode("utf-16-be"), text)
    yield case("bom32.txt", text.encode("utf-32"), text)
    yield case("no mark utf-16.txt", text.encode("utf-16-le"), text, notes="a guess: UTF-16-LE")
    western = "Zurück – café “quoted” €5"
    yield case("cp1252.txt", western.encode("cp1252"), western, notes="a guess: CP1252")
    yield case(
        "latin1.py",
        "# -*- coding: latin-1 -*-\nNAME = 'München'\n".encode("latin-1"),
        "# -*- coding: latin-1 -*-\nNAME = 'München'",
    )
    yield case(
        "vim.py",
        "# vim: set fileencoding=cp932 :\nNAME = '日本語'\n".encode("cp932"),
        "# vim: set fileencoding=cp932 :\nNAME = '日本語'",
    )
    japanese = "これは日本語の文章です。ポンプを使う前に弁を閉めてください。毎年五月に油を差します。"
    yield case("sjis.txt", japanese.encode("shift_jis"), japanese, notes="a guess: CP932")
    yield case("eucjp.txt", japanese.encode("euc_jp"), japanese, notes="a guess: EUC_JI")
    chinese = "这是一段中文文字。使用水泵之前必须关闭阀门，每年五月要给密封圈上油。请注意安全。"
    yield case("gbk.txt", chinese.encode("gbk"), chinese, notes="a guess: GB")
    russian = "Перед использованием насоса закройте клапан. Каждый год в мае смазывайте уплотнение."
    yield case("cp1251.txt", russian.encode("cp1251"), russian, notes="a guess: CP1251")
    russian += " Не включайте насос без воды, иначе он перегреется. Обратитесь к мастеру."
    yield case("koi8.txt", russian.encode("koi8-r"), russian, notes="a guess: KOI8")
    yield case(
        "damaged.txt",
        "Größe, Maß, Öl und Äpfel ".encode() + b"\xff",
        "Größe, Maß, Öl und Äpfel \ufffd",
        notes="1 characters? .*replaced",
    )
    yield case("utf8sig.py", b"\xef\xbb\xbfdef f():\n    return 1\n", ("f", "def f():\n    return 1"))


def _markdown() -> Iterator[Case]:
    yield case(
        "headings.md",
        "intro\n# Tea\n## Green ##\nSteep.\n# Coffee\nGrind.",
        "intro",
        ("Tea > Green", "# Tea\n## Green ##\nSteep."),
        ("Coffee", "# Coffee\nGrind."),
    )
    yield case(
        "setext.md",
        "Tea\n===\nleaves\n\nBlack\n-----\nlong",
        ("Tea", "Tea\n===\nleaves"),
        ("Tea > Black", "Black\n-----\nlong"),
    )
    yield case(
        "inline fence.md",
        "```js```is inline\n\n# Real heading\nbody\n\n## Second\nbody2\n",
        "```js```is inline",
        ("Real heading", "# Real heading\nbody"),
        ("Real heading > Second", "## Second\nbody2"),
    )
    yield case(
        "four back-ticks.md",
        "````md\n```\n# no heading\n```\n````\n# Yes\nbody",
        "````md\n```\n# no heading\n```\n````",
        ("Yes", "# Yes\nbody"),
    )
    yield case("tildes.md", "~~~\n# no\n~~~\n# Yes\nb", "~~~\n# no\n~~~", ("Yes", "# Yes\nb"))
    yield case(
        "table.md",
        "# T\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n# After\nx",
        ("T", "# T\n\n| a | b |\n|---|---|\n| 1 | 2 |"),
        ("After", "# After\nx"),
    )
    yield case(
        "footnote.md",
        "# T\nA claim.[^1]\n\n[^1]: Its source.\n\n# After\nx",
        ("T", "# T\nA claim.[^1]\n\n[^1]: Its source."),
        ("After", "# After\nx"),
    )
    yield case(
        "list.md",
        "# T\n- a\n\n      # code\n- b\n\n# After\nx",
        ("T", "# T\n- a\n\n      # code\n- b"),
        ("After", "# After\nx"),
    )
    yield case(
        "front.md",
        "---\ntitle: My page\ntags: [a, b]\ndate: 2024-05-01\nauthor:\n  name: Kim\n---\n# H\nbody",
        ("My page > H", "# H\nbody"),
        metadata={"tags": ["a", "b"], "date": "2024-05-01", "author.name": "Kim"},
    )
    yield case(
        "toml.md",
        "+++\ntitle = 'x'\nweight = 3\n+++\n# H\nbody",
        ("x > H", "# H\nbody"),
        metadata={"weight": 3},
    )
    yield case(
        "same title.md",
        "---\ntitle: Pumps\n---\n# Pumps\nbody\n## Seals\nb",
        ("Pumps", "# Pumps\nbody"),
        ("Pumps > Seals", "## Seals\nb"),
    )
    yield case("front alone.md", "---\ntitle: x\n", "---\ntitle: x")
    yield case(
        "broken front.md",
        "---\ntitle: [x\n---\nbody",
        "---",
        ("title: [x", "title: [x\n---\nbody"),
        notes="front matter was read as text",
    )
    yield case("rules.md", "---\n\ntext between rules\n\n---\nbody", "---\n\ntext between rules\n\n---\nbody")
    yield case(
        "linked.md",
        "# See [the guide](x.md) and `code`\nb",
        ("See the guide and code", "# See [the guide](x.md) and `code`\nb"),
    )
    yield case(
        "page.mdx",
        "import X from './x'\n\n# Hello\n\n<X>inside</X>",
        "import X from './x'",
        ("Hello", "# Hello\n\n<X>inside</X>"),
    )
    yield case("cr.md", b"# T\r\rpara\r", ("T", "# T\n\npara"))
    yield case(
        "comments.md",
        "<!-- table: x -->\n# A\nb\n\n<!-- two\n\nlines -->\n\n```\n<!-- kept -->\n```\n\n<!-- open",
        ("A", "# A\nb\n\n```\n<!-- kept -->\n```"),
    )
    yield case("quoted heading.md", "> # no\n\n# Yes\nb", "> # no", ("Yes", "# Yes\nb"))


def _markup() -> Iterator[Case]:
    yield case(
        "guide.rst",
        "=====\nGuide\n=====\n\nIntro.\n\nFirst\n-----\n\nText.\n\n.. note:: Kept.\n\nSecond\n------\nMore.\n",
        ("Guide", "=====\nGuide\n=====\n\nIntro."),
        ("Guide > First", "First\n-----\n\nText.\n\n.. note:: Kept."),
        ("Guide > Second", "Second\n------\nMore."),
    )
    table = "T\n=\n\n==  ==\na   b\n==  ==\n1   2\n==  =="
    yield case("table.rst", f"{table}\n\nPart\n----\nText", ("T", table), ("T > Part", "Part\n----\nText"))
    yield case("short.rst", "Tea\n===\n\nLeaves.", ("Tea", "Tea\n===\n\nLeaves."))
    yield case(
        "guide.adoc",
        "= Guide\n\nIntro.\n\n== Part\n\nText.",
        ("Guide", "= Guide\n\nIntro."),
        ("Guide > Part", "== Part\n\nText."),
    )
    yield case(
        "notes.org", "* One\ntext\n** Two\nmore", ("One", "* One\ntext"), ("One > Two", "** Two\nmore")
    )
    yield case(
        "paper.tex",
        "\\documentclass{article}\n\\section{Heat}\nIt flows.\n\\subsection{Cold}\nIt stays.",
        "\\documentclass{article}",
        ("Heat", "\\section{Heat}\nIt flows."),
        ("Heat > Cold", "\\subsection{Cold}\nIt stays."),
    )
    yield case(
        "data.xml",
        "<?xml version='1.0'?><parts><part id='1'><name>Bolt</name><price>3</price></part><part code='x'/></parts>",
        "Bolt\n3\ncode: x",
    )
    yield case(
        "book.xml",
        "<book><title>Pumps</title><para>Close <b>the</b> valve.</para><section><title>Seals</title><para>Grease it.</para></section></book>",
        ("Pumps", "Pumps\nClose the valve."),
        ("Pumps > Seals", "Seals\nGrease it."),
    )
    yield case("entity.xml", "<!DOCTYPE a [<!ENTITY co 'ACME Ltd'>]><a><p>By &co;.</p></a>", "By ACME Ltd.")
    yield case(
        "latin.xml", "<?xml version='1.0' encoding='iso-8859-1'?><a>Käse</a>".encode("latin-1"), "Käse"
    )
    yield case("broken.xml", "<a><p>One.</p><p>Two.", "One.\nTwo.", notes="not intact XML")
    yield case("no.xml", "just text", error="is not XML")


def _pages() -> Iterator[Case]:
    yield case(
        "page.html",
        "<title>Pumps</title><h1>Valves</h1><p>One\n two<br>three</p><h2>Seals</h2><ul><li>a<li>b</ul>",
        ("Pumps > Valves", "Pumps\n\nValves\n\nOne two\nthree"),
        ("Pumps > Valves > Seals", "Seals\n\na\nb"),
    )
    yield case(
        "svg self-closed.html",
        "<h1>P</h1><p>before</p><svg viewBox='0 0 1 1'/><p>after</p>",
        ("P", "P\n\nbefore\n\nafter"),
    )
    yield case("svg unclosed.html", "<div><svg><path d='M0 0'></div><p>after</p>", "after")
    yield case(
        "svg text.html", "<p>a</p><svg><title>no</title><text>drawn</text></svg><p>b</p>", "a\n\ndrawn\n\nb"
    )
    yield case(
        "script self-closed.xhtml",
        "<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'><head><title>T</title><script src='a.js'/></head><body><p>after</p></body></html>",
        ("T", "T\n\nafter"),
    )
    yield case(
        "style self-closed.html", "<html><head><style/></head><body><p>after</p></body></html>", "after"
    )
    yield case(
        "script in script.html", "<script>document.write('<script/>'); a = 1</script><p>kept</p>", "kept"
    )
    yield case("script unclosed.html", "<p>before</p><script>x = 1 <p>after</p>", "before")
    yield case(
        "only a script.html", "<script>lost <p>text", "lost\n\ntext", notes="does not end hides its text"
    )
    yield case(
        "noscript unclosed.html", "<head><noscript><img src=x></head><body><p>after</p></body>", "after"
    )
    yield case(
        "noscript.html",
        "<body><noscript>Please enable JavaScript.</noscript><p>kept</p><noscript><p>Shown too.</p></noscript>",
        "kept\n\nShown too.",
    )
    yield case(
        "crossed.html",
        "<p><b>one <i>two</b> three</i></p><svg><template></svg></template><p>four</p>",
        "one two three\n\nfour",
    )
    yield case(
        "hidden.html",
        "<p hidden>no</p><p style='color:red; display : none'>no</p><div aria-hidden=true>no</div><p>shown</p>",
        "shown",
    )
    yield case(
        "all hidden.html",
        "<body><div style='display:none'>loaded later</div></body>",
        "loaded later",
        notes="shows nothing without scripts",
    )
    yield case(
        "navigation.html",
        "<body><nav>Home About</nav><main><h1>H</h1><p>text</p></main><footer>(c) 2024</footer></body>",
        ("H", "H\n\ntext"),
    )
    yield case(
        "banner.html",
        "<div id='cookie-banner'>We use cookies <button>OK</button></div><p>"
        + "A page that is long enough. " * 5
        + "</p>",
        ("A page that is long enough. " * 5).strip(),
    )
    yield case("only navigation.html", "<nav><p>Home</p></nav>", "Home")
    yield case(
        "table.html",
        "<table><caption>Parts</caption><tr><th>Part</th><th>Price</th></tr><tr><td><p>Bolt</p><p>M4</p></td><td>3</td></tr></table>",
        "Parts\nPart | Price\nBolt M4 | 3",
    )
    yield case(
        "layout.html",
        "<table><tr><td><h1>Title</h1><p>body</p></td><td>side</td></tr></table>",
        ("Title", "Title\n\nbody\n\nside"),
    )
    yield case("pre.html", "<p>a</p><pre>  x\n    y\n</pre><p>b</p>", "a\n\n  x\n    y\n\nb")
    yield case(
        "image.html", "<p><img alt='Rainfall in Bergen' src=x.png> falls</p>", "Rainfall in Bergen falls"
    )
    yield case("sub.html", "<p>H<sub>2</sub>O &amp; CO<sub>2</sub></p>", "H2O & CO2")
    yield case(
        "title.html", "<title>How <b> works</title><p>after</p>", ("How <b> works", "How <b> works\n\nafter")
    )
    yield case("nested lists.html", "<ul><li>one<ul><li>two</li></ul></li></ul>", "one\n\ntwo")


def _charsets() -> Iterator[Case]:
    pages = {
        "iso-8859-1": ("It’s “fine” – 5 €", "cp1252"),
        "us-ascii": ("café", "cp1252"),
        "gb2312": ("朱镕基 你好", "gbk"),
        "x-sjis": ("①日本語～", "cp932"),
        "ks_c_5601-1987": ("한국어 뷁", "cp949"),
        "euc-kr": ("뷁 한국어", "cp949"),
        "x-mac-roman": ("café", "mac_roman"),
        "iso-8859-8-i": ("שלום", "iso8859_8"),
        "big5": ("繁體中文", "big5"),
        "iso-2022-jp": ("日本語", "iso2022_jp"),
        "utf8": ("é", "utf-8"),
    }
    for label, (text, codec) in pages.items():
        yield case(f"{label}.html", f"<meta charset='{label}'><p>{text}</p>".encode(codec), text)
    late = (
        b"<head>"
        + b"<!-- pad -->" * 400
        + "<meta charset='windows-1251'></head><p>Привет</p>".encode("cp1251")
    )
    yield case("late meta.html", late, "Привет")
    yield case(
        "declared.xhtml",
        "<?xml version='1.0' encoding='windows-1251'?><html><body><p>Привет</p></body></html>".encode(
            "cp1251"
        ),
        "Привет",
    )
    yield case("undeclared.html", b"<p>caf\xe9</p>", "café", notes="a guess: CP1252")


def _rows() -> Iterator[Case]:
    yield case(
        "rows.jsonl",
        '{"_id": "7", "title": "Tea", "text": "Leaves.", "metadata": {"year": 1999}}\n\n{"text": "Two."}\n',
        ("Tea", "Tea\nLeaves."),
        "Two.",
        metadata={"_id": "7", "year": 1999, "line": 1},
    )
    yield case(
        "bad line.jsonl",
        '{"text": "one"}\n{"text": \n{"text": null}\n{"text": "four"}\n',
        "one",
        "four",
        notes=("line 2 is not JSON; left out", "line 3 is without a text"),
    )
    for name in ("contents", "page_content", "content", "body"):
        yield case(f"{name}.jsonl", json.dumps({name: "found", "id": 5}), "found", metadata={"id": 5})
    yield case(
        "nested.jsonl",
        json.dumps({"text": "t", "tags": ["a", "b"], "author": {"name": "x"}, "when": None, "n": 3}),
        "t",
        metadata={"tags": ["a", "b"], "author.name": "x", "n": 3},
    )
    yield case("crlf.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\r\n', "one", "two")
    yield case("rows.ndjson", '{"text": "one"}\n{"text": "two"}', "one", "two")
    yield case("packed.jsonl.gz", gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'), "one", "two")
    yield case("packed.ndjson.gz", gzip.compress(b'{"text": "one"}\n'), "one")
    yield case("packed.json.gz", gzip.compress(b'[{"text": "one"}]'), "one")
    yield case("cut.jsonl.gz", gzip.compress(b'{"text": "one"}\n' * 500)[:-9], error="cannot be unpacked")
    yield case("no text.jsonl", '{"question": "x"}', error="line 1 is without a text.*--text-field")
    yield case(
        "list.json", json.dumps([{"text": "one", "id": 1}, {"text": "two"}]), "one", "two", metadata={"id": 1}
    )
    yield case(
        "object.json",
        json.dumps({"name": "pump", "size": {"h": 3, "w": [1, 2]}}),
        "name: pump\nsize.h: 3\nsize.w: 1, 2",
    )
    yield case(
        "wrapped.json",
        json.dumps({"total": 2, "data": [{"text": "one"}, {"name": "two"}]}),
        "total: 2",
        ("data", "one"),
        ("data", "name: two"),
    )
    yield case("lines.json", '{"text": "one"}\n{"text": "two"}\n', "one", "two", notes="holds JSON lines")
    yield case("broken.json", '{"a": ', '{"a":', notes="is not JSON")
    yield case("empty.json", "[]")
    yield case(
        "parts.csv",
        'Part,Price,Note\nBolt,3,"round, ""M4"""\nNut,1,\n',
        'Part: Bolt\nPrice: 3\nNote: round, "M4"',
        "Part: Nut\nPrice: 1",
        metadata={"line": 2},
    )
    yield case("semicolons.csv", "Teil;Preis\nSchraube;3,50\n", "Teil: Schraube\nPreis: 3,50")
    yield case("parts.tsv", "Part\tPrice\nBolt\t3\n", "Part: Bolt\nPrice: 3")
    yield case("lines in a cell.csv", 'a,b\n"one\ntwo",3\n', "a: one two\nb: 3")
    yield case("heads alone.csv", "Part,Price\n", "Part | Price")
    yield case(
        "no value.csv", "Part,Fax,Price\nBolt,,3\n", "Part: Bolt\nPrice: 3", notes="without a value: Fax"
    )
    yield case("no head.csv", "1,2\n3,4\n", "1 | 2", "3 | 4")
    yield case(
        "cp1252.csv", "Ort,Wert\nKöln,3\n".encode("cp1252"), "Ort: Köln\nWert: 3", notes="a guess: CP1252"
    )


def _code() -> Iterator[Case]:
    yield case(
        "box.py",
        "import os\n\n# Adds.\n@cache\ndef add(a):\n    return a\n\n\nclass Box:\n    x = 1\n",
        "import os",
        ("add", "# Adds.\n@cache\ndef add(a):\n    return a"),
        ("Box", "class Box:\n    x = 1"),
    )
    yield case(
        "app.js",
        "const a = 1;\n\n/** Runs. */\nexport async function run() {\n}\n\nexport class App {\n}\nconst f = (x) => x;\n",
        "const a = 1;",
        ("run", "/** Runs. */\nexport async function run() {\n}"),
        ("App", "export class App {\n}"),
        ("f", "const f = (x) => x;"),
    )
    yield case(
        "app.ts",
        "interface Shape {\n}\nexport function area(s: Shape): number {\n}\n",
        ("Shape", "interface Shape {\n}"),
        ("area", "export function area(s: Shape): number {\n}"),
    )
    yield case(
        "Main.java",
        "package a;\n\npublic class Main {\n  void run() {}\n}\n",
        "package a;",
        ("Main", "public class Main {\n  void run() {}\n}"),
    )
    yield case(
        "list.c",
        "#include <stdio.h>\n\nint add(int a, int b)\n{\n  return a + b;\n}\n\nstatic char *name(void) {\n}\n",
        "#include <stdio.h>",
        ("add", "int add(int a, int b)\n{\n  return a + b;\n}"),
        ("name", "static char *name(void) {\n}"),
    )
    yield case(
        "list.cpp",
        "namespace a {\n}\nvoid Box::open() {\n}\n",
        ("a", "namespace a {\n}"),
        ("Box::open", "void Box::open() {\n}"),
    )
    yield case(
        "main.go",
        "package main\n\nfunc (b *Box) Open() error {\n}\n\ntype Box struct {\n}\n",
        "package main",
        ("Open", "func (b *Box) Open() error {\n}"),
        ("Box", "type Box struct {\n}"),
    )
    yield case(
        "lib.rs",
        "use a;\n\n/// Opens.\npub fn open<T>(x: T) {\n}\n\nimpl Box {\n}\n",
        "use a;",
        ("open", "/// Opens.\npub fn open<T>(x: T) {\n}"),
        ("Box", "impl Box {\n}"),
    )
    yield case(
        "run.sh",
        "#!/bin/sh\nset -e\n\nbuild() {\n  make\n}\n",
        "#!/bin/sh\nset -e",
        ("build", "build() {\n  make\n}"),
    )
    yield case(
        "schema.sql",
        "CREATE TABLE parts (\n  id INT\n);\n\nCREATE VIEW v AS SELECT 1;\n",
        ("parts", "CREATE TABLE parts (\n  id INT\n);"),
        ("v", "CREATE VIEW v AS SELECT 1;"),
    )
    yield case(
        "box.rb", "module A\nend\ndef open!\nend\n", ("A", "module A\nend"), ("open!", "def open!\nend")
    )
    yield case("box.cs", "public interface IBox\n{\n}\n", ("IBox", "public interface IBox\n{\n}"))
    yield case(
        "box.kt",
        "data class Box(val x: Int)\nfun open() {\n}\n",
        ("Box", "data class Box(val x: Int)"),
        ("open", "fun open() {\n}"),
    )
    yield case("box.php", "<?php\nfunction open() {\n}\n", "<?php", ("open", "function open() {\n}"))
    long = "class Long:\n" + "".join(
        f"    def method_{n}(self):\n        return {'x' * 300!r}\n" for n in range(5)
    )
    yield case(
        "long.py",
        long,
        ("Long", "class Long:"),
        *((f"Long > method_{n}", f"def method_{n}(self):\n        return {'x' * 300!r}") for n in range(5)),
    )


def _office() -> Iterator[Case]:
    p = w.paragraph
    yield case(
        "letter.docx",
        w.docx(
            p("Pumps", "Title")
            + p("Intro.")
            + p("Seals", "heading1")
            + p("Grease it.")
            + w.table(("Part", "Price"), ("Bolt", "3"))
        ),
        ("Pumps", "Pumps\n\nIntro."),
        ("Pumps > Seals", "Seals\n\nGrease it.\n\nPart | Price\nBolt | 3"),
    )
    changed = "<w:p><w:del><w:r><w:delText>old</w:delText></w:r></w:del><w:ins><w:r><w:t>new</w:t></w:r></w:ins></w:p>"
    yield case("tracked.docx", w.docx(changed), "new")
    control = f"<w:sdt><w:sdtContent>{p('In a control.')}</w:sdtContent></w:sdt>"
    yield case("control.docx", w.docx(control), "In a control.")
    note = f'<w:footnote w:id="1">{p("The source.")}</w:footnote>'
    cited = '<w:p><w:r><w:t>A claim.</w:t></w:r><w:r><w:footnoteReference w:id="1"/></w:r></w:p>'
    yield case("footnote.docx", w.docx(cited, footnotes=note), "A claim.[1]\n\nThe source. ↑")
    yield case(
        "entities.docx",
        w.archive({"word/document.xml": "<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>"}),
        error="declares entities",
    )
    yield case(
        "slides.pptx",
        w.pptx(
            w.shape("body one") + w.shape("Pumps", "ctrTitle"),
            w.shape("Seals", "title")
            + w.slide_table(("Part", "Price"), ("Bolt", "3"))
            + w.shape("7", "sldNum"),
            notes="Say hello.",
        ),
        ("Pumps", "Pumps\nbody one\nSay hello."),
        ("Seals", "Seals\nPart | Price\nBolt | 3"),
        metadata={"page": 1},
    )
    yield case(
        "parts.xlsx",
        w.xlsx(
            Parts=[["Part", "Price", "Since"], ["Bolt", 3, date(2024, 5, 1)], [], ["Nut", 1.5, None]],
            Notes=[["Only text here."], ["More."]],
            Orders=[["Part", "Count"]],
        ),
        ("Parts", "Part: Bolt\nPrice: 3\nSince: 2024-05-01"),
        ("Parts", "Part: Nut\nPrice: 1.5"),
        ("Notes", "Only text here."),
        ("Notes", "More."),
        ("Orders", "Part | Count"),
        metadata={"line": 2},
    )
    body = "<text:h text:outline-level='1'>Pumps</text:h><text:p>Close<text:s/>the <text:span>valve</text:span>.</text:p><text:list><text:list-item><text:p>one</text:p></text:list-item></text:list><table:table><table:table-row><table:table-cell><text:p>Bolt</text:p></table:table-cell><table:table-cell><text:p>3</text:p></table:table-cell></table:table-row></table:table>"
    yield case(
        "letter.odt", w.odt(body, "Manual"), ("Manual > Pumps", "Pumps\nClose the valve.\none\nBolt | 3")
    )
    yield case(
        "book.epub",
        w.epub("<h1>One</h1><p>Once.</p>", "<h1>Two</h1><p>Then.</p>", title="A tale", author="Kim"),
        ("A tale > One", "One\n\nOnce."),
        ("A tale > Two", "Two\n\nThen."),
        metadata={"author": ["Kim"], "language": "en"},
    )
    container = "<container><rootfiles><rootfile full-path='b.opf'/></rootfiles></container>"
    book = "<package><manifest/><spine><itemref idref='two'/></spine></package>"
    parts = {"META-INF/container.xml": container, "b.opf": book}
    yield case("a chapter less.epub", w.archive(parts), notes="the chapter 'two' is missing")
    yield case("old.docx", b"\xd0\xcf\x11\xe0" + bytes(100), error="encrypted, or of an Office before 2007")
    yield case("cut.docx", w.docx(p("x"))[:-30], error="no intact archive")
    yield case(
        "notebook.ipynb",
        json.dumps(
            {
                "cells": [
                    {"cell_type": "markdown", "source": ["# Data\n", "We load it."]},
                    {
                        "cell_type": "code",
                        "source": "print(1)",
                        "outputs": [
                            {"output_type": "stream", "text": ["1\n"]},
                            {"output_type": "display_data", "data": {"image/png": "aaaa"}},
                        ],
                    },
                    {
                        "cell_type": "code",
                        "source": "long()",
                        "outputs": [{"output_type": "execute_result", "data": {"text/plain": "x" * 3000}}],
                    },
                ],
                "nbformat": 4,
            }
        ),
        ("Data", f"# Data\nWe load it.\nprint(1)\n1\nlong()\n{'x' * 1000}…"),
        notes="outputs of more than 1,000 characters were cut",
    )
    page = {"output_type": "display_data", "data": {"text/html": ["<table><tr><td>a<td>1", "</table>"]}}
    cells = [{"cell_type": "code", "source": "show(a)", "outputs": [page]}]
    yield case("a page as output.ipynb", json.dumps({"cells": cells}), "show(a)\na | 1")


def _pdfs() -> Iterator[Case]:
    one = w.pdf(w.lines("The valve must be closed."), title="Pumps")
    yield case("plain.pdf", one, ("Pumps", "The valve must be closed."), metadata={"page": 1})
    for algorithm in ("RC4-128", "AES-128", "AES-256"):
        yield case(f"{algorithm}.pdf", w.encrypted(one, algorithm), ("Pumps", "The valve must be closed."))
    yield case("password.pdf", w.encrypted(one, "AES-256", password="secret"), error="it is encrypted.*qpdf")
    yield case(
        "broken xref.pdf",
        re.sub(rb"startxref\n\d+", b"startxref\n99999", one),
        ("Pumps", "The valve must be closed."),
    )
    yield case("rotated.pdf", w.pdf(w.lines("Turned around."), rotate=90), "Turned around.")
    yield case(
        "scanned.pdf",
        w.pdf(w.lines("Text."), "", w.lines("More.")),
        "Text.",
        "More.",
        notes="no text on page 2",
    )
    yield case("images.pdf", w.pdf("", ""), error="it has 2 pages and no text")
    for title in ("PowerPoint Presentation", "Microsoft Word - a.doc", "Layout 1", "a.indd"):
        yield case(f"{title}.pdf", w.pdf(w.lines("Some text."), title=title), "Some text.")
    yield case("image.pdf", w.pdf(""), error="it has 1 page and no text")
    yield case(
        "hyphens.pdf",
        w.pdf(w.lines("The pump needs main-", "tenance every May.")),
        "The pump needs maintenance every May.",
    )
    left = [f"left line {n} is about valves" for n in range(8)]
    right = [f"right line {n} is about seals" for n in range(8)]
    # Written row by row, as some programs do, so that only the places tell the columns.
    rows = "\n".join(
        w.lines(a, left=60, top=700 - 16 * n) + "\n" + w.lines(b, left=330, top=700 - 16 * n)
        for n, (a, b) in enumerate(zip(left, right, strict=True))
    )
    yield case(
        "columns.pdf",
        w.pdf(
            w.lines(
                "A title over both of the columns of this page that is wide enough to cross it",
                left=60,
                top=740,
            )
            + "\n"
            + rows
        ),
        "\n".join(
            ["A title over both of the columns of this page that is wide enough to cross it", *left, *right]
        ),
    )
    pages = [
        w.lines("ACME pump manual", f"Text {name} of a page.", f"Page {n} of 4")
        for n, name in enumerate(("one", "two", "three", "four"), start=1)
    ]
    yield case(
        "headers.pdf",
        w.pdf(*pages),
        "ACME pump manual\nText one of a page.",
        "Text two of a page.",
        "Text three of a page.",
        "Text four of a page.",
    )
    yield case("no.pdf", b"no pdf at all", error="cannot be read as PDF")


def _others() -> Iterator[Case]:
    head = b"From: Kim <kim@example.org>\nTo: Bo <bo@example.org>\nSubject: =?utf-8?b?UMO8bmt0bGljaA==?=\nDate: Wed, 1 May 2024 10:00:00 +0000\n"
    yield case(
        "plain.eml",
        head
        + b"Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: quoted-printable\n\nSch=F6ne Gr=FC=DFe\n",
        ("Pünktlich", "Pünktlich\n\nSchöne Grüße"),
        metadata={
            "from": "Kim <kim@example.org>",
            "to": "Bo <bo@example.org>",
            "date": "2024-05-01T10:00:00+00:00",
        },
    )
    yield case(
        "html.eml",
        head
        + b'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/html; charset=utf-8\n\n<h1>Hello</h1><p>World</p>\n--b\nContent-Type: application/pdf\nContent-Disposition: attachment; filename="a.pdf"\n\nxx\n--b--\n',
        ("Pünktlich", "Pünktlich\n\nHello\n\nWorld"),
        notes="attachments were not read: a.pdf",
    )
    yield case("odd.eml", b"Date: some day\nSubject: A\n\nB", ("A", "A\n\nB"), metadata={"date": "some day"})
    yield case("kind.doc", "x", error="soffice --convert-to docx")
    yield case("kind.parquet", "x", error="is unknown")
