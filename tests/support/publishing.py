"""What the tests of publishing share: folders of every kind that a training leaves, and the command."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from o1_retriever.engine.template import TemplateConfig
from o1_retriever_training.saving import save_embedder
from tests.support.hub_server import HubServer
from tests.support.tiny import tiny_model

CONFIG = TemplateConfig(max_length=96, max_query_tokens=64, settings={"n_thoughts": 2, "max_new_tokens": 6})
RECIPE = {
    "model": {"base": "someone/base", "tuning": "lora"},
    "data": {"train": [{"path": "hub:someone/pairs"}, {"path": "thoughts.jsonl"}]},
    "evaluation": {"collection": "data/everyday", "split": "dev", "metric": "nDCG@10", "queries": 20},
}
SUMMARY = {
    "recipe": RECIPE,
    "fingerprint": "0123abcd",
    "steps": 1200,
    "best": {"step": 900, "nDCG@10 fast": 0.5, "nDCG@10 thinking": 0.625, "tokens per thought": 17.0},
    "data": "4,000 rows of 2 sources",
    "log": [],
}


def saved(folder: Path, architecture: str = "llama", *, seed: int = 0) -> Path:
    """A merged model as a training leaves it, with what must not be sent beside it."""
    save_embedder(folder, *tiny_model(architecture, seed=seed), CONFIG)
    (folder / "training.json").write_text(json.dumps(SUMMARY))
    return folder


def litter(folder: Path) -> dict[str, str]:
    """Put into a folder what does not belong to a model; return a word of each one's reason by its path."""
    found = {
        "optimizer.pt": "state",
        "scheduler.pt": "state",
        "rng_state_0.pth": "state",
        "trainer_state.json": "state",
        "training_args.bin": "state",
        ".env": "secrets",
        "id_rsa": "secrets",
        "deploy.pem": "secrets",
        "hub_credentials.json": "secrets",
        "pytorch_model.bin": "safetensors",
        "notes.docx": "not part",
        "train.log": "log",
        ".DS_Store": "log",
        "checkpoint-500/model.safetensors": "checkpoint",
        "checkpoint-500/optimizer.pt": "checkpoint",
        "__pycache__/x.pyc": "cache",
        ".cache/huggingface/x.lock": "cache",
        ".git/config": "cache",
        "wandb/run.json": "cache",
        "training/data/ids.bin": "state",
        "more/stuff.json": "not part",
    }
    for name in found:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10)
    reasons: dict[str, str] = {}
    for name, reason in found.items():
        top, slash, _ = name.partition("/")
        reasons[top + slash] = reason
    return reasons


def adapted(folder: Path, base: Path, *, quantised: bool = False, seed: int = 5) -> Path:
    """A LoRA adapter over a base, its matrices far from nought; `quantised` makes it one of QLoRA."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from o1_retriever.engine.weights import nf4_config
    from o1_retriever_training.joint.model import marker_ids

    more: dict[str, Any] = {"quantization_config": nf4_config()} if quantised else {}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **more)
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj", "down_proj"],
        trainable_token_indices=marker_ids(tokenizer, "paper"),
        task_type="CAUSAL_LM",
    )
    adapter = get_peft_model(model, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, each in adapter.named_parameters():
            if each.requires_grad:
                each.copy_(torch.randn_like(each) * (0.3 if "lora" in name else 1.0))
    adapter.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CONFIG.save(folder)
    recipe = {"model": {"base": "someone/base", "tuning": "qlora" if quantised else "lora"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    torch.save(adapter.state_dict(), folder / "state.pt")
    return folder


def digests(folder: Path) -> dict[str, str]:
    """Hash of every file of a folder by its path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def environment(server: HubServer, home: Path, *, token: str | None = "hf_right") -> dict[str, str]:
    """The environment of a process that takes the server for the Hub, with an empty cache of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    said = {
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    return kept | said | ({"HF_TOKEN": token} if token else {})


def command(*arguments: str | Path) -> list[str]:
    """A command line of o1-retriever."""
    return [sys.executable, "-m", "o1_retriever", *map(str, arguments)]


def published(
    server: HubServer, home: Path, *arguments: str | Path, token: str | None = "hf_right"
) -> subprocess.CompletedProcess[str]:
    """`o1-retriever publish` in a process of its own, to the server."""
    return subprocess.run(
        command("publish", *arguments),
        env=environment(server, home, token=token),
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
