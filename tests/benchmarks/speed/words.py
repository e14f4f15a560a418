"""A tokenizer for trainers that want one though the documents are token ids already."""

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Make one word per id; nothing is ever encoded with it."""
    words = {f"w{number}": number for number in range(vocabulary)}
    first, second, *_ = words
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token=first)),
        eos_token=second,
        pad_token=first,
    )
