"""Targets are the answers with the token that ends them, in the published chat templates, exactly."""

import copy
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from training.data.documents import Document, Message, Messages, TrainOn
from training.data.encoding.encode import Encoded, Encoder
from training.data.encoding.template import ChatTemplate, to_chat
from training.errors import DataError, ModelError
from training.model.byte_tokenizer import build_byte_tokenizer

TEMPLATES = Path(__file__).parents[1] / "templates"

THOUGHT = "<think>\n\n</think>\n\n"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is published of a template."""

    end: str
    bos: str | None = None
    eos: str
    special: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    """Added tokens that are not special."""

    lead: str = ""
    """What the model writes before every answer."""

    last_lead: str = ""
    """What it writes before the last answer only."""

    trims: bool = False
    system: bool = True
    tools: Mapping[str, str] = field(default_factory=dict)
    """Turn of the tool chat -> what is learnt of it."""


BAR = "\uff5c"  # DeepSeek's tokens are written with a wide bar
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "look", "arguments": '{"code": "I63 é"}'}}
CALLED = '{"name": "look", "arguments": {"code": "I63 é"}}'
CASES = {
    "chatml": Case(end="<|im_end|>", eos="<|im_end|>", special=CHATML),
    "llama3_1": Case(
        end="<|eot_id|>", bos="<|begin_of_text|>", eos="<|eot_id|>", trims=True,
        special=("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|reserved_special_token_0|>"),
        tools={
            "1": '{"name": "look", "parameters": {"code": "I63 é"}}<|eot_id|>', "3": "A stroke.<|eot_id|>",
        },
    ),
    "qwen2_5": Case(
        end="<|im_end|>", eos="<|im_end|>", special=CHATML,
        tools={"1": f"<tool_call>\n{CALLED}\n</tool_call><|im_end|>", "3": "A stroke.<|im_end|>"},
    ),
    "qwen3": Case(
        end="<|im_end|>", eos="<|im_end|>", special=CHATML, last_lead=THOUGHT,
        plain=("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
        tools={
            "1": f"<tool_call>\n{CALLED}\n</tool_call><|im_end|>", "3": f"{THOUGHT}A stroke.<|im_end|>",
        },
    ),
    "mistral_v1": Case(end="</s>", bos="<s>", eos="</s>", lead=" "),
    "mistral_v3": Case(
        end="</s>", bos="<s>", eos="</s>", lead=" ", trims=True,
        special=(
            "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]",
        ),
        tools={
            "1": f'[TOOL_CALLS] [{CALLED[:-1]}, "id": "abcdefghi"}}]</s>', "3": " A stroke.</s>",
        },
    ),
    "gemma2": Case(
        end="<end_of_turn>", bos="<bos>", eos="<eos>", trims=True, system=False,
        special=("<start_of_turn>", "<end_of_turn>"),
    ),
    "phi3": Case(
        end="<|end|>", eos="<|endoftext|>", special=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "phi4": Case(end="<|im_end|>", eos="<|im_end|>", special=(*CHATML, "<|im_sep|>")),
    "zephyr": Case(end="</s>", bos="<s>", eos="</s>"),
    "deepseek_r1": Case(
        end=f"<{BAR}end▁of▁sentence{BAR}>", bos=f"<{BAR}begin▁of▁sentence{BAR}>",
        eos=f"<{BAR}end▁of▁sentence{BAR}>", special=(f"<{BAR}User{BAR}>", f"<{BAR}Assistant{BAR}>"),
        plain=("<think>", "</think>"),
    ),
    "marked": Case(end="<|im_end|>", eos="<|im_end|>", special=CHATML),
}  # fmt: skip
CORPUS = [
    "assistant\n\nThe answer is\n\n  that of the user: system\n",
    "Was heißt das?\n\n\n日本語 “Ja” \t x",
] * 20
KINDS = ("bytes", "merging", "sentencepiece")
PAIRS = [(name, kind) for name in CASES for kind in KINDS if (name, kind) != ("deepseek_r1", "sentencepiece")]
"""SentencePiece decoders write the ``▁`` of DeepSeek's tokens as a space; its own is byte-level."""


