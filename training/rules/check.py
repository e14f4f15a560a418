"""What no single setting can know: refuses a configuration whose parts do not go together."""

from itertools import pairwise

from training.batch import plan_run
from training.config.schema import RunConfig
from training.config.sources import MixtureConfig
from training.errors import ConfigError
from training.rules.strategies import check_strategy
from training.schedule import schedule_length


def check_rules(config: RunConfig) -> None:
    """Refuse combinations that cannot work.

    Raises:
        ConfigError: The first broken rule, in one line that says what to use instead.
    """
    check_strategy(config)
    plan_run(config)
    _check_model(config)
    _check_attention(config)
    _check_adapter(config)
    _check_compile(config)
    _check_schedule(config)
    _check_loop(config)
    _check_mixture(config)
    _check_prepare(config)


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


def _check_attention(config: RunConfig) -> None:
    kernel = config.model.attention
    if kernel in {"auto", "documents"}:
        return
    if config.cluster.gpus_per_node == 0:
        raise ConfigError(f"model.attention={kernel} needs a GPU; use model.attention=documents or auto")
    if config.precision == "fp32" and kernel != "flex":
        raise ConfigError(
            f"model.attention={kernel} takes 16-bit numbers alone; use precision=bf16, or "
            "model.attention=flex or auto"
        )


def _check_adapter(config: RunConfig) -> None:
    adapter = config.adapter
    if adapter.kind == "none" and adapter.trained_modules:
        raise ConfigError(
            "adapter.trained_modules goes with an adapter; adapter.kind=none trains all modules but those of "
            "adapter.frozen"
        )
    if adapter.kind != "none" and adapter.frozen:
        raise ConfigError(
            f"adapter.frozen goes with adapter.kind=none; adapter.kind={adapter.kind} trains the adapter and "
            "adapter.trained_modules alone"
        )
    if adapter.kind != "none" and config.model.extra_tokens and not adapter.trained_modules:
        raise ConfigError(
            "model.extra_tokens adds rows to the embeddings, which an adapter leaves as they are; set "
            "adapter.trained_modules=[embed_tokens,lm_head] (in the model's own words)"
        )
    if config.export.form == "adapter" and config.adapter.kind == "none":
        raise ConfigError("export.form=adapter needs an adapter; use export.form=merged")


def _check_compile(config: RunConfig) -> None:
    strategy = config.strategy
    if strategy.compile == "none":
        return
    if config.adapter.base_bits == 4:  # noqa: PLR2004
        raise ConfigError(
            "strategy.compile=layers does not see through adapter.base_bits=4, whose weights are unpacked in "
            "every product; use strategy.compile=none"
        )
    if strategy.tensor_parallel_size > 1:
        raise ConfigError(
            f"strategy.compile=layers does not see through strategy.tensor_parallel_size="
            f"{strategy.tensor_parallel_size}, whose ranks talk inside of each layer; use "
            "strategy.compile=none"
        )
    if strategy.activation_checkpointing != "none":
        raise ConfigError(
            "strategy.compile=layers cannot cut around the attention of a layer that is computed again "
            f"(strategy.activation_checkpointing={strategy.activation_checkpointing}); set one of the two to "
            "none"
        )


def _check_schedule(config: RunConfig) -> None:
    schedule, steps = config.schedule, config.loop.max_steps
    length = schedule_length(schedule, steps)
    used = schedule.warmup_steps + (schedule.decay_steps if schedule.kind == "wsd" else 0)
    if used > length:
        name = "loop.max_steps" if length == steps else "the schedule's length"
        raise ConfigError(
            f"schedule.warmup_steps + schedule.decay_steps = {used} is more than {name}={length}; "
            "shorten them"
        )
    if schedule.first_step + steps > length:
        raise ConfigError(
            f"schedule.total_steps={length} ends before schedule.first_step + loop.max_steps = "
            f"{schedule.first_step + steps}; use that or more, or null"
        )


