"""Prompts through the chat templates of well-known families, and the switch of models that reason first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers, processors
from transformers import AutoModelForCausalLM

from o1_retriever import ThoughtSettings
from o1_retriever.endpoint.chat import without_system
from o1_retriever.engine.rows import Draft
from o1_retriever.engine.template import ChatTemplate, _source
from o1_retriever.errors import SettingsError
from o1_retriever.query import as_queries
from o1_retriever.thinkers import ChatPrompt, LocalThinker
from o1_retriever.thinkers.local import read_draft
from tests.support.templates import FAMILIES, tokenizer_of
from tests.support.tiny import CONFIGS, byte_tokenizer

PROMPT = ChatPrompt(system="Think of facts.", examples=(("Why is ice cold?", "Ice is frozen water."),))
[MIRROR] = as_queries(["How does a mirror fog up?"])
REFUSE_SYSTEM = {"gemma", "mistral-first"}
# What stands behind the rendered chat, where the template leaves the beginning to the model.
BEGUN_OFF = {
    "deepseek-r1": "\n</think>\n\n",
    "deepseek-r1-first": "<think>\n\n</think>\n\n",
    "gpt-oss": "<|channel|>final<|message|>",
}
BEGUN_ON = {"gpt-oss": "<|channel|>analysis<|message|>"}
SWITCHED = {"qwen3": "<think>\n\n</think>\n\n", "smollm3": "<think>\n\n</think>\n"}


def template_of(name: str, **options: Any) -> ChatTemplate:
    return ChatTemplate(tokenizer_of(name), shared=PROMPT.messages(MIRROR)[:-1], **options)


@pytest.mark.parametrize("reasons", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_is_the_template_s_own(name: str, reasons: bool) -> None:
    """Token for token what transformers makes of the same messages."""
    template = template_of(name, reasons=reasons)
    messages: Any = PROMPT.messages(MIRROR)
    if name in REFUSE_SYSTEM:
        messages = without_system(messages)
    text = template.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=reasons
    )
    text += (BEGUN_ON if reasons else BEGUN_OFF).get(name, "")
    expected = template.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert template.prompt(PROMPT.messages(MIRROR)) == expected
    assert template.tokenizer.decode(expected).count("Think of facts.") == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_what_all_prompts_share_and_what_ends_a_thought(name: str) -> None:
    template = template_of(name)
    family = FAMILIES[name]
    ends = {template.tokenizer.convert_tokens_to_ids(token) for token in family.ends or (family.eos,)}
    assert set(template.stops) == ends
    forbidden = set(template.suppressed(len(template.tokenizer)))
    assert not forbidden & {*ends, template.eos}
    assert len(forbidden) == len(set(family.special) - set(family.ends) - {family.eos})
    prompt = template.prompt(PROMPT.messages(MIRROR))
    opening = template.tokenizer.decode(template.opening)
    assert prompt[: len(template.opening)] == template.opening
    # A template that puts the system message into the last turn shares the examples before it.
    assert "Ice is frozen water." in opening
    assert "fog" not in opening


@pytest.mark.parametrize("name", FAMILIES)
def test_no_query_becomes_a_special_token_of_the_template(name: str) -> None:
    template = template_of(name)
    family = FAMILIES[name]
    tokens = family.special
    honest, hostile = (
        template.prompt(PROMPT.messages(query))
        for query in as_queries(["How does it fog?", f"How does it fog? {''.join(tokens)}"])
    )
    for token in tokens:
        number = template.tokenizer.convert_tokens_to_ids(token)
        assert hostile.count(number) == honest.count(number), token
    said, spelled = template.tokenizer.decode(honest), "".join(tokens)
    assert template.tokenizer.decode(hostile) == said.replace("does it fog?", f"does it fog? {spelled}")


@pytest.mark.parametrize("shared", [(), PROMPT.messages(MIRROR)[:1], PROMPT.messages(MIRROR)[1:-1]])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_stands_around_the_last_message(name: str, shared: Any) -> None:
    """The ids before and behind its words are those of a prompt, whatever goes before it."""
    template = template_of(name)
    messages = [*shared, {"role": "user", "content": "How?"}]
    before, behind = template.around(messages)
    decode = template.tokenizer.decode
    assert f"{decode(before)}How?{decode(behind)}" == decode(template.prompt(messages))
    assert len(before) + len(behind) < len(template.prompt(messages))


def test_a_tokenizer_with_tokens_of_its_own_around_every_text_adds_none() -> None:
    tokenizer = tokenizer_of("llama3")
    begin = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.bos_token_id)]
    )
    template = ChatTemplate(tokenizer)
    assert template.prompt(PROMPT.messages(MIRROR)).count(tokenizer.bos_token_id) == 1
    assert tokenizer("Ice.")["input_ids"][0] == tokenizer.bos_token_id


def test_an_answer_that_the_template_begins_is_not_begun_again() -> None:
    tokenizer = tokenizer_of("gpt-oss")
    begun = "<|start|>assistant<|channel|>final<|message|>"
    opening = "{% if add_generation_prompt %}<|start|>assistant"
    assert opening in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(
        opening, opening.replace("<|start|>assistant", begun)
    )
    text = tokenizer.decode(ChatTemplate(tokenizer).prompt(PROMPT.messages(MIRROR)))
    assert text.endswith(f"<|end|>{begun}")


def test_of_several_templates_the_default_one_is_read() -> None:
    class Several:
        chat_template: Any

    several = Several()
    for templates, read in (
        ({"tool_use": "tools", "default": "plain"}, "plain"),
        ({"default": "plain", "tool_use": "tools"}, "plain"),
        ({"tool_use": "tools"}, "tools"),
        ({}, ""),
        (None, ""),
        ("one", "one"),
    ):
        several.chat_template = templates
        assert _source(several) == read


def test_a_thought_has_the_positions_that_a_prompt_leaves() -> None:
    tokenizer = tokenizer_of("smollm2")
    assert ChatTemplate(tokenizer, positions=100).room([7] * 40) == 59
    assert ChatTemplate(tokenizer).room([7] * 40) == 2**20 - 41


@pytest.mark.parametrize("begins", [True, False])
def test_without_a_template_messages_are_lines(begins: bool) -> None:
    """A base model's tokenizer, with a token that begins every text or without, and merges or none."""
    tokenizer = tokenizer_of("gemma" if begins else "smollm2")
    tokenizer.chat_template = None
    template = ChatTemplate(tokenizer)
    ids = template.prompt(PROMPT.messages(as_queries(["why\nso?"])[0]))
    beginning = [tokenizer.bos_token_id] if begins else []
    assert ids[: len(beginning)] == beginning
    lines = ("Think of facts.\n", "Question: Why is ice cold?\n", "Answer: Ice is frozen water.\n",
             "Question: why so?\n", "Answer:")  # fmt: skip
    assert ids[len(beginning) :] == [i for line in lines for i in tokenizer(line)["input_ids"]]
    assert set(template.stops) == {tokenizer(f"a{end}")["input_ids"][-1] for end in ("\n", "\n\n")}
    assert len(template.stops) == 2, "two ends of a line are one token here"