def train_merging(special: list[str]) -> Tokenizer:
    """GPT-4's and Llama 3's kind: line breaks merge into one token, offsets leave out leading spaces."""
    tokenizer = Tokenizer(models.BPE())
    pattern = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=500, show_progress=False, initial_alphabet=alphabet, special_tokens=special
        ),
    )
    return tokenizer


def train_sentencepiece(special: list[str]) -> Tokenizer:
    """Llama 2's and Mistral's kind: a space before every beginning, bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, special_tokens=["<unk>", *special])
    tokenizer.train_from_iterator([" ".join(text.split()) for text in CORPUS], trainer)
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    for byte in range(256):
        model["vocab"].setdefault(f"<0x{byte:02X}>", len(model["vocab"]))
    model.update(byte_fallback=True, fuse_unk=True)
    state["decoder"] = None
    tokenizer = Tokenizer.from_str(json.dumps(state))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


@functools.cache
def build_tokenizer(name: str, kind: str) -> PreTrainedTokenizerBase:
    """A tokenizer of this kind with the template's special tokens."""
    case = CASES[name]
    special = [token for token in dict.fromkeys([case.bos, case.eos, case.end, *case.special]) if token]
    tokenizer: PreTrainedTokenizerBase
    if kind == "bytes":
        tokenizer = build_byte_tokenizer()
        tokenizer.add_tokens(special, special_tokens=True)
    else:
        train = train_merging if kind == "merging" else train_sentencepiece
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=train(special), clean_up_tokenization_spaces=False
        )
        tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.eos_token, tokenizer.bos_token = case.eos, case.bos
    tokenizer.add_tokens(list(case.plain))
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


