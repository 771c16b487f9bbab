"""Conversations in every form that callers have them in, and in files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever.errors import InputError
from o1_retriever.query import Conversation, Message, read_history, rendered

SAID = [("human", "My mirror is in the bathroom."), {"role": "assistant", "content": "I see."}]

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)
turns = st.builds(Message, st.sampled_from(["user", "assistant", "system"]), words)
conversations = st.lists(turns, max_size=6).map(lambda each: Conversation(tuple(each)))


class TestReading:
    @given(conversations)
    def test_every_form_reads_the_same(self, said: Conversation) -> None:
        plain = said.to_list()
        assert Conversation.of(said) == said
        assert Conversation.of(json.loads(json.dumps(plain))) == said
        assert Conversation.of([(turn["role"], turn["content"]) for turn in plain]) == said
        assert Conversation.of([SimpleNamespace(**turn) for turn in plain]) == said
        parts = [{"role": each.role, "content": [{"type": "text", "text": each.content}]} for each in said]
        assert Conversation.of(parts) == said

    def test_nothing_was_said(self) -> None:
        assert Conversation.of(None) == Conversation.of([]) == Conversation.of(()) == Conversation()

    def test_turns_without_words_of_a_person_or_a_model_are_left_out(self) -> None:
        picture = [{"type": "image_url", "image_url": {"url": "x"}}]
        said = [("tool", "42"), ("user", picture), ("assistant", None), ("system", " "), ("Human", "hello")]
        assert Conversation.of(said) == Conversation((Message("user", "hello"),))

    @pytest.mark.parametrize(
        ("history", "message"),
        [
            ("hello", "is a str; expected a list"),
            ({"role": "user", "content": "x"}, "is a dict; expected a list"),
            (Message("user", "x"), "is a Message"),
            (7, "is a int"),
            ([[{}, "x"]], "Turn 0 of the history has the role {}; expected user"),
            ([{"role": np.zeros(2), "content": "x"}], "Turn 0 of the history has the role array"),
            ([("user", "x"), ("wizard", "y")], "Turn 1 of the history has the role 'wizard'; expected user"),
            ([("user", 3)], "Turn 0 of the history has int as content; expected text"),
            ([{"content": "x"}], "Turn 0 of the history is a dict with ['content']"),
            (["hello"], "Turn 0 of the history is str 'hello'"),
            ([("user", "\ud800")], "lone surrogate"),
        ],
    )
    def test_what_cannot_be_used_is_named(self, history: Any, message: str) -> None:
        with pytest.raises(InputError) as caught:
            Conversation.of(history)
        assert message in str(caught.value)

    def test_a_message_checks_itself(self) -> None:
        with pytest.raises(InputError, match="role is 'human'"):
            Message("human", "x")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="only whitespace"):
            Message("user", " ")

    @given(conversations, words)
    def test_the_query_itself_is_not_its_history(self, said: Conversation, query: str) -> None:
        asked = Conversation((*said.messages, Message("user", query)))
        assert asked.before(query) == said.before(query)
        assert said.before(query).before(query) == said.before(query)

    @given(conversations, st.integers(0, 200))
    def test_the_newest_turns_are_kept(self, said: Conversation, characters: int) -> None:
        kept = said.newest(characters)
        assert sum(len(each.content) for each in kept) <= characters
        if len(kept):
            first, *rest = kept
            tail = said.messages[-len(kept) :]
            assert tuple(rest) == tail[1:]
            assert tail[0].content.endswith(first.content)
            assert first.role == tail[0].role
        if sum(len(each.content) for each in said) <= characters:
            assert kept == said

    @given(conversations, st.integers(-5, 120))
    def test_the_prompt_stays_within_its_room(self, said: Conversation, room: int) -> None:
        def ids(texts):
            return [list(text.encode()) for text in texts]

        shown = rendered(said, ids, room)
        assert len(shown) <= max(0, room)
        text = bytes(shown).decode(errors="replace")
        whole = "".join(f"{each.role}: {each.content}\n" for each in said) + "user: "
        if shown:
            assert text.endswith("user: ")
            assert said.messages[-1].content[-1:] in text
        if len(said) and len(whole.encode()) <= room:
            assert text == whole

    def test_the_end_of_the_first_turn_that_has_no_room_is_kept(self) -> None:
        said = Conversation.of([("user", "abcdefghijklmnopqrstuvwxyz"), ("assistant", "I see.")])
        shown = rendered(said, lambda texts: [list(text.encode()) for text in texts], 42)
        assert bytes(shown).decode() == "user: pqrstuvwxyz\nassistant: I see.\nuser: "


class TestFiles:
    def test_both_forms(self, tmp_path: Path) -> None:
        expected = Conversation.of(SAID)
        lines, listed, wrapped = (tmp_path / name for name in ("a.jsonl", "b.json", "c.json"))
        lines.write_text("\n\n".join(json.dumps(turn) for turn in expected.to_list()), encoding="utf-8")
        listed.write_text(json.dumps(SAID), encoding="utf-8")
        wrapped.write_text(json.dumps({"messages": SAID}), encoding="utf-8")
        assert read_history(lines) == read_history(listed) == read_history(wrapped) == expected

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.jsonl", b'["user", "x"]\n{', "a.jsonl: line 2 is not JSON"),
            ("a.json", b"{", "a.json is not JSON"),
            ("a.json", b'{"turns": []}', "a.json: The history is a dict"),
            ("a.json", b"\xff", "is not UTF-8"),
            ("a.jsonl", b'["wizard", "x"]', "a.jsonl: Turn 0 of the history has the role 'wizard'"),
        ],
    )
    def test_damage_is_named(self, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            read_history(tmp_path / name)
        assert message in str(caught.value)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="There is no file"):
            read_history(tmp_path / "none.jsonl")
