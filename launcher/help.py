"""What `metier`, `metier --help` and `metier VERB --help` say; needs no configuration to be read."""

from launcher.tools import TOOLS, find_tool
from launcher.tree import GROUPS, ConfigTree

_PURPOSES = {
    "prepare": "read the documents, split, tokenise and store them; write the model's folder; once",
    "audit": "say what the prepared corpus teaches, what was left out, what it should not hold",
    "train": "train, or go on from the last checkpoint when the same command is run again",
    "evaluate": "measure before and after; write report/ into the run directory",
    "export": "write a Hugging Face folder, model/ or adapter/ in the run directory",
    "run": "prepare, train, evaluate and export: here one after another, under Slurm as dependent jobs",
} | {verb: purpose for verb, (_, purpose) in TOOLS.items()}

_DETAILS = {
    "prepare": "Writes data.path (the corpus) and model.folder, each complete or not at all.",
    "audit": "Writes data.path/audit: audit.html, audit.json. Exit code 2 where it is beyond audit.*.",
    "train": "Writes run_root/name: run.json, logs, metrics.jsonl, checkpoints. One process per device.",
    "evaluate": "Reads run_root/name/run.json; evaluation.* may be given anew, for this time.",
    "export": "Reads run_root/name/run.json; export.* may be given anew, for this time.",
    "run": "What each verb does, in this order; the first that fails ends it. Under Slurm the corpus, where\n"
    "it is missing, is prepared in prepare.tasks jobs side by side; the command then returns.",
}

_EXAMPLES = {
    "prepare": (
        "metier prepare experiment=medical_qlora_smol",
        "metier prepare experiment=legal_full_smol data.sources.texts.max_documents=500",
        "metier prepare name=mine data=files_chat 'data.sources.files.paths=[chats/*.jsonl]'",
    ),
    "audit": (
        "metier audit experiment=medical_qlora_smol",
        "metier audit experiment=medical_qlora_smol audit.printed_documents=30",
        "metier audit name=mine data=files data.path=data/mine 'data.sources.files.paths=[notes/*.jsonl]'",
    ),
    "train": (
        "metier train experiment=medical_qlora_smol dry_run=true",
        "metier train experiment=medical_qlora_smol loop.max_steps=60 name=longer",
        "metier train -m experiment=medical_qlora_smol optimizer.learning_rate=5e-4,1e-3",
    ),
    "evaluate": (
        "metier evaluate experiment=medical_qlora_smol",
        "metier evaluate name=medical_qlora_smol evaluation.held_out_documents=1000",
        "metier evaluate -m experiment=medical_qlora_smol optimizer.learning_rate=5e-4,1e-3",
    ),
    "export": (
        "metier export experiment=medical_qlora_smol",
        "metier export name=medical_qlora_smol export.form=adapter",
        "metier export name=medical_qlora_smol export.step=20",
    ),
    "run": (
        "metier run experiment=medical_qlora_smol",
        "metier run experiment=medical_qlora_smol cluster=slurm prepare.tasks=8",
        "metier run experiment=medical_qlora_smol cluster=slurm after=1234",
    ),
}

_FLAGS = """\
Flags
  -m, --multirun      run every combination of KEY=A,B,C and KEY=range(1,4), one after another
  --cfg job           print the composed configuration and stop
  --config-dir DIR    a folder of your own, DIR/experiment/NAME.yaml and so on, in front of ours (-cd)
  --follow            train under Slurm: stay, and show the job's log until the run ends (-f)
  --help, --version
"""


def overview() -> str:
    """Say what can be done, with three examples."""
    verbs = "\n".join(f"  {verb:<13}{purpose}" for verb, purpose in _PURPOSES.items())
    return f"""\
Métier makes a general language model a specialist in one domain.

metier VERB [KEY=VALUE ...]

{verbs}

Examples
  metier prepare experiment=medical_qlora_smol
  metier train experiment=medical_qlora_smol
  metier evaluate experiment=medical_qlora_smol

metier VERB --help lists the experiments and every group's choices.
"""


def verb_help(verb: str, tree: ConfigTree) -> str:
    """Say what a verb does, which choices there are, with three examples."""
    if verb in TOOLS:
        return find_tool(verb).HELP
    examples = "\n".join(f"  {line}" for line in _EXAMPLES[verb])
    experiments = "\n".join(
        f"  experiment={choice:<24}{tree.summary('experiment', choice)}"
        for choice in tree.choices("experiment")
    )
    groups = "\n".join(
        f"  {group:<12}{', '.join(tree.choices(group))}" for group in GROUPS if group != "experiment"
    )
    return f"""\
metier {verb} [KEY=VALUE ...]

{_capital(_PURPOSES[verb])}.
{_DETAILS[verb]}

Experiments: a whole run each
{experiments}

Groups, GROUP=CHOICE; a single setting is GROUP.KEY=VALUE (docs/configuration.md)
{groups}

{_FLAGS}
Examples
{examples}
"""


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