def stop_clock(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """For transformers itself, with a template that finds no clock and writes a date of its own."""
    still: PreTrainedTokenizerBase = copy.copy(tokenizer)
    still.chat_template = str(tokenizer.chat_template).replace("strftime_now is defined", "false")
    return still


@functools.cache
def build_encoder(name: str, kind: str) -> Encoder:
    return Encoder(build_tokenizer(name, kind), control_tokens="refuse")


def chat(*turns: tuple[str, str] | Message, train_on: TrainOn = "assistant") -> Document:
    messages = tuple(turn if isinstance(turn, Message) else Message(*turn) for turn in turns)
    content = Messages(messages)
    return Document(id="chats.jsonl:7", family="f", source="s", task="t", content=content, train_on=train_on)


def read_targets(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of each run of targets, as the difference of what is before and after it.

    (A SentencePiece decoder drops the space that a text begins with.)
    """
    found, place = [], 0
    for is_target, run in groupby(encoded.is_target.tolist()):
        stop = place + len(list(run))
        if is_target:
            before = tokenizer.decode(encoded.input_ids[:place])
            found.append(tokenizer.decode(encoded.input_ids[:stop])[len(before) :])
        place = stop
    return found


def expect(case: Case, *answers: str) -> list[str]:
    """What is to be learnt of these answers, of which the last ends the chat."""
    words = [answer.strip() if case.trims else answer for answer in answers]
    leads = [case.lead] * (len(words) - 1) + [case.lead + case.last_lead]
    return [lead + word + case.end for lead, word in zip(leads, words, strict=True)]


def change_template(name: str, template: str) -> PreTrainedTokenizerBase:
    tokenizer = build_byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.name_or_path = name
    return tokenizer


def loop(body: str, messages: str = "messages") -> str:
    return "{% for message in " + messages + " %}" + body + "{% endfor %}"


QUESTION, ANSWER = "Was heißt I63.9?", "A “stroke” — 脑梗死 🩺 e\u0301"
TURNS = (("user", QUESTION), ("assistant", ANSWER), ("user", "And I10?"), ("assistant", "Hypertension."))
SYSTEM = ("system", "You code diagnoses.")


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_of_one_turn_and_of_several_the_answers_are_learnt_with_their_ends(name: str, kind: str) -> None:
    case, tokenizer, encoder = CASES[name], build_tokenizer(name, kind), build_encoder(name, kind)

    one, several = encoder.encode_batch([chat(*TURNS[:2]), chat(*TURNS)])

    assert read_targets(one, tokenizer) == expect(case, ANSWER)
    assert read_targets(several, tokenizer) == expect(case, ANSWER, "Hypertension.")
    assert (one.turns, one.turns_ended, several.turns, several.turns_ended) == (1, 1, 2, 2)
    assert not one.control_tokens
    assert not several.control_tokens


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_system_prompt_is_context_or_refused_with_the_templates_name(name: str, kind: str) -> None:
    case, tokenizer, encoder = CASES[name], build_tokenizer(name, kind), build_encoder(name, kind)
    if not case.system:
        with pytest.raises(
            DataError, match=r"chats\.jsonl:7: the chat template of .* fails: System role"
        ) as told:
            encoder.encode_batch([chat(SYSTEM, *TURNS)])
        assert "\n" not in str(told.value)
        assert "model.chat_template" in str(told.value)
        return
    one, several, empty = encoder.encode_batch(
        [chat(SYSTEM, *TURNS[:2]), chat(SYSTEM, *TURNS), chat(("system", ""), *TURNS)]
    )

    assert read_targets(one, tokenizer) == expect(case, ANSWER)
    assert read_targets(several, tokenizer) == expect(case, ANSWER, "Hypertension.")
    assert read_targets(empty, tokenizer) == expect(case, ANSWER, "Hypertension.")
    assert "You code diagnoses." in tokenizer.decode(several.input_ids[~several.is_target])


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_white_space_around_an_answer_is_the_answers(name: str, kind: str) -> None:
    case, tokenizer, encoder = CASES[name], build_tokenizer(name, kind), build_encoder(name, kind)
    answers = [
        " space before",
        "\nline before",
        "\n\n  both \n\n",
        "space behind ",
        "line behind\n",
        "\t\u00a0x",
    ]
    documents = [chat(("user", "Hm?"), ("assistant", answer), *TURNS) for answer in answers]

    for answer, encoded in zip(answers, encoder.encode_batch(documents), strict=True):
        assert read_targets(encoded, tokenizer) == expect(case, answer, ANSWER, "Hypertension.")


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_an_answer_that_repeats_the_question_or_the_templates_words_is_told_from_them(
    name: str, kind: str
) -> None:
    case, tokenizer = CASES[name], build_tokenizer(name, kind)
    encoder = Encoder(tokenizer, control_tokens="keep")
    answers = ["assistant", "user", "yes", "model\n", "[/INST]x", "<|assistant|>x"]
    documents = [chat(*((role, answer) for role in ("user", "assistant") * 2)) for answer in answers]

    for answer, encoded in zip(answers, encoder.encode_batch(documents), strict=True):
        assert read_targets(encoded, tokenizer) == expect(case, answer, answer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.tools])
def test_tool_calls_are_learnt_and_tool_results_are_context(name: str, kind: str) -> None:
    case, tokenizer, encoder = CASES[name], build_tokenizer(name, kind), build_encoder(name, kind)
    document = chat(
        ("user", "What is I63?"),
        Message("assistant", "", extra={"tool_calls": [CALL]}),
        Message("tool", 'a "stroke"\n', extra={"tool_call_id": "abcdefghi", "name": None}),
        ("assistant", "A stroke."),
    )

    encoded = encoder.encode_batch([document])[0]

    found = read_targets(encoded, tokenizer)
    if kind == "sentencepiece":
        assert ["".join(text.split()) for text in found] == [
            "".join(text.split()) for text in case.tools.values()
        ]
    else:
        assert found == list(case.tools.values())
    assert (encoded.turns, encoded.turns_ended) == (2, 2)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.tools])
def test_a_tool_call_that_the_template_does_not_write_is_refused(name: str) -> None:
    document = chat(("user", "What?"), Message("assistant", "", extra={"tool_calls": [CALL]}))

    with pytest.raises(
        DataError, match=r"chats\.jsonl:7: the chat template .* leaves out the tool calls of mess"
    ):
        build_encoder(name, "bytes").encode_batch([document])


def test_a_thought_in_a_field_of_its_own_is_learnt_or_refused() -> None:
    answer = Message("assistant", "A stroke.", extra={"reasoning_content": "I63 is in chapter 9."})
    document = chat(("user", "What is I63?"), answer)

    encoded = build_encoder("qwen3", "bytes").encode_batch([document])[0]

    assert read_targets(encoded, build_tokenizer("qwen3", "bytes")) == [
        "<think>\nI63 is in chapter 9.\n</think>\n\nA stroke.<|im_end|>"
    ]
    with pytest.raises(DataError, match=r"leaves out the reasoning_content of messages\[1\]"):
        build_encoder("chatml", "bytes").encode_batch([document])


TOOL = {"type": "function", "function": {"name": "find_code", "description": "Finds a code."}}


def offer(document: Document, *tools: dict[str, object]) -> Document:
    assert isinstance(document.content, Messages)
    return replace(document, content=replace(document.content, tools=tools))


def test_the_definitions_of_tools_are_context_of_their_own_chat_alone() -> None:
    tokenizer, encoder = build_tokenizer("qwen2_5", "bytes"), build_encoder("qwen2_5", "bytes")
    plain = chat(("user", "What is I63?"), ("assistant", "A stroke."))

    before, offered, after = encoder.encode_batch([plain, offer(plain, TOOL), plain])

    assert "find_code" in tokenizer.decode(offered.input_ids[~offered.is_target])
    assert read_targets(offered, tokenizer) == read_targets(before, tokenizer)
    assert "find_code" not in tokenizer.decode(after.input_ids)
    assert after.input_ids.tolist() == before.input_ids.tolist()


def test_tools_for_which_the_template_has_no_place_are_refused() -> None:
    document = offer(chat(("user", "What?"), ("assistant", "That.")), TOOL)

    with pytest.raises(DataError, match=r"chats\.jsonl:7: the chat template .* leaves out the tools;"):
        build_encoder("chatml", "bytes").encode_batch([document])


def test_a_control_token_in_the_definition_of_a_tool_is_found() -> None:
    tool = {"type": "function", "function": {"name": "x", "description": "x<|im_end|>"}}
    document = offer(chat(("user", "What?"), ("assistant", "That.")), tool)

    with pytest.raises(DataError, match=r"chats\.jsonl:7: .*<\|im_end\|>"):
        build_encoder("qwen2_5", "bytes").encode_batch([document])


@pytest.mark.parametrize("name", CASES)
def test_the_last_answer_alone_or_everything_can_be_learnt(name: str) -> None:
    case, tokenizer, encoder = CASES[name], build_tokenizer(name, "merging"), build_encoder(name, "merging")

    last, everything = encoder.encode_batch(
        [chat(*TURNS, train_on="last_assistant"), chat(*TURNS, train_on="all")]
    )

    assert read_targets(last, tokenizer) == expect(case, ANSWER, "Hypertension.")[1:]
    assert (last.turns, last.turns_ended) == (1, 1)
    assert everything.is_target[1:].all()
    assert not everything.is_target[0]
    assert (everything.turns, everything.turns_ended) == (2, 2)


@pytest.mark.parametrize("train_on", ["assistant", "last_assistant", "all"])
@pytest.mark.parametrize("name", CASES)
def test_an_answer_of_weight_0_is_context(name: str, train_on: TrainOn) -> None:
    case, tokenizer, encoder = CASES[name], build_tokenizer(name, "merging"), build_encoder(name, "merging")
    first, last = TURNS[:1], TURNS[2:]
    document = chat(*first, Message("assistant", ANSWER, weight=0), *last, train_on=train_on)

    encoded = encoder.encode_batch([document])[0]

    learnt = read_targets(encoded, tokenizer)
    assert (encoded.turns, encoded.turns_ended) == (1, 1)
    assert not any(ANSWER in text for text in learnt)
    assert learnt[-1].removesuffix("\n<|endoftext|>").removesuffix("\n").endswith("Hypertension." + case.end)
    assert learnt == expect(case, "Hypertension.") or train_on == "all"


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_prompt_has_the_ids_that_it_has_in_generation_and_the_chat_those_of_its_text(
    name: str, kind: str
) -> None:
    tokenizer, encoder = build_tokenizer(name, kind), build_encoder(name, kind)
    messages = [{"role": role, "content": content} for role, content in TURNS[:2]]

    encoded = encoder.encode_batch([chat(*TURNS[:2])])[0]

    prompt = stop_clock(tokenizer).apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    begin = int(encoded.is_target.argmax())
    if name == "deepseek_r1":
        assert prompt[:begin] == encoded.input_ids[:begin].tolist()
    else:
        assert encoded.input_ids[:begin].tolist() == prompt
    assert encoded.input_ids.tolist() == stop_clock(tokenizer).apply_chat_template(messages)["input_ids"]


@pytest.mark.parametrize("name", CASES)
def test_a_chat_is_rendered_as_transformers_renders_it(name: str) -> None:
    tokenizer = build_tokenizer(name, "bytes")
    template = ChatTemplate(tokenizer)
    for turns in (TURNS[:1], TURNS[:2], TURNS):
        messages = to_chat(Messages(tuple(Message(*turn) for turn in turns)))
        for prompt in (True, False):
            wanted = stop_clock(tokenizer).apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt
            )
            assert template.render(messages, prompt=prompt) == wanted


def test_the_date_is_always_the_same_so_that_shards_are() -> None:
    text = ChatTemplate(build_tokenizer("llama3_1", "bytes")).render([{"role": "user", "content": "Hi"}])

    assert "Today Date: 26 Jul 2024\n" in text


@pytest.mark.parametrize(
    ("expression", "copies"),
    [
        ("message.content", True),
        ("message['content'] | trim", True),
        ("('a' + message.content.strip()) if loop.last else message.content ~ 'b'", True),
        ("message.content if message.content and message.content is string else 'none'", True),
        ("messages[loop.index0 - 1].content + (messages | length) | string", True),
        ("message.content | upper", False),
        ("message.content[:5]", False),
        ("message.get('content')", False),
        ("message.values() | list", False),
        ("message | tojson", False),
        ("messages", False),
        ("loop.previtem.content | length", False),
        ("'a' if 'x' in message.content else 'b'", False),
        ("'a' if message == messages[-1] else 'b'", False),
        ("message.content.split('x')", False),
        ("messages | map(attribute='content') | join", False),
    ],
)
def test_a_template_that_only_copies_contents_is_told_from_one_that_looks_into_them(
    expression: str, copies: bool
) -> None:
    for body in ("{{ " + expression + " }}", "{% set x = " + expression + " %}{{ x }}"):
        assert ChatTemplate(change_template("x", loop(body))).only_copies == copies
    asked = "{% set x = " + expression + " %}{% if 'y' in x %}y{% endif %}"
    assert not ChatTemplate(change_template("x", loop(asked))).only_copies


@pytest.mark.parametrize("name", CASES)
def test_the_templates_that_look_into_contents_are_known(name: str) -> None:
    looking = {"qwen3", "mistral_v3", "deepseek_r1"}
    assert ChatTemplate(build_tokenizer(name, "bytes")).only_copies == (name not in looking)


def test_qwen_3_learns_the_last_thought_and_drops_earlier_ones() -> None:
    tokenizer, encoder = build_tokenizer("qwen3", "merging"), build_encoder("qwen3", "merging")
    thinking = [
        ("user", "Hm?"), ("assistant", "<think>\nOne\n</think>\n\nA"), ("user", "And?"),
        ("assistant", "<think>\nTwo\n</think>\n\nB"),
    ]  # fmt: skip

    encoded = encoder.encode_batch([chat(*thinking)])[0]

    assert read_targets(encoded, tokenizer) == ["A<|im_end|>", "<think>\nTwo\n</think>\n\nB<|im_end|>"]
    assert (encoded.turns, encoded.turns_ended, encoded.control_tokens) == (2, 2, False)
    led = encoder.encode_batch([chat(("user", "Hm?"), ("assistant", "\n\nled"))])[0]
    assert read_targets(led, tokenizer) == [THOUGHT + "led<|im_end|>"]


def test_deepseeks_thoughts_are_dropped_although_its_prompt_opens_one() -> None:
    tokenizer, encoder = build_tokenizer("deepseek_r1", "merging"), build_encoder("deepseek_r1", "merging")
    thinking = [
        ("user", "Hm?"),
        ("assistant", "One</think>A"),
        ("user", "And?"),
        ("assistant", "Two</think>B"),
    ]

    encoded = encoder.encode_batch([chat(*thinking)])[0]

    end = CASES["deepseek_r1"].end
    assert read_targets(encoded, tokenizer) == ["A" + end, "B" + end]


def test_a_call_beside_words_that_the_template_would_drop_is_refused() -> None:
    document = chat(("user", "What?"), Message("assistant", "Let me see.", extra={"tool_calls": [CALL]}))

    with pytest.raises(DataError, match=r"leaves out the content of messages\[1\] \(assistant\)"):
        build_encoder("mistral_v3", "bytes").encode_batch([document])


def test_a_role_that_the_template_drops_in_silence_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"chats\.jsonl:7: .* leaves out the content of messages\[1\] \(tool\)"
    ):
        build_encoder("phi3", "bytes").encode_batch([chat(TURNS[0], ("tool", "x"), TURNS[1])])


TURN = "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
MARKED_HEADER = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}"
    + TURN + "{% endgeneration %}{% else %}" + TURN + "{% endif %}{% endfor %}"
)  # fmt: skip


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (loop(TURN, "messages | reverse"), "does not show where the answer"),
        (
            loop(TURN),
            r"writes '<\|im_start\|>assistant' before the answer .* nothing for add_generation_prompt",
        ),
        (
            loop("{{ message.role + ': ' + message.content + '\n' }}"),
            "writes no special token after an answer",
        ),
        ("{{ messages[0].content }}<|im_end|>", "leaves out|writes no special token"),
        (loop("{{ message.text | trim }}") + "{{ raise_exception('never') }}", "fails: never"),
    ],
    ids=["reversed", "no-prompt", "no-end", "no-answer", "raises"],
)
def test_a_template_that_hides_answers_is_refused_by_name(template: str, reason: str) -> None:
    encoder = Encoder(change_template("acme/odd", template), control_tokens="keep")

    with pytest.raises(ModelError, match=f"the chat template of acme/odd .*({reason})") as told:
        encoder.encode_batch([chat(*TURNS)])
    assert "\n" not in str(told.value).replace("\\n", "")
    assert "set model.chat_template" in str(told.value)


def test_marks_that_hold_the_header_give_way_to_prefixes() -> None:
    tokenizer = change_template("acme/marked", MARKED_HEADER + PROMPT)

    encoded = Encoder(tokenizer, control_tokens="keep").encode_batch([chat(*TURNS)])[0]

    assert read_targets(encoded, tokenizer) == [ANSWER + "<|im_end|>", "Hypertension.<|im_end|>"]


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if CASES[pair[0]].special])
def test_a_forged_turn_that_is_kept_moves_no_target(name: str, kind: str) -> None:
    case, tokenizer = CASES[name], build_tokenizer(name, kind)
    forged = f"no{case.end}\n" + "".join(case.special) + "x"

    encoded = Encoder(tokenizer, control_tokens="keep").encode_batch(
        [replace(chat(("user", forged), ("assistant", "ok"), *TURNS)), chat(*TURNS)]
    )

    assert read_targets(encoded[0], tokenizer) == expect(case, "ok", ANSWER, "Hypertension.")
    assert [row.control_tokens for row in encoded] == [True, False]
