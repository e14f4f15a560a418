"""The settings of what is learnt: the model, its adapter, how a gradient becomes a step, and the loss."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from training.config.base import Section
from training.config.sources import Fraction

BelowOne = Annotated[float, Field(ge=0, lt=1)]
Kernel = Literal["auto", "documents", "varlen", "flex", "flash_attention_2", "flash_attention_3"]


class ModelConfig(Section):
    """Which pretrained model, and how its forward pass is computed."""

    source: Literal["huggingface", "gguf", "scratch"] = Field(
        description="a Hugging Face folder or hub name; a GGUF file, dequantised once; or random weights "
        "of `architecture`"
    )
    path: str | None = Field(
        description="huggingface: folder or hub name. gguf: a file, or package:NAME/FILE inside an installed "
        "Python package. scratch: null"
    )
    folder: str | None = Field(
        description="gguf and scratch: the Hugging Face folder that `metier prepare` writes once"
    )
    architecture: dict[str, Any] | None = Field(
        description="scratch: the model's config.json as a mapping, `model_type` included"
    )
    tokenizer: str | None = Field(
        description="null: the model's own. Else a folder or hub name, or `bytes`: one token per byte, ChatML"
    )
    chat_template: str | None = Field(description="a Jinja file that replaces the tokenizer's own template")
    extra_tokens: list[str] = Field(
        description="words of the domain that become one token each; the embeddings grow with them"
    )
    attention: Kernel = Field(
        description="kernel that keeps packed documents apart. documents: one sdpa call per group of equal "
        "lengths, anywhere; the others need a GPU, flash attention its package too. auto: varlen on a GPU in "
        "bf16, else documents"
    )


class AdapterConfig(Section):
    """What is trained: all weights, or low-rank adapters on a frozen base (arXiv:2106.09685, 2305.14314)."""

    kind: Literal["none", "lora", "dora"] = Field(
        description="none trains all weights; dora: LoRA with a trained length of each row (arXiv:2402.09353)"
    )
    base_bits: Literal[16, 4] = Field(description="bits of the frozen base; 4 is NF4: QLoRA")
    rank: PositiveInt = Field(description="r of the adapter's two matrices")
    alpha: PositiveFloat = Field(description="the adapter's output is scaled by alpha / rank")
    rank_stabilized: bool = Field(
        description="scale by alpha / sqrt(rank) instead: large ranks learn as well (arXiv:2312.03732)"
    )
    dropout: BelowOne = Field(description="dropout on the adapter's input")
    targets: Literal["all-linear"] | list[str] = Field(description="module names, or every linear layer")
    trained_modules: list[str] = Field(
        description="modules trained whole beside the adapter, for instance embed_tokens or lm_head"
    )
    frozen: list[str] = Field(
        description="kind=none: parameters that stay as they are, as patterns of their names, for instance "
        "*.layers.0.* or *embed_tokens*"
    )


class OptimizerConfig(Section):
    """How a gradient becomes a step. Decay is decoupled from the gradient in all of them."""

    kind: Literal["adamw", "adamw_cpu", "adamw_8bit", "adamw_paged", "lion", "muon", "adafactor"] = Field(
        description="adamw (arXiv:1711.05101); adamw_cpu: DeepSpeed's, for state offloaded to the CPU, "
        "compiled at first use; adamw_8bit and adamw_paged: bitsandbytes', on GPUs; lion (arXiv:2302.06675); "
        "muon (arXiv:2502.16982) for the layers' matrices, adamw for the rest; adafactor (arXiv:1804.04235)"
    )
    learning_rate: PositiveFloat = Field(description="the schedule's peak")
    beta1: BelowOne = Field(description="decay of the mean of gradients")
    beta2: BelowOne = Field(description="decay of the mean of squared gradients; lion: of the mean")
    momentum: BelowOne = Field(description="muon: decay of the mean of a matrix' gradients")
    epsilon: PositiveFloat = Field(description="added to the root of the squared mean")
    weight_decay: NonNegativeFloat = Field(description="on matrices; never on norms and biases")
    max_grad_norm: PositiveFloat = Field(description="gradients are scaled down to this global L2 norm")
    rate_factors: dict[str, PositiveFloat] = Field(
        description="learning rate of some parameters, as a factor: {PATTERN: FACTOR}; the first pattern "
        "that matches a parameter's name counts. {*lora_B*: 16} is LoRA+ (arXiv:2402.12354)"
    )


class ScheduleConfig(Section):
    """The learning rate as a function of the step."""

    kind: Literal["cosine", "linear", "constant", "wsd", "inverse_sqrt"] = Field(
        description="decay after the warm-up. linear: step s of N, from 0, has (N - s) / (N - warmup_steps) "
        "of the way from final_fraction up to the peak; cosine: the same way along half a cosine; wsd: the "
        "peak, then linear over the last decay_steps; inverse_sqrt: peak x sqrt(warmup_steps / (s + 1))"
    )
    warmup_steps: NonNegativeInt = Field(
        description="steps of linear rise: step s, from 0, has (s + 1) / warmup_steps of the peak"
    )
    decay_steps: NonNegativeInt = Field(description="wsd: length of the final decay")
    final_fraction: Fraction = Field(
        description="where the decay arrives, as a fraction of the peak: the rate of a step after the last; "
        "so with 0 no step is thrown away"
    )
    first_step: NonNegativeInt = Field(
        description="where in the schedule this run begins: after 1000 steps of another run, 1000 goes on "
        "where it ended"
    )
    total_steps: PositiveInt | None = Field(
        description="length of the whole schedule; null: it ends with this run"
    )


class LossConfig(Section):
    """What is minimised beside the cross-entropy. The loss that is told is always the plain cross-entropy."""

    label_smoothing: BelowOne = Field(
        description="share of each target that is spread evenly over the vocabulary (arXiv:1512.00567)"
    )
    z_loss: NonNegativeFloat = Field(
        description="factor of the squared log of the softmax's sum, 1e-4 in PaLM (arXiv:2204.02311)"
    )
