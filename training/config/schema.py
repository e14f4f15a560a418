"""The whole of one run's configuration, one class per group of configs/."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, StringConstraints

from training.config.base import Section
from training.config.cluster import ClusterConfig
from training.config.learning import AdapterConfig, LossConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from training.config.sources import DataConfig, Fraction, SourceConfig

RunName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=,+-]*$", max_length=200)]


class StrategyConfig(Section):
    """How the training state is spread over the ranks (ZeRO, arXiv:1910.02054) and memory is saved."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        description="0 shares nothing, 1 optimizer state, 2 also gradients, 3 also parameters"
    )
    overlap_comm: bool = Field(description="reduce gradients while backward goes on")
    reduce_bucket_size: PositiveInt | None = Field(
        description="elements per gradient reduction; null, here and in the next two: chosen from the sizes "
        "of model and cluster"
    )
    prefetch_bucket_size: NonNegativeInt | None = Field(
        description="stage 3: elements gathered ahead of their use"
    )
    parameter_persistence_threshold: NonNegativeInt | None = Field(
        description="stage 3: parameters with fewer elements stay on every rank"
    )
    offload_optimizer: Literal["none", "cpu", "nvme"] = Field(description="where the optimizer state lives")
    offload_parameters: Literal["none", "cpu", "nvme"] = Field(
        description="stage 3: where the parameters live"
    )
    nvme_path: str | None = Field(description="folder on the node's own fast disk, for offload to nvme")
    secondary_ranks: PositiveInt = Field(
        description="stage 3: neighbouring ranks that hold all parameters between them once more, so that "
        "backward gathers inside a node (ZeRO++ hpZ, arXiv:2306.10209); 1: off"
    )
    quantized_weights: bool = Field(description="stage 3: gather weights in 8 bits (ZeRO++ qwZ)")
    quantized_gradients: bool = Field(description="stage 3: reduce gradients in 4 bits (ZeRO++ qgZ)")
    sequence_parallel_size: PositiveInt = Field(
        description="neighbouring ranks that share the tokens of every pass, for rows too long for one "
        "(Ulysses, arXiv:2309.14509); divides the attention heads; 1: off"
    )
    tensor_parallel_size: PositiveInt = Field(
        description="neighbouring ranks that share each layer's matrices and every pass (DeepSpeed's AutoTP, "
        "arXiv:1909.08053); divides heads, key-value heads and intermediate size; 1: off"
    )
    activation_checkpointing: Literal["none", "full", "offload"] | Annotated[int, Field(ge=2)] = Field(
        description="full: keep each layer's input only and compute it again in backward; a number n: of "
        "every n-th layer; offload: full, the inputs waiting in the host's memory"
    )
    compile: Literal["none", "layers"] = Field(
        description="layers: torch.compile of each decoder layer around its attention"
    )
    deepspeed_extra: dict[str, Any] = Field(
        description="further keys of DeepSpeed's JSON, as +strategy.deepspeed_extra.KEY=VALUE; those that "
        "this configuration owns are refused"
    )

    @property
    def swaps_to_disk(self) -> bool:
        """Whether something of the training state lies on the node's disk."""
        return "nvme" in {self.offload_optimizer, self.offload_parameters}


class BatchConfig(Section):
    """How much is read per optimizer step. gradient_accumulation_steps is derived, never configured."""

    sequence_length: PositiveInt = Field(description="tokens per sample (packed row)")
    micro_batch_size: PositiveInt = Field(description="samples per forward pass on one rank")
    global_batch_size: PositiveInt = Field(description="samples per optimizer step over all ranks")


class LoopConfig(Section):
    """How long, and how often something besides training happens."""

    max_steps: PositiveInt = Field(description="optimizer steps of the whole run")
    log_every_steps: PositiveInt = Field(description="steps between lines on the screen; the journal has all")
    checkpoint_every_steps: PositiveInt = Field(description="steps between checkpoints; the last is saved")
    keep_checkpoints: PositiveInt = Field(
        description="newest checkpoints kept; the one of the least held-out loss stays as well"
    )
    keep_every_steps: PositiveInt | None = Field(
        description="checkpoints at multiples of this, itself a multiple of checkpoint_every_steps, stay for "
        "good; null: none"
    )
    max_skipped_in_a_row: NonNegativeInt = Field(
        description="a step whose loss or gradient is not finite, or a spike, is not applied; one more than "
        "this many in a row stop the run and name the documents; with spike=roll_back those count that came "
        "since the run was last further than ever before"
    )
    spike: Literal["none", "stop", "skip", "roll_back"] = Field(
        description="what a spike meets. skip: its update is not applied; roll_back: the last regular "
        "checkpoint is loaded and training goes on past the spike's data"
    )
    spike_measure: Literal["loss", "grad_norm"] = Field(description="the number that is watched")
    spike_window_steps: PositiveInt = Field(
        description="applied steps that a spike is told by: above their median + spike_deviations x "
        "max(1.4826 x MAD, 1 % of the median)"
    )
    spike_deviations: PositiveFloat = Field(description="robust standard deviations above the median")
    evaluate_every_steps: PositiveInt | None = Field(
        description="steps between measurements of the held-out loss; null: none. The last step is measured"
    )
    held_out_documents: PositiveInt = Field(
        description="documents measured then: others than `metier evaluate` takes"
    )
    sample_documents: NonNegativeInt = Field(
        description="of these, how many are answered at each measurement, into samples.jsonl and W&B; a text "
        "without a question is continued from its middle"
    )
    sample_tokens: PositiveInt = Field(description="tokens that such an answer may have")
    sample_temperature: NonNegativeFloat = Field(
        description="0: its tokens are the likeliest; else they are drawn, each question's with the same "
        "seed every time"
    )
    sample_top_p: float = Field(
        gt=0, le=1, description="drawn are the likeliest tokens that have this probability together; 1: any"
    )
    patience: PositiveInt | None = Field(
        description="measurements in a row without a gain that end the run; null: it goes to max_steps"
    )
    min_change: NonNegativeFloat = Field(
        description="nats per target by which a measurement must be below the last gain to be one; the best "
        "loss, and the best checkpoint, are the least all the same"
    )


