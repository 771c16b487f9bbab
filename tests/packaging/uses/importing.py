"""Print, for each module that the wheel installed, the extra that it says it needs, or null."""

import importlib
import json
import sys
from importlib.metadata import files
from pathlib import Path

import o1_retriever
from o1_retriever.errors import MissingExtraError

assert Path(sys.prefix) in Path(o1_retriever.__file__).parents, o1_retriever.__file__


def needed(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except MissingExtraError as error:
        return error.extra
    return None


paths = [path for path in files("o1-retriever") or [] if path.suffix == ".py" and path.name != "__main__.py"]
names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
print(json.dumps({name: needed(name) for name in sorted(names)}))
