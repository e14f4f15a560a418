"""Attention that knows nothing of documents, where a forward pass has none: a plain one, or generate()'s."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

Attend = Callable[..., tuple[Tensor, None]]


def plain_without(keyword: str) -> Callable[[Attend], Attend]:
    """Have transformers' own sdpa take the place of an attention function that is not given ``keyword``."""

    def decorate(attend: Attend) -> Attend:
        @wraps(attend)
        def attend_or_plain(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
        ) -> tuple[Tensor, None]:
            if kwargs.get(keyword) is not None:
                return attend(module, query, key, value, mask, **kwargs)
            kwargs.pop(keyword, None)
            output: Tensor = sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]
            return output, None

        return attend_or_plain

    return decorate
