"""The command `metier`: reads the command line, composes, and hands each job to its verb."""

import gc
import importlib.metadata
import sys
from collections.abc import Sequence

from launcher.arguments import Arguments, parse_arguments
from launcher.help import overview, verb_help
from launcher.tools import TOOLS, Words, find_tool
from launcher.tree import ConfigTree
from training.errors import EXIT_OK, EXIT_USER_ERROR, MetierError


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; give the exit code: 0 done, 1 failed, 2 something that the user can mend."""
    # The command answers within a second and then only waits: collecting garbage would cost a tenth of it.
    gc.disable()
    words = sys.argv[1:] if words is None else words
    who = "metier"
    try:
        arguments = parse_arguments(words)
        who = f"metier {arguments.verb}" if arguments.verb else who
        return _run(arguments)
    except MetierError as error:
        sys.stderr.write(f"{who}: {error}\n")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader, `head` for instance, has seen enough.
        sys.stderr.close()
        return EXIT_OK


def _run(arguments: Arguments) -> int:
    tree = ConfigTree.open(arguments.config_dir)
    if arguments.show_version:
        sys.stdout.write(f"metier {_version()}\n")
        return EXIT_OK
    if arguments.verb is None:
        sys.stdout.write(overview())
        return EXIT_OK
    if arguments.show_help:
        sys.stdout.write(verb_help(arguments.verb, tree))
        return EXIT_OK
    if arguments.verb in TOOLS:
        words = Words(plain=arguments.overrides, flags=arguments.tool_flags, tree=tree)
        return find_tool(arguments.verb).run(words)
    # Imported here: help needs neither Hydra nor pydantic.
    from launcher.jobs import run_jobs, show_configs  # noqa: PLC0415

    if arguments.show_config:
        return show_configs(arguments.overrides, tree, multirun=arguments.multirun)
    return run_jobs(
        arguments.verb,
        arguments.overrides,
        tree,
        multirun=arguments.multirun,
        follow=arguments.follow,
        node_rank=arguments.node_rank,
    )


def _version() -> str:
    try:
        return importlib.metadata.version("metier")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
