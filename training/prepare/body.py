"""What `metier prepare` does: the model's folder, then the corpus; each once."""

import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from transformers import PreTrainedTokenizerBase

from training.config.freeze import read_frozen
from training.config.schema import RunConfig
from training.data.corpus.assemble import TokenizerFacts
from training.data.corpus.build import (
    EncodeJobs,
    Prepared,
    Share,
    describe_tokenizer,
    prepare_corpus,
    prepare_share,
)
from training.data.corpus.segments import Job, Listener, encode_part
from training.data.encoding.encode import Encoder
from training.model.source import prepare_model
from training.model.tokenizer import load_tokenizer, tokenizer_fingerprint
from training.prepare.pool import encode_in_processes
from training.prepare.speak import Speaker
from training.prepare.table import say_packing, say_sources, tabulate
from training.prepare.upload import upload_corpus
from training.prepare.worker import use_one_core

BYTES_PER_PROCESS = 16 << 20
"""A process takes some seconds to start, in which another one encodes about as much."""

EXIT_TERMINATED = 128 + signal.SIGTERM


def prepare(path: Path) -> None:
    """Prepare what the frozen configuration at ``path`` names.

    Raises:
        MetierError: The configuration, the model, a source or the disk does not allow it.
    """
    signal.signal(signal.SIGTERM, _stop)
    config = read_frozen(path)
    console = Console()
    try:
        _prepare(config, console)
    except (KeyboardInterrupt, SystemExit):
        console.print("stopped: what was done is kept; run the same command again to go on", soft_wrap=True)
        raise


def _stop(_number: int, _frame: FrameType | None) -> NoReturn:
    # An exception, so that the processes that encode are ended on the way out.
    raise SystemExit(EXIT_TERMINATED)


def _prepare(config: RunConfig, console: Console) -> None:
    folder = prepare_model(config.model, config.seed)
    console.print(f"model      {escape(str(folder))}", soft_wrap=True)
    if config.prepare.processes == 1:
        use_one_core()
    tokenizer = load_tokenizer(config.model)
    facts = describe_tokenizer(tokenizer, tokenizer_fingerprint(tokenizer))
    with Speaker(console) as speaker:
        encode = partial(_encode, tokenizer=tokenizer, config=config, listener=speaker)
        if config.prepare.tasks > 1:
            _prepare_share(config, facts, encode, speaker)
            return
        prepared = prepare_corpus(config.data, facts, encode, speaker)
        copied = _upload(config, prepared, speaker)
    state = "prepared" if prepared.is_new else "already prepared"
    console.print(f"corpus     {escape(config.data.path)}  {state}", soft_wrap=True)
    if copied is not None:
        console.print(f"copied     {escape(str(config.data.upload_to))}  {copied} files", soft_wrap=True)
    console.print(tabulate(prepared.manifest))
    say_sources(prepared.manifest, console)
    say_packing(config, console)


def _prepare_share(config: RunConfig, facts: TokenizerFacts, encode: EncodeJobs, speaker: Speaker) -> None:
    share = Share(tasks=config.prepare.tasks, task=config.prepare.task)
    mine, every = prepare_share(config.data, facts, share, encode, speaker)
    speaker.say(
        f"corpus     {config.data.path}  {mine} of {every} parts are this task's, encoded; once all tasks "
        "are done, `metier prepare` with prepare.tasks=1 finishes the corpus"
    )


def _encode(
    jobs: Sequence[Job], *, tokenizer: PreTrainedTokenizerBase, config: RunConfig, listener: Listener
) -> None:
    processes = config.prepare.processes or _choose_processes([job.part.bytes for job in jobs])
    if min(processes, len(jobs)) > 1:
        encode_in_processes(jobs, processes, tokenizer, config.data, listener)
        return
    # One process: here, where the tokenizer may use the other cores unless the user said one.
    encoder = Encoder(tokenizer, control_tokens=config.data.control_tokens)
    for job in jobs:
        encode_part(job, encoder, listener)


def _choose_processes(sizes: Sequence[int]) -> int:
    """Take one process for each core, but none that has less to do than its start takes."""
    cores = len(os.sched_getaffinity(0))
    # A part without a size is one of which the server does not tell it: it may be large.
    return cores if 0 in sizes else min(cores, 1 + sum(sizes) // BYTES_PER_PROCESS)


def _upload(config: RunConfig, prepared: Prepared, speaker: Speaker) -> int | None:
    if config.data.upload_to is None:
        return None
    return upload_corpus(Path(config.data.path), prepared.manifest, config.data.upload_to, speaker.upload)
