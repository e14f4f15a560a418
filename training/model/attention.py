"""Attention in which the documents of a packed row do not see each other, without a dense mask."""

import inspect
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from training.errors import ModelError
from training.model.sequence_parallel import Team, across_team

DOCUMENTS = "metier_documents"
VARLEN = "metier_varlen"
FLASH = "flash_attention_2"

_SHARED_LENGTH = 0.75
"""Documents at least this long, as a fraction of the longest of their group, share one call."""
_SHORT = 32
"""Documents up to this many tokens share one call whatever they fill of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentGroups:
    """The documents of a batch, sorted by length into groups that one sdpa call each can take.

    N tokens; P >= N of them once every document is padded to the longest of its group.
    """

    gather: Tensor
    """int64 [P]: the token that stands at each padded place."""

    scatter: Tensor
    """int64 [N]: the padded place of each token."""

    shapes: tuple[tuple[int, int], ...]
    """Documents x padded length of each group; their products sum up to P."""

    longest: int
    """Tokens of the longest document."""


def group_documents(bounds: Sequence[int], device: torch.device) -> DocumentGroups:
    """Group documents of nearly equal length.

    Args:
        bounds: Where each document begins, and N at the end: ``Batch.document_bounds``.
        device: Where attention runs.
    """
    starts = torch.tensor(bounds[:-1], dtype=torch.int64)
    lengths = torch.tensor(bounds[1:], dtype=torch.int64) - starts
    order = torch.argsort(lengths, descending=True, stable=True)
    order = order[lengths[order] > 0]
    gather, shapes, scatter, place = [], [], torch.empty(bounds[-1], dtype=torch.int64), 0
    for first, last in _cut(lengths[order].tolist()):
        members = order[first:last]
        length = int(lengths[members[0]])
        offsets = torch.arange(length)
        real = offsets < lengths[members, None]
        # A padded place repeats the document's last token. It comes after all real ones, so that causal
        # attention never shows it to them, and nobody reads what it computes.
        tokens = starts[members, None] + torch.minimum(offsets, lengths[members, None] - 1)
        places = place + torch.arange(len(members) * length).view(len(members), length)
        scatter[tokens[real]] = places[real]
        gather.append(tokens.flatten())
        shapes.append((len(members), length))
        place += len(members) * length
    return DocumentGroups(
        gather=torch.cat(gather).to(device, non_blocking=True),
        scatter=scatter.to(device, non_blocking=True),
        shapes=tuple(shapes),
        longest=int(lengths.max()),
    )


def _cut(lengths: list[int]) -> Iterator[tuple[int, int]]:
    """Cut descending lengths into groups; yields first and one past the last."""
    first = 0
    for index, length in enumerate(lengths):
        longest = lengths[first]
        if longest > _SHORT and length < _SHARED_LENGTH * longest:
            yield first, index
            first = index
    if lengths:
        yield first, len(lengths)


@across_team
def attend_documents(  # noqa: PLR0913 - the signature is transformers'
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: DocumentGroups | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document: one sdpa call per group of nearly equal lengths.

    Without ``documents`` (a plain forward or generate()) this is transformers' own sdpa attention.

    Args:
        module: The attention layer.
        query: [1, heads, N, head_dim].
        key: [1, kv_heads, N, head_dim].
        value: [1, kv_heads, N, head_dim].
        attention_mask: What ``mask_documents`` gave; None with ``documents``.
        dropout: Of the attention weights.
        scaling: Of the scores; None: 1 / sqrt(head_dim).
        documents: Where the documents lie, from ``group_documents``.
        **kwargs: What transformers hands to every attention function.

    Returns:
        [1, N, heads, head_dim], and None in place of the weights.
    """
    if documents is None:
        output: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )[0]
        return output, None
    _check_window(documents.longest, kwargs.get("sliding_window"))
    repeats = query.shape[1] // key.shape[1]
    rows = [tensor[0].transpose(0, 1).index_select(0, documents.gather) for tensor in (query, key, value)]
    outputs, place = [], 0
    for count, length in documents.shapes:
        q, k, v = (_cut_group(row, place, count, length) for row in rows)
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        output = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling, is_causal=True)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
        place += count * length
    return torch.cat(outputs).index_select(0, documents.scatter)[None], None


def _cut_group(row: Tensor, place: int, count: int, length: int) -> Tensor:
    """[P, heads, head_dim] -> [count, heads, length, head_dim]."""
    rows = row.narrow(0, place, count * length)
    return rows.view(count, length, *row.shape[1:]).transpose(1, 2)