def _check_loop(config: RunConfig) -> None:
    kept, saved = config.loop.keep_every_steps, config.loop.checkpoint_every_steps
    if kept is not None and kept % saved:
        raise ConfigError(
            f"loop.keep_every_steps={kept} is no multiple of loop.checkpoint_every_steps={saved}: there is "
            f"no checkpoint of step {kept} to keep; use {kept - kept % saved + saved}"
        )
    if config.loop.patience is not None and config.loop.evaluate_every_steps is None:
        raise ConfigError(
            f"loop.patience={config.loop.patience} counts measurements of the held-out loss, and there are "
            "none; set loop.evaluate_every_steps"
        )
    if config.loop.sample_documents > 0 and config.loop.evaluate_every_steps is None:
        raise ConfigError(
            f"loop.sample_documents={config.loop.sample_documents} are answered at each measurement of the "
            "held-out loss, and there are none; set loop.evaluate_every_steps"
        )
    if config.loop.sample_documents > config.loop.held_out_documents:
        raise ConfigError(
            f"loop.sample_documents={config.loop.sample_documents} are taken from "
            f"loop.held_out_documents={config.loop.held_out_documents}; ask for so many at most, or "
            "raise that"
        )
    if config.loop.sample_top_p < 1 and config.loop.sample_temperature == 0:
        raise ConfigError(
            f"loop.sample_top_p={config.loop.sample_top_p} chooses what tokens are drawn from, and none are; "
            "set loop.sample_temperature, or sample_top_p=1"
        )


def _check_mixture(config: RunConfig) -> None:
    mixture, sources = config.data.mixture, list(config.data.sources)
    replayed = mixture.replay.source if mixture.replay else None
    for name in mixture.shares:
        if name not in sources:
            raise ConfigError(
                f"data.mixture.shares.{name} names no source; data.sources has {', '.join(sources)}"
            )
    if replayed in mixture.shares:
        raise ConfigError(
            f"data.mixture.shares.{replayed}: the replay source is read by data.mixture.replay.phases; "
            "take its share out"
        )
    if mixture.by == "documents" and mixture.shares:
        raise ConfigError(
            "data.mixture.shares is not used with data.mixture.by=documents; use by=weights, epochs or tokens"
        )
    for name in sources:
        if mixture.by != "documents" and name not in mixture.shares and name != replayed:
            raise ConfigError(
                f"data.mixture.shares.{name} is missing; data.mixture.by={mixture.by} needs a share for "
                "every source"
            )
    _check_replay(mixture, sources)


def _check_replay(mixture: MixtureConfig, sources: list[str]) -> None:
    replay = mixture.replay
    if replay is None:
        return
    if replay.source not in sources:
        raise ConfigError(
            f"data.mixture.replay.source={replay.source} names no source; data.sources has "
            f"{', '.join(sources)}"
        )
    if len(sources) == 1:
        raise ConfigError(
            f"data.mixture.replay.source={replay.source} is the only source; add what it is mixed with to "
            "data.sources"
        )
    steps = [phase.from_step for phase in replay.phases]
    if steps[0] != 0:
        raise ConfigError(
            f"data.mixture.replay.phases.0.from_step={steps[0]}; the first phase begins at step 0 (its ratio "
            "may be 0)"
        )
    for number, (earlier, later) in enumerate(pairwise(steps), start=1):
        if later <= earlier:
            raise ConfigError(
                f"data.mixture.replay.phases.{number}.from_step={later} does not come after {earlier}; "
                "put the phases in the order of their steps"
            )


def _check_prepare(config: RunConfig) -> None:
    prepare = config.prepare
    if prepare.task >= prepare.tasks:
        raise ConfigError(
            f"prepare.task={prepare.task} is not one of prepare.tasks={prepare.tasks}; count from 0 to "
            f"{prepare.tasks - 1}"
        )
