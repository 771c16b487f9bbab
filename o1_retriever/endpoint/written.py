"""What a model wrote, taken apart: its answer, its reasoning, and the marks that were left in the text.

Every family of models marks its reasoning and the end of its turn in a way of its own, and servers pass on
what they do not know. All of it is read here, for replies of a server and for drafts of a local model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from o1_retriever.errors import SettingsError

Reasoning = Literal["off", "thought"]

_NAMES = r"(?:seed:)?(?:think|thinking|thoughts?|reasoning)"
# How reasoning begins and ends, by the families that write it so.
_MARKS = (
    (rf"<{_NAMES}>", rf"</{_NAMES}>"),  # DeepSeek, Qwen, EXAONE, Seed
    (r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command
    (r"<\|channel>\s*thought\b", r"<channel\|>"),  # Gemma
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # OpenThinker
)
_FLAGS = re.DOTALL | re.IGNORECASE
_BLOCK = re.compile("|".join(f"{opening}.*?{closing}" for opening, closing in _MARKS), _FLAGS)
_OPENING = re.compile("|".join(opening for opening, _ in _MARKS), _FLAGS)
_CLOSING = re.compile("|".join(closing for _, closing in _MARKS), _FLAGS)
# Harmony (gpt-oss) names a channel before every message; some servers leave the names and drop the marks.
_CHANNEL = re.compile(
    r"(?:<\|end\|>\s*)?(?:<\|start\|>\w*)?<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>\w*)?<\|message\|>"
)
_MESSAGE_END = re.compile(r"<\|(?:end|return|call)\|>")
_BARE_ANALYSIS = re.compile(r"analysis(?=[A-Z])")
_BARE_FINAL = re.compile(r"assistant\s*final(?=[A-Z\W])")

# Where a turn ends, whatever comes behind it; and what a turn begins with.
_TURN_END = re.compile(
    r"<\|(?:im_end|im_start|eot_id|eom_id|start_header_id|endoftext|end_of_text|end|return|endofturn|user"
    r"|end_of_turn|END_OF_TURN_TOKEN|END_RESPONSE|end_of_solution|end_of_role)\|>"
    r"|<(?:end_of_turn|start_of_turn|eos)>|<turn\|>|<｜end▁of▁sentence｜>|<｜User｜>|\[\|endofturn\|\]|</s>"
)
_TURN_START = re.compile(
    r"(?:\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|im_start\|>\s*assistant|<start_of_turn>model|<\|assistant\|>"
    r"|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>|<｜Assistant｜>|<\|START_RESPONSE\|>"
    r"|<\|begin_of_solution\|>|\[\|assistant\|\]))+"
)
_WRAPPER = re.compile(r"<(answer|response|output|final)>(.*?)(?:</\1>|\Z)", _FLAGS)
_FENCE = re.compile(r"(`{3,}|~{3,})[^\n`]*\n(.*?)\n?\s*(?:\1|\Z)", re.DOTALL)
# Control characters but tab and line feed, and halves of characters, which nothing can store.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_FIELDS = ("thought", "answer", "passage", "text", "response", "content", "output", "document", "explanation")

_REFUSAL = re.compile(
    r"(?:[\w ,’']{0,40}?(?:sorry|apologi[sz]e|unfortunately)\b[^.!?]{0,60}?|as an ai\b[^.!?]{0,40}?)?"
    r"[\s,;:.!—-]*(?:but )?(?:i|we)\b[’']?\s?"
    r"(?:can(?:no|[’'])t|can not|won[’']t|will not|(?:must |have to )?(?:decline|refuse)"
    r"|a?m (?:sorry|unable|not able|not allowed|not comfortable|(?:just |only )an? )"
    r"|do(?: not|n[’']t) (?:know (?:the answer|how to)|have (?:enough|any|access|the|personal)))",
    re.IGNORECASE,
)
_HELP = re.compile(
    r"\b(?:help|assist|provide|answer|comply|create|generate|write|continue|discuss|engage|support|share|offer"
    r"|do (?:that|this)|request|information|access|ability|language model|opinions?)\b",
    re.IGNORECASE,
)
_LONGEST_REFUSAL = 400  # characters: what is longer says something beside the refusal
SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*(?=\s|$)")


@dataclass(frozen=True, slots=True)
class Written:
    """A text of a model: its `answer`, its `reasoning`, and whether it ends `unfinished`, in reasoning."""

    answer: str
    reasoning: str = ""
    unfinished: bool = False

    def thought(self, reasoning: Reasoning) -> str:
        """The answer; without one the reasoning, where that counts; else nothing."""
        if self.answer and not self.unfinished:
            return self.answer
        return self.reasoning if reasoning == "thought" else ""


def check_reasoning(value: object) -> None:
    """Raises `SettingsError` for anything but what `reasoning=` may be."""
    if value not in get_args(Reasoning):
        raise SettingsError(f"reasoning is {value!r:.60}; expected 'off' or 'thought'.")


def read_written(text: str, *, cut: bool) -> Written:
    """Take a model's text apart. `cut`: it ended at its limit of tokens, not by itself.

    A block that was opened by the chat template shows its end alone; what stands before it is reasoning
    too. An opening mark is taken at its word at the beginning of a text, or in one that was cut.
    """
    if (channels := _channels(text)) is not None:
        answer, reasoning, unfinished = channels
    else:
        answer, reasoning, unfinished = _blocks(text, cut=cut)
    return Written(_unwrapped(_turn(answer)), _turn(reasoning), unfinished)


def refused(text: str) -> bool:
    """Whether a text is a refusal in one of the common wordings, and nothing else."""
    start = _REFUSAL.match(text.strip())
    return bool(start and len(text) <= _LONGEST_REFUSAL and _HELP.search(text))


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence; all of it where it has none."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def _channels(text: str) -> tuple[str, str, bool] | None:
    """Answer and reasoning of harmony's messages; None for a text without channels."""
    first, *rest = _CHANNEL.split(text)
    if rest:
        messages = [("analysis", first), *zip(rest[::2], rest[1::2], strict=True)]
    elif _BARE_ANALYSIS.match(text):
        thinking, *final = _BARE_FINAL.split(text[len("analysis") :], maxsplit=1)
        messages = [("analysis", thinking), *(("final", each) for each in final)]
    else:
        return None
    bodies = [(channel, _MESSAGE_END.split(body)[0]) for channel, body in messages]
    answer = "".join(body for channel, body in bodies if channel == "final")
    thinking = "\n".join(body.strip() for channel, body in bodies if channel != "final")
    return answer, thinking, all(channel != "final" for channel, _ in bodies)


