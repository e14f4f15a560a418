"""Attention in which the documents of a packed row do not see each other, without a dense mask."""

import functools
import importlib.util
import inspect
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from training.errors import ModelError
from training.model.documents import attend_documents, check_window, group_documents
from training.model.plain import plain_without
from training.model.sequence_parallel import Team, across_team

DOCUMENTS = "metier_documents"
VARLEN = "metier_varlen"
FLEX = "metier_flex"
FLASH = "flash_attention_2"
FLASH_3 = "flash_attention_3"

_KERNELS = {"varlen": VARLEN, "flex": FLEX, "flash_attention_2": FLASH, "flash_attention_3": FLASH_3}
_PACKAGES = {FLASH: ("flash_attn", "flash-attn"), FLASH_3: ("flash_attn_interface", "flash-attn-3")}
"""What a kernel is imported from, and the package that brings it."""


@across_team
@plain_without("cu_seq_lens_q")
def attend_varlen(  # noqa: PLR0913 - the signature is transformers'
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    cu_seq_lens_q: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document by torch's own varlen kernel; CUDA, fp16 and bf16 alone.

    Its tests are in tests/gpu and have not run yet: no GPU was at hand.

    torch 2.10 asked for ``is_causal=True``; since 2.11 causal is ``window_size=(-1, 0)``, and a later one
    added ``enable_gqa``: the signature is read. Shapes as in ``attend_documents``; ``cu_seq_lens_q`` is int32
    [documents + 1].
    """
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415 - loads CUDA kernels

    if max_length_q is None:
        raise ModelError("attention varlen needs max_length_q beside cu_seq_lens_q")
    check_window(max_length_q, kwargs.get("sliding_window"))
    _refuse_dropout("varlen", dropout)
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


@across_team
@plain_without("document_mask")
def attend_flex(  # noqa: PLR0913 - the signature is transformers'
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    document_mask: "DocumentMask",
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document by torch's flex attention, compiled on a GPU.

    Tested against ``attend_documents`` on a CPU, where torch computes it in plain steps, forward alone; its
    compiled kernel has not run yet. Shapes as in ``attend_documents``.
    """
    check_window(document_mask.longest, kwargs.get("sliding_window"))
    _refuse_dropout("flex", dropout)
    attend = _compiled_flex() if query.device.type == "cuda" else flex_attention
    attended: Any = attend(
        query,
        key,
        value,
        block_mask=document_mask.blocks,
        scale=scaling,
        enable_gqa=query.shape[1] > key.shape[1],
    )
    return attended.transpose(1, 2), None


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentMask:
    """Which blocks of queries and keys flex attention looks at."""

    blocks: BlockMask
    longest: int
    """Tokens of the longest document."""


def mask_flex(bounds: Sequence[int], device: torch.device) -> DocumentMask:
    """Describe a batch's documents to flex attention; no N x N mask is kept."""
    edges = torch.tensor(bounds, dtype=torch.int64)
    lengths = edges[1:] - edges[:-1]
    owners = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(device, non_blocking=True)

    def sees(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (owners[query] == owners[key]) & (query >= key)

    total = bounds[-1]
    blocks = create_block_mask(sees, None, None, total, total, device=device)
    return DocumentMask(blocks=blocks, longest=int(lengths.max()))


@functools.cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention)


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
    """Make our kernels known to transformers; harmless when repeated."""
    for name, attend in _ATTEND.items():
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, mask_documents)


def compile_around_attention(layers: Sequence[nn.Module]) -> None:
    """Have torch compile each layer at its first pass, in two pieces: before its attention and after it.

    Documents cut attention differently in each batch, so that compiled it would be compiled again and again;
    what lies around it sees the same number of tokens in every pass.
    """
    for name, attend in _ATTEND.items():
        AttentionInterface.register(name, torch.compiler.disable(attend))  # type: ignore[no-untyped-call]
    for layer in layers:
        layer.compile(dynamic=False)


def choose_attention(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Translate ``model.attention`` to the name that transformers knows.

    Raises:
        ModelError: The kernel does not run on this device, or its package is missing.
    """
    on_gpu = device.type == "cuda"
    if name == "auto":
        # The varlen kernel takes 16-bit tensors alone.
        return VARLEN if on_gpu and dtype in {torch.bfloat16, torch.float16} else DOCUMENTS
    if name == "documents":
        return DOCUMENTS
    if not on_gpu:
        raise ModelError(f"model.attention={name} needs a GPU; use model.attention=documents or auto")
    kernel = _KERNELS[name]
    module, package = _PACKAGES.get(kernel, (None, None))
    if module and importlib.util.find_spec(module) is None:
        raise ModelError(
            f"model.attention={name} needs the package {package}; install it, or use model.attention=auto"
        )
    return kernel


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
    if implementation == FLEX:
        return {"document_mask": mask_flex(bounds, device)} | shared
    if implementation not in {VARLEN, FLASH, FLASH_3}:
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

    Raises:
        ModelError: Its family has no plain sdpa attention.
    """
    base: PreTrainedModel = model.get_base_model() if hasattr(model, "get_base_model") else model
    implementation = base.config._attn_implementation
    cached, training = base.config.use_cache, model.training
    try:
        base.set_attn_implementation("sdpa")
    except ValueError:
        raise ModelError(
            f"transformers has no plain sdpa attention for models of type {base.config.model_type}, whose "
            "attention adds to it something that ours would leave out; use a model of another family"
        ) from None
    base.config.use_cache = True
    model.eval()
    try:
        yield model
    finally:
        base.set_attn_implementation(implementation)
        base.config.use_cache = cached
        model.train(training)


def _refuse_dropout(name: str, dropout: float) -> None:
    if dropout > 0:
        raise ModelError(
            f"the attention {name} has no dropout, and the model's attention_dropout is {dropout}; use "
            "model.attention=documents"
        )


_ATTEND = {DOCUMENTS: attend_documents, VARLEN: attend_varlen, FLEX: attend_flex}
