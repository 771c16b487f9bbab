"""Extra `documents`: files of several formats are read."""

from pathlib import Path

from o1_retriever.documents import read_documents

Path("page.html").write_text("<title>Bread</title><nav>Home</nav><p>Yeast makes dough rise.")
Path("data.xml").write_text("<notes><note>Tides follow the moon.</note></notes>")
Path("rows.csv").write_bytes("part;price\nSchraube\xe4;3\n".encode("cp1252"))
print(
    *(
        document.text.replace("\n", ", ")
        for name in ("page.html", "data.xml", "rows.csv")
        for document in read_documents(name)
    ),
    sep=" | ",
)
