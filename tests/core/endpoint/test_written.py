"""What models and servers put around a thought is understood in one place, for every family."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from o1_retriever.endpoint.chat import read_written, refused

ANSWER = "Dew forms when moist air meets a cold surface."
BOATS = "maybe boats"


@pytest.mark.parametrize(
    ("text", "reasoning"),
    [
        (ANSWER, ""),
        (f"<think>{BOATS}</think>{ANSWER}", BOATS),
        (f"<THINK>\n{BOATS}\n</THINK>\n\n{ANSWER}", BOATS),
        (f"<thinking>{BOATS}</thinking>{ANSWER}", BOATS),
        (f"<reasoning>{BOATS}</reasoning>{ANSWER}", BOATS),
        (f"<thought>\n{BOATS}\n</thought>\n\n{ANSWER}", BOATS),
        (f"<seed:think>{BOATS}</seed:think>{ANSWER}", BOATS),
        (f"[THINK]{BOATS}[/THINK]{ANSWER}", BOATS),
        (f"◁think▷{BOATS}◁/think▷{ANSWER}", BOATS),
        (f"<|START_THINKING|>{BOATS}<|END_THINKING|><|START_RESPONSE|>{ANSWER}<|END_RESPONSE|>", BOATS),
        (f"<|channel>thought\n{BOATS}<channel|>{ANSWER}", BOATS),
        (
            f"<|begin_of_thought|>{BOATS}<|end_of_thought|><|begin_of_solution|>{ANSWER}<|end_of_solution|>",
            BOATS,
        ),
        (f"<think>{BOATS}</think><answer>{ANSWER}</answer>", BOATS),
        (f"{BOATS}</think>{ANSWER}", BOATS),
        (f"<think></think>{ANSWER}", ""),
        (f"<think>{BOATS}</think>{ANSWER}</think>", BOATS),
        (f"<think>a <think>b</think> c</think>{ANSWER}", "a b c"),
        (f"<think>a <think>b</think>{ANSWER}", "a b"),
        (
            f"<|channel|>analysis<|message|>{BOATS}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}",
            BOATS,
        ),
        (
            f"<|channel|>analysis<|message|>{BOATS}<|end|><|start|>assistant<|channel|>commentary "
            "to=f <|constrain|>json<|message|>{}<|call|><|start|>assistant<|channel|>final<|message|>"
            f"{ANSWER}<|return|>",
            f"{BOATS}\n{{}}",
        ),
        (f"{BOATS}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}<|return|>", BOATS),
        (f"analysisUser wants dew.assistantfinal{ANSWER}", "User wants dew."),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_an_answer_is_told_from_the_reasoning_of_every_family(text, reasoning, cut):
    written = read_written(text, cut=cut)
    assert (written.answer, " ".join(written.reasoning.split()), written.unfinished) == (
        ANSWER,
        " ".join(reasoning.split()),
        False,
    )


@pytest.mark.parametrize(
    "text",
    [
        f"<think>{BOATS}",
        f"<thought>\n{BOATS}",
        f"<seed:think>{BOATS}",
        f"[THINK]{BOATS}",
        f"◁think▷{BOATS}",
        f"<|START_THINKING|>{BOATS}",
        f"<|channel>thought\n{BOATS}",
        f"<|channel|>analysis<|message|>{BOATS}",
        f"<|begin_of_thought|>{BOATS}",
        "analysis" + BOATS.capitalize(),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_reasoning_that_did_not_end_is_no_answer_but_is_kept_as_reasoning(text, cut):
    written = read_written(text, cut=cut)
    assert written.unfinished
    assert written.thought("off") == ""
    assert written.thought("thought").lower() == BOATS


@pytest.mark.parametrize(
    "end",
    [
        "<|im_end|>",
        "<|im_end|>\n<|im_start|>user\nWhat is rain?",
        "</s>",
        "<|eot_id|><|start_header_id|>assistant",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|end|>",
        "<end_of_turn>\n<start_of_turn>user",
        "<turn|>",
        "<｜end▁of▁sentence｜>",
        "[|endofturn|]",
    ],
)
@pytest.mark.parametrize("start", ["", "<s>", "<|im_start|>assistant\n", "<start_of_turn>model\n"])
def test_the_marks_of_a_turn_are_no_part_of_the_answer(start, end):
    assert read_written(start + ANSWER + end, cut=False).answer == ANSWER


@pytest.mark.parametrize(
    "text",
    [
        f"```\n{ANSWER}\n```",
        f"```text\n{ANSWER}\n```",
        f"~~~\n{ANSWER}\n~~~",
        f'{{"answer": "{ANSWER}"}}',
        f'```json\n{{"thought": "{ANSWER}"}}\n```',
        f'{{"Passage": "{ANSWER}", "title": "Dew", "score": 1}}',
        f'{{"Whatever": "{ANSWER}"}}',
        f'["{ANSWER}"]',
        f"<answer>\n{ANSWER}\n</answer>",
        f"<answer>{ANSWER}",
        f"{ANSWER}\x00",
        f"\x07{ANSWER[:5]}\ud83d{ANSWER[5:]}\x9f",
    ],
)
def test_an_answer_is_taken_out_of_what_it_is_wrapped_in(text):
    assert read_written(text, cut=False).answer == ANSWER


@pytest.mark.parametrize(
    "text",
    [
        "A thought about the <think> tag.",
        "Python has lists like [1, 2] and dicts.",
        "[1] Dew is water.",
        '{"a": 1}',
        '{"title": "Dew", "score": "high"}',
        "Use `x = 1`:\n```\nx = 1\n```\nThat is all.",
        "analysis of dew shows water.",
        "tab\tand\nnew line",
    ],
)
def test_what_only_looks_like_a_mark_stays(text):
    assert read_written(text, cut=False).answer == text


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I can’t assist with that request.",
        "Sorry, I cannot provide this information.",
        "I cannot answer that question.",
        "I can't help with that.",
        "I am unable to assist with this request.",
        "I'm not able to provide medical advice.",
        "Unfortunately, I am not able to answer this.",
        "As an AI language model, I don't have access to real-time data.",
        "As an AI, I cannot give personal opinions.",
        "I apologize, but I won't be able to help with this.",
        "I must decline to answer this request.",
        "I'm just a language model, and can't help with that.",
        "We cannot share this information.",
        "We cannot help you.",
        "We’re sorry, but we can’t assist with that.",
        "Unfortunately, we will not be able to answer your question.",
        "I don't know the answer to this question.",
        "I do not have enough information to answer.",
    ],
)
def test_the_common_wordings_of_a_refusal_are_known(text):
    assert refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ANSWER,
        "I am sorry is what people say when they regret something.",
        "Plants cannot move, but they can help each other.",
        "Sorry is an apology that people give.",
        "We cannot create energy out of nothing: this is the first law of thermodynamics.",
        "We can’t provide proof that numbers exist.",
        "We do not know how to create life from what does not live.",
        "The answer is that I have no roots, says the tree.",
        "A person who cannot provide information is silent.",
        "I cannot help noticing is an English idiom; "
        + "it means that one sees something against one's will. " * 10,
        "Ice cream melts because it cannot hold its form above zero degrees.",
    ],
)
def test_a_thought_is_no_refusal(text):
    assert not refused(text)


@given(st.text(alphabet='<>/|thinkgab \n[]{}"TK◁▷`') | st.text(), st.booleans())
def test_any_text_is_taken_apart_without_an_accident(text, cut):
    written = read_written(text, cut=cut)
    assert written.answer == written.answer.strip()
    assert "</think>" not in written.answer or not cut
    assert not refused(text) or len(text) <= 400
    written.answer.encode()