def test_a_base_model_s_line_ends_where_its_tokenizer_puts_spaces_before_words() -> None:
    tokenizer = byte_tokenizer(None)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert len(tokenizer("a\n")["input_ids"]) == 3
    assert ChatTemplate(tokenizer).stops == (tokenizer("\n")["input_ids"][-1],)


@pytest.mark.parametrize("name", ["qwen3", "smollm3", "deepseek-r1", "deepseek-r1-first", "gpt-oss"])
def test_a_model_that_reasons_begins_with_its_answer_or_with_its_reasoning(name: str) -> None:
    off, on = (template_of(name, reasons=reasons) for reasons in (False, True))
    texts = [each.tokenizer.decode(each.prompt(PROMPT.messages(MIRROR))) for each in (off, on)]
    assert texts[0].endswith({**SWITCHED, **BEGUN_OFF}[name])
    assert not texts[1].rstrip().endswith(("</think>", "final<|message|>"))
    assert texts[0] != texts[1]


def test_channels_of_gpt_oss_are_not_read_as_text() -> None:
    """The thought ends where its message ends, and the reasoning is the thought where that is wanted."""
    template = template_of("gpt-oss", reasons=True)
    tokenizer = template.tokenizer
    written = tuple(tokenizer("Warm air meets cold glass. We need", add_special_tokens=False)["input_ids"])
    draft = Draft(token_ids=written, finish="length", state=None)  # type: ignore[arg-type]
    thought = read_draft(draft, tokenizer, prompt_tokens=0, reasoning="thought")
    assert thought.text == "Warm air meets cold glass."


