"""The tokenizer: loaded and given its chat template; and its fingerprint."""

import hashlib
import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from training.config.learning import ModelConfig
from training.errors import ModelError
from training.model.byte_tokenizer import END_OF_TEXT, build_byte_tokenizer
from training.model.place import find_model_folder
from training.model.quiet import quiet_upstream
from training.model.vocabulary import add_tokens

BYTES = "bytes"
_TEXT_ENDS = (END_OF_TEXT, "<|end_of_text|>")


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """Load what ``model.tokenizer`` names, else the model's own; add ``model``'s tokens and chat template.

    Raises:
        ModelError: The tokenizer or the template file is missing, or the tokenizer names no end token.
    """
    if model.tokenizer is None or model.source == "scratch":
        tokenizer = read_tokenizer(find_model_folder(model))
    else:
        tokenizer = build_tokenizer(model.tokenizer)
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer names no end token (eos_token); set it in its tokenizer_config.json")
    add_tokens(tokenizer, model.extra_tokens)
    if model.chat_template is not None:
        tokenizer.chat_template = _read_template(Path(model.chat_template))
        tokenizer.chat_template_file = model.chat_template
    return tokenizer


def build_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Make the ``bytes`` tokenizer, or read the one in a folder or on the hub.

    Raises:
        ModelError: There is none.
    """
    return build_byte_tokenizer() if name == BYTES else read_tokenizer(name)


def read_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Read a tokenizer from a folder or the hub.

    Raises:
        ModelError: There is none.
    """
    try:
        with quiet_upstream():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(
            f"{folder}: no tokenizer can be read there; wanted tokenizer.json and tokenizer_config.json; "
            f"set model.tokenizer to a folder that has them ({_first_line(error)})"
        ) from error
    return tokenizer


def find_text_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """Give the id of the token that ends a plain text; the end of a chat's turn where there is no other."""
    # get_vocab copies the whole vocabulary of a fast tokenizer: longer than a batch of texts takes.
    find = tokenizer.backend_tokenizer.token_to_id if tokenizer.is_fast else tokenizer.get_vocab().get
    found = [number for token in _TEXT_ENDS if (number := find(token)) is not None]
    return int(found[0] if found else tokenizer.eos_token_id)


def find_turn_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """Give the id of the token with which the chat template ends an answer; the end token without a template.

    The template itself is asked: the first special token that it writes after an assistant's answer.
    """
    if tokenizer.chat_template is None:
        return int(tokenizer.eos_token_id)
    answer = "\u2063answer"
    chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}]
    text = str(tokenizer.apply_chat_template(chat, tokenize=False))
    after = text.rpartition(answer)[2]
    special = set(tokenizer.all_special_ids)
    ids: list[int] = tokenizer(after, add_special_tokens=False)["input_ids"]
    return next((token for token in ids if token in special), int(tokenizer.eos_token_id))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash what decides the token ids of a document: vocabulary, special tokens, chat template; hexadecimal.

    A fast tokenizer is hashed with its merges and normaliser as well.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = {
        "vocabulary": json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab(),
        "special": {key: str(value) for key, value in tokenizer.special_tokens_map.items()},
        "chat_template": tokenizer.chat_template,
    }
    if backend is not None:
        # Truncation and padding are switches of the last call and no property of the vocabulary.
        parts["vocabulary"].pop("truncation", None)
        parts["vocabulary"].pop("padding", None)
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def find_chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Give the Jinja source of the template that chats are written with; None when there is none."""
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:
        return None


def name_chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Name the chat template for a message: its file, or the tokenizer it belongs to."""
    file = getattr(tokenizer, "chat_template_file", None)
    return f"the chat template {file}" if file else f"the chat template of {_name(tokenizer)}"


def chat_template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Hash the chat template's source; hexadecimal. None when the tokenizer has no template."""
    source = find_chat_template(tokenizer)
    return None if source is None else hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.name_or_path or f"the tokenizer {BYTES}")


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(
            f"model.chat_template={path} cannot be read ({error.strerror}); name a Jinja file, or null"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
