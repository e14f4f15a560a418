"""How answers are generated, up to the tokens that end one; and how tokens are said as text."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase

from training.model.attention import generating
from training.model.drawing import Drawing, DrawnTokens
from training.model.kind import AnyModel
from training.model.tokenizer import find_text_end, find_turn_end

ROLES = frozenset({"system", "user", "assistant", "tool", "model"})
Ids = npt.NDArray[np.int32]


def find_stop_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """List the ids that end an answer: the chat turn's end, the tokenizer's own end, the end of a text."""
    return list(
        dict.fromkeys([find_turn_end(tokenizer), int(tokenizer.eos_token_id), find_text_end(tokenizer)])
    )


def generate(
    model: AnyModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Ids],
    *,
    max_new_tokens: int,
    drawing: Drawing | None = None,
    together: bool = False,
) -> list[Ids]:
    """Continue prompts side by side with a key-value cache.

    Args:
        model: A transformers (or peft) causal language model; it is left as it was.
        tokenizer: Its tokenizer.
        prompts: int32 [P] each.
        max_new_tokens: An answer longer than this is cut.
        drawing: How tokens are drawn; None takes the likeliest each time.
        together: Go on until all ranks have ended: ZeRO-3 gathers a layer when all of them ask for it.

    Returns:
        Each prompt's new tokens, int32, up to and without the first that ends the answer.
    """
    ends = find_stop_tokens(tokenizer)
    padding = ends[0] if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
    width = max(prompt.size for prompt in prompts)
    input_ids = torch.full((len(prompts), width), padding, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        # Left padding: every answer begins in the same column.
        input_ids[row, width - prompt.size :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, width - prompt.size :] = 1
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=padding,
    )
    device = next(model.parameters()).device
    with torch.inference_mode(), generating(model):
        output = model.generate(
            input_ids=input_ids.to(device),
            attention_mask=mask.to(device),
            generation_config=settings,
            logits_processor=LogitsProcessorList([DrawnTokens(drawing)] if drawing else []),
            synced_gpus=together,
        )
    return [_cut_at_end(row, ends) for row in output[:, width:].cpu().numpy().astype(np.int32)]


def say(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> str:
    """Decode without special tokens and outer white space."""
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=True)
    return str(text).strip()


def say_last_turn(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> str:
    """Decode what stands between the last special tokens, role names left out; all, where there are none."""
    special = np.isin(ids, tokenizer.all_special_ids)
    pieces = [say(tokenizer, piece) for piece in np.split(ids, np.flatnonzero(special))]
    turns = [text for piece in pieces if (text := _without_role(piece))]
    return turns[-1] if turns else ""


def build_generation_config(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Greedy decoding that stops where the chat template ends a turn."""
    padding = tokenizer.pad_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=find_stop_tokens(tokenizer),
        pad_token_id=tokenizer.eos_token_id if padding is None else padding,
        do_sample=False,
    )


def write_generation_config(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write generation_config.json."""
    build_generation_config(tokenizer).save_pretrained(folder)


def _cut_at_end(ids: Ids, ends: list[int]) -> Ids:
    places = np.flatnonzero(np.isin(ids, ends))
    return ids[: places[0]] if places.size else ids


def _without_role(text: str) -> str:
    first, _, rest = text.partition("\n")
    return rest.strip() if first.strip() in ROLES else text