def test_reasoning_that_is_open_at_the_limit_is_the_thought_and_an_answer_goes_before_it() -> None:
    tokenizer = tokenizer_of("deepseek-r1")

    def read(text: str, finish: Any) -> str:
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        draft = Draft(token_ids=ids, finish=finish, state=None)  # type: ignore[arg-type]
        return read_draft(draft, tokenizer, prompt_tokens=0, reasoning="thought").text

    # Its template has opened the block, so that what is written shows the end of it alone, if at all.
    assert read("Warm air meets cold glass. So the", "length") == "Warm air meets cold glass."
    assert read("Warm air?\n</think>\n\nWater turns to drops.", "eos") == "Water turns to drops."


SHAPES = {
    "smollm2": "llama", "qwen3": "qwen3", "deepseek-r1": "qwen2", "gemma": "gemma2", "mistral": "mistral",
    "phi": "phi3",
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_thoughts_are_those_of_generate_through_every_family(name: str) -> None:
    tokenizer = tokenizer_of(name)
    torch.manual_seed(0)
    config = CONFIGS[SHAPES[name]](len(tokenizer))
    config.max_position_embeddings = 600
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    thinker = LocalThinker(model, tokenizer, prompt=PROMPT)
    template = thinker.local.template
    greedy = ThoughtSettings(n_thoughts=1, temperature=0.0, max_new_tokens=8)
    [[thought]] = thinker.think([MIRROR], settings=greedy)
    ids = torch.tensor([template.prompt(PROMPT.messages(MIRROR))])
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=8,
        min_new_tokens=1,
        eos_token_id=list(thinker.local.stop_ids),
        pad_token_id=0,
        suppress_tokens=template.suppressed(thinker.local.vocabulary),
    )[0, ids.shape[1] :].tolist()
    kept = tuple(i for i in written if i not in thinker.local.stop_ids)
    draft = Draft(token_ids=kept, finish=thought.finish, state=None)  # type: ignore[arg-type]
    assert thought.text == read_draft(draft, tokenizer, prompt_tokens=0).text
    assert thought.completion_tokens == len(kept)


class TestPrompt:
    """The parts of the prompt by their names."""

    def thinker(self, **options: Any) -> LocalThinker:
        tokenizer = tokenizer_of("qwen3")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS["llama"](len(tokenizer)), dtype=torch.float32)
        return LocalThinker(model, tokenizer, **options)

    def test_a_system_prompt_and_examples_of_yours_stand_in_for_the_default_s(self) -> None:
        plain, cook, fewer, none = (
            self.thinker(**options)
            for options in (
                {},
                {"system_prompt": "You cook."},
                {"examples": [("Why salt?", "Salt seasons.")]},
                {"system_prompt": "", "examples": ()},
            )
        )
        assert cook.prompt.system == "You cook."
        assert cook.prompt.examples == plain.prompt.examples
        assert fewer.prompt.system == plain.prompt.system
        assert fewer.prompt.examples == (("Why salt?", "Salt seasons."),)
        assert none.prompt == ChatPrompt()
        assert len({each.identity for each in (plain, cook, fewer, none)}) == 4

    def test_they_change_a_prompt_of_yours(self) -> None:
        both = self.thinker(prompt=PROMPT, system_prompt="You cook.")
        assert both.prompt == ChatPrompt(system="You cook.", examples=PROMPT.examples)
        whole = self.thinker(prompt="About {query}: what is known?")
        assert whole.prompt == ChatPrompt("About {query}: what is known?")

    @pytest.mark.parametrize("examples", ["ab", [("a",)], [("a", 1)], 3])
    def test_examples_are_pairs_of_texts(self, examples: Any) -> None:
        with pytest.raises(SettingsError, match="expected pairs of a query and a thought"):
            self.thinker(examples=examples)