def _blocks(text: str, *, cut: bool) -> tuple[str, str, bool]:
    blocks = _BLOCK.findall(text)
    *before, answer = _CLOSING.split(_BLOCK.sub("", text))
    closed_twice = len(_CLOSING.findall(text)) > len(_OPENING.findall(text))
    if before and blocks and closed_twice and not answer.strip():
        *before, answer = before
    opening = _OPENING.search(answer.strip())
    unfinished = opening is not None and (cut or opening.start() == 0)
    reasoning = [*blocks, *before, *([answer] if unfinished else [])]
    return answer, " ".join(_without_marks(reasoning)), unfinished


def _without_marks(pieces: Iterable[str]) -> list[str]:
    return [_OPENING.sub("", _CLOSING.sub("", piece)).strip() for piece in pieces]


def _turn(text: str) -> str:
    """The text of one turn, without the marks around it and without what cannot be shown."""
    start = _TURN_START.match(text)
    text = text[start.end() :] if start else text
    return _CONTROL.sub("", _TURN_END.split(text, maxsplit=1)[0]).strip()


def _unwrapped(text: str) -> str:
    """What stands in a tag, a code fence or a JSON object, where that is all of the text."""
    for wrapper in (_WRAPPER, _FENCE):
        whole = wrapper.fullmatch(text)
        text = whole.group(2).strip() if whole else text
    if not text.startswith(("{", "[")):
        return text
    try:
        return _from_json(json.loads(text)) or text
    except (ValueError, RecursionError):
        return text


def _from_json(value: Any) -> str:
    """The text in a JSON value; empty where it is not clear which it is."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return "\n".join(value).strip() if all(isinstance(each, str) for each in value) else ""
    if not isinstance(value, dict):
        return ""
    texts = {name.lower(): each for name, each in value.items() if isinstance(each, str | list)}
    named = [texts[name] for name in _FIELDS if name in texts]
    return _from_json(named[0] if named else next(iter(texts.values()))) if named or len(texts) == 1 else ""