class TrackerConfig(Section):
    """Weights & Biases. metrics.jsonl is written whatever is said here."""

    mode: Literal["online", "offline", "disabled"] = Field(
        description="online: sent as it happens; offline: kept in the run directory for `wandb sync`"
    )
    project: str = Field(description="W&B project")
    entity: str | None = Field(description="W&B user or team; null: the account's own")
    group: str | None = Field(description="W&B group")
    job_type: str = Field(description="W&B job type")
    tags: list[str] = Field(description="W&B tags")
    system_seconds: PositiveInt | None = Field(
        description="seconds between two looks at each node's processors, memory and devices; null: none"
    )


class EvaluationConfig(Section):
    """What is measured before and after."""

    held_out_documents: PositiveInt = Field(description="held-out documents whose loss is measured")
    answer_documents: NonNegativeInt = Field(description="held-out questions answered by greedy generation")
    answer_tasks: list[str] = Field(description="the questions that count for exact match, by task name")
    max_new_tokens: PositiveInt = Field(description="tokens that an answer may have")
    general: SourceConfig = Field(description="text that is not of the domain: what may be forgotten")
    general_documents: PositiveInt = Field(description="general documents whose loss is measured")
    general_tokens_per_document: PositiveInt = Field(description="tokens read of each general document")
    tokens_per_batch: PositiveInt = Field(description="tokens per forward pass")
    bootstrap_samples: PositiveInt = Field(description="resamples for the confidence interval")
    confidence: float = Field(gt=0, lt=1, description="of the intervals, for instance 0.95")


class ExportConfig(Section):
    """What `metier export` writes."""

    form: Literal["adapter", "merged"] = Field(
        description="merged: a whole model, adapters folded in; adapter: the adapter alone"
    )
    step: PositiveInt | None = Field(description="which checkpoint; null: the newest")


class PrepareConfig(Section):
    """How `metier prepare` works; changes no byte of what it writes."""

    processes: PositiveInt | None = Field(description="processes that encode; null: one per core")
    tasks: PositiveInt = Field(
        description="over how many jobs of an array the input files are dealt; the call with tasks=1 that "
        "follows them finishes the corpus"
    )
    task: NonNegativeInt = Field(description="which of them this is, from 0")


class LoaderConfig(Section):
    """How shards, and the model, reach the ranks."""

    cache_path: str | None = Field(
        description="folder on the node's own disk; null: a local corpus is read where it lies, a remote one "
        "is kept in the system's temporary folder"
    )
    cache_bytes: PositiveInt = Field(description="the cache's limit; the least recently used shards go first")
    ahead_steps: NonNegativeInt = Field(description="steps whose shards are fetched before they are needed")
    fetch_attempts: PositiveInt = Field(description="tries before a fetch that fails ends the run")
    model_cache_path: str | None = Field(
        description="folder on the node's own disk into which the model's folder is copied, once per node; "
        "null: each rank reads it where it lies"
    )
    model_cache_bytes: PositiveInt = Field(
        description="that folder's limit; the least recently used models go first"
    )


class AuditConfig(Section):
    """What `metier audit` looks at, and the thresholds that stop `metier train` before it wastes a run."""

    min_target_share: Fraction = Field(description="of each source: target tokens of all tokens")
    max_without_targets: Fraction = Field(description="of each source: documents in which nothing is learnt")
    max_skipped: Fraction = Field(description="of each source: records left out as bad")
    max_cut: Fraction = Field(description="of each source: documents truncated or dropped as too long")
    max_removed: Fraction = Field(description="of each source: train documents that are held out as well")
    min_turn_ends: Fraction = Field(description="of the answers: those whose end token is a target")
    min_density: Fraction = Field(description="slots of the packed rows that hold a token")
    max_personal_data: Fraction = Field(
        description="of each source: documents with personal data; looked at by `metier audit` alone"
    )
    scanned_documents: PositiveInt | None = Field(
        description="documents of each source that are searched for personal data; null: all"
    )
    printed_documents: NonNegativeInt = Field(description="documents printed with their targets in colour")


class RunConfig(Section):
    """One run, whole."""

    name: RunName = Field(description="the run directory is run_root/name")
    run_root: str = Field(description="folder of the run directories")
    seed: NonNegativeInt = Field(description="of the data order, the adapter's first values, dropout")
    precision: Literal["bf16", "fp32"] = Field(
        description="bf16 keeps fp32 master weights. CPUs without bf16 instructions are faster in fp32"
    )
    deterministic: bool = Field(
        description="the same bits each time on the same devices, GPUs too: only algorithms that promise it"
    )
    model: ModelConfig
    data: DataConfig
    adapter: AdapterConfig
    strategy: StrategyConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    batch: BatchConfig
    loss: LossConfig
    loop: LoopConfig
    prepare: PrepareConfig
    loader: LoaderConfig
    audit: AuditConfig
    cluster: ClusterConfig
    tracker: TrackerConfig
    evaluation: EvaluationConfig
    export: ExportConfig
