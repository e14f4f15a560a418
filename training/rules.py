"""Rules across groups: what no single setting can know. The login node and every rank call the same."""

from training.batch import find_world_size, plan_batch
from training.config.schema import RunConfig
from training.errors import ConfigError


def check_rules(config: RunConfig) -> None:
    """Refuse combinations that cannot work.

    Raises:
        ConfigError: The first broken rule, in one line that says what to use instead.
    """
    plan_batch(config.batch, find_world_size(config.cluster))
    _check_model(config)
    _check_adapter(config)
    _check_strategy(config)
    _check_schedule(config)


def _check_model(config: RunConfig) -> None:
    model = config.model
    if model.source != "scratch" and model.path is None:
        raise ConfigError(f"model.path is missing; model.source={model.source} needs a file, folder or name")
    if model.source != "huggingface" and model.folder is None:
        raise ConfigError(
            f"model.folder is missing; model.source={model.source} is written there as a Hugging Face folder"
        )
    if model.source == "scratch" and (model.architecture is None or "model_type" not in model.architecture):
        raise ConfigError(
            "model.architecture needs a model_type, for instance model.architecture.model_type=llama, "
            "because model.source=scratch"
        )
    if model.source == "scratch" and model.tokenizer is None:
        raise ConfigError("model.tokenizer is missing; a model from scratch has none: use bytes or a folder")


def _check_adapter(config: RunConfig) -> None:
    if config.adapter.base_bits == 4 and config.adapter.kind == "none":  # noqa: PLR2004
        raise ConfigError(
            "adapter.base_bits=4 needs adapter.kind=lora: 4-bit weights cannot be trained; use adapter=qlora"
        )
    if config.export.form == "adapter" and config.adapter.kind == "none":
        raise ConfigError("export.form=adapter needs an adapter; use export.form=merged")


def _check_strategy(config: RunConfig) -> None:
    strategy = config.strategy
    if strategy.offload_parameters != "none" and strategy.zero_stage != 3:  # noqa: PLR2004
        raise ConfigError(
            f"strategy.offload_parameters={strategy.offload_parameters} needs strategy.zero_stage=3, "
            f"found {strategy.zero_stage}"
        )
    if strategy.offload_optimizer != "none" and strategy.zero_stage == 0:
        raise ConfigError(
            f"strategy.offload_optimizer={strategy.offload_optimizer} needs strategy.zero_stage=1, 2 or 3"
        )


def _check_schedule(config: RunConfig) -> None:
    schedule, steps = config.schedule, config.loop.max_steps
    used = schedule.warmup_steps + (schedule.decay_steps if schedule.kind == "wsd" else 0)
    if used > steps:
        raise ConfigError(
            f"schedule.warmup_steps + schedule.decay_steps = {used} is more than loop.max_steps={steps}; "
            "shorten them"
        )