@across_team
def attend_varlen(  # noqa: PLR0913 - the signature is transformers'
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document by torch's own varlen kernel; CUDA, fp16 and bf16 alone.

    Not tested yet: no GPU was at hand when it was written. tests/gpu is where its test belongs.

    torch 2.10 asked for ``is_causal=True``; since 2.11 causal is ``window_size=(-1, 0)``, and a later one
    added ``enable_gqa``: the signature is read. Shapes as in ``attend_documents``; ``cu_seq_lens_q`` is int32
    [documents + 1].
    """
    if cu_seq_lens_q is None:
        output: Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )[0]
        return output, None
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - loads CUDA kernels

    if max_length_q is None:
        raise ModelError("attention varlen needs max_length_q beside cu_seq_lens_q")
    _check_window(max_length_q, kwargs.get("sliding_window"))
    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1 and "enable_gqa" in known:
        options["enable_gqa"] = True
    elif repeats > 1:
        key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    if "scale" in known:
        options["scale"] = scaling
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    attended: Any = varlen_attn(q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, **options)
    return attended[None], None


def mask_documents(
    *args: Any, attention_mask: Tensor | None = None, q_offset: int = 0, **kwargs: Any
) -> Tensor | None:
    """Give no mask where none is needed: never a dense N x N one for a packed row.

    transformers would build one from position_ids that restart. Padded batches (``attention_mask``) and a
    prompt continued in a cache are no packed rows and get transformers' own mask.
    """
    if attention_mask is None and isinstance(q_offset, int) and q_offset == 0:
        return None
    mask: Tensor | None = sdpa_mask(*args, attention_mask=attention_mask, q_offset=q_offset, **kwargs)
    return mask


def register_attention() -> None:
    """Make ``metier_documents`` and ``metier_varlen`` known to transformers; harmless when repeated."""
    AttentionInterface.register(DOCUMENTS, attend_documents)
    AttentionInterface.register(VARLEN, attend_varlen)
    AttentionMaskInterface.register(DOCUMENTS, mask_documents)
    AttentionMaskInterface.register(VARLEN, mask_documents)


def choose_attention(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Translate ``model.attention`` to the name that transformers knows.

    Raises:
        ModelError: The kernel does not run on this device.
    """
    on_gpu = device.type == "cuda"
    if name == "auto":
        # The varlen kernel takes 16-bit tensors alone.
        return VARLEN if on_gpu and dtype in {torch.bfloat16, torch.float16} else DOCUMENTS
    if name == "documents":
        return DOCUMENTS
    if not on_gpu:
        raise ModelError(f"model.attention={name} needs a GPU; use model.attention=documents or auto")
    return VARLEN if name == "varlen" else FLASH


def name_attention(implementation: str) -> str:
    """Translate the name that transformers knows back to ``model.attention``."""
    return implementation.removeprefix("metier_")


def build_attention_inputs(
    implementation: str, bounds: Sequence[int], device: torch.device, team: Team | None = None
) -> dict[str, Any]:
    """Compute once per forward pass what every layer's attention needs to know of the documents.

    Args:
        implementation: In transformers' words.
        bounds: ``Batch.document_bounds``: those of the whole batch, also where a team shares it.
        device: Where attention runs.
        team: Who shares the batch's tokens.

    Returns:
        Keyword arguments for the model's forward, in the words of its attention implementation.

    Raises:
        ModelError: The implementation cannot keep documents apart.
    """
    shared = {} if team is None else {"team": team}
    if implementation == DOCUMENTS:
        return {"documents": group_documents(bounds, device)} | shared
    if implementation not in {VARLEN, FLASH}:
        raise ModelError(
            f"the attention {implementation} lets packed documents see each other; build the model with "
            "model.attention=auto"
        )
    # Packed rows are far shorter than 2^31 tokens; int32 is what the kernels want.
    edges = sorted(set(bounds))
    # The longest is found among the host's numbers: asked of the device, every pass would wait for it.
    longest = max(after - before for before, after in itertools.pairwise(edges))
    ends = torch.tensor(edges, dtype=torch.int32).to(device, non_blocking=True)
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    } | shared


@contextmanager
def generating(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Lend the model to generate(): evaluation mode, plain sdpa, key-value cache; all as before afterwards.

    Args:
        model: The transformers model (of a PeftModel: itself; its config is the base's).
    """
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    implementation = base.config._attn_implementation
    cached, training = base.config.use_cache, model.training
    base.set_attn_implementation("sdpa")
    base.config.use_cache = True
    model.eval()
    try:
        yield model
    finally:
        base.set_attn_implementation(implementation)
        base.config.use_cache = cached
        model.train(training)


def _check_window(longest: int, window: int | None) -> None:
    if window is not None and longest > window:
        raise ModelError(
            f"a document of {longest} tokens is longer than the model's sliding window of {window}; "
            f"use batch.sequence_length={window} or less"
        )
