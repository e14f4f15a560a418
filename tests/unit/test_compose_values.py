"""A value that does not fit is one line: the path as typed, what was found, what was wanted."""

import copy
import functools
from typing import Any

import pytest
import yaml

from launcher.compose import compose_values
from launcher.tree import ConfigTree
from training.config.freeze import check_config
from training.errors import ConfigError


@functools.cache
def tiny_smoke() -> dict[str, Any]:
    values = compose_values(["experiment=tiny_smoke"], ConfigTree(None))
    del values["dry_run"], values["after"]
    return values


def changed(override: str) -> dict[str, Any]:
    """Change one value as an override would, without composing all of it again."""
    path, _, value = override.lstrip("+~").partition("=")
    *parents, last = path.split(".")
    values = section = copy.deepcopy(tiny_smoke())
    for key in parents:
        section = section.setdefault(key, {})
    if override.startswith("~"):
        del section[last]
    else:
        section[last] = yaml.safe_load(value) if value else ""
    return values


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("loop.max_steps=abc", "loop.max_steps=abc: wanted a whole number"),
        ("loop.max_steps=1.5", "loop.max_steps=1.5: wanted a whole number"),
        ("loop.max_steps=0", "loop.max_steps=0: wanted a number greater than 0"),
        ("optimizer.learning_rate=", "optimizer.learning_rate='': wanted a number"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate=nan: wanted a finite number"),
        ("optimizer.beta1=2", "optimizer.beta1=2: wanted a number less than 1"),
        ("precision=bf61", "precision=bf61: wanted 'bf16' or 'fp32'; did you mean bf16?"),
        ("name=2024", "name=2024: wanted text; quote it: name='\"2024\"'"),
        (
            "name=a/b",
            "name=a/b: wanted letters, digits and . _ = , + - only, beginning with a letter or a digit",
        ),
        ("tracker.tags=x", "tracker.tags=x: wanted a list; put it in brackets: 'tracker.tags=[x]'"),
        ("adapter.targets=q_proj", "adapter.targets=q_proj: wanted 'all-linear' or a list"),
        (
            "batch=3",
            "batch=3: this is a section; set its parts, for instance batch.global_batch_size=...",
        ),
        ("+strategy.zero_stge=3", "strategy.zero_stge is not a setting; did you mean strategy.zero_stage?"),
        ("+modl.path=x", "modl is not a setting; did you mean model?"),
        ("~optimizer.beta1", "optimizer.beta1 is missing; give it a value, for instance optimizer.beta1=..."),
        (
            "evaluation.general.kind=filez",
            "evaluation.general.kind=filez: wanted one of files, hub, icd10cm, licences, python_topics; "
            "did you mean files?",
        ),
        (
            "evaluation.general.kind=files",
            "evaluation.general.paths is missing; give it a value, for instance evaluation.general.paths=... "
            "(and 10 more)",
        ),
        (
            "+data.sources.topics.max_document=3",
            "data.sources.topics.max_document is not a setting; "
            "did you mean data.sources.topics.max_documents?",
        ),
        (
            "data.sources.topics.max_documents=0",
            "data.sources.topics.max_documents=0: wanted a number greater than 0",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_one_line(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_config(changed(override))
    assert str(raised.value) == words
