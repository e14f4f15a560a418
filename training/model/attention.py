"""Attention in which the documents of a packed row do not see each other, without a dense mask."""

import inspect
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from training.errors import ModelError
from training.model.documents import attend_documents, check_window, group_documents

DOCUMENTS = "metier_documents"
VARLEN = "metier_varlen"
FLASH = "flash_attention_2"


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
    check_window(max_length_q, kwargs.get("sliding_window"))
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


def compile_around_attention(layers: Sequence[nn.Module]) -> None:
    """Have torch compile each layer at its first pass, in two pieces: before its attention and after it.

    Documents cut attention differently in each batch, so that compiled it would be compiled again and again;
    what lies around it sees the same number of tokens in every pass.
    """
    AttentionInterface.register(DOCUMENTS, torch.compiler.disable(attend_documents))  # type: ignore[no-untyped-call]
    AttentionInterface.register(VARLEN, torch.compiler.disable(attend_varlen))  # type: ignore[no-untyped-call]
    for layer in layers:
        layer.compile(dynamic=False)


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
    implementation: str, bounds: Sequence[int], device: torch.device
) -> dict[str, Any]:
    """Compute once per forward pass what every layer's attention needs to know of the documents.

    Returns:
        Keyword arguments for the model's forward, in the words of its attention implementation.

    Raises:
        ModelError: The implementation cannot keep documents apart.
    """
    if implementation == DOCUMENTS:
        return {"documents": group_documents(bounds, device)}
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
    }


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
