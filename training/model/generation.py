"""How answers are generated: the tokens that end one."""

from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from training.model.tokenizer import find_text_end, find_turn_end


def find_stop_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """List the ids that end an answer: the chat turn's end, the tokenizer's own end, the end of a text."""
    return list(
        dict.fromkeys([find_turn_end(tokenizer), int(tokenizer.eos_token_id), find_text_end(tokenizer)])
    )


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
