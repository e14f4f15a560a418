"""Where documents come from: one section per kind of source, chosen by its ``kind``."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from training.config.base import Section

Fraction = Annotated[float, Field(ge=0, le=1)]

Documents = Literal["auto", "messages", "conversations", "prompt_completion", "instruction", "text"]

_DOCUMENTS = (
    "what a record holds: `messages` (OpenAI), `conversations` (ShareGPT), a `prompt` and a `completion`, "
    "an `instruction` with `input` and `output` (Alpaca), or `text`; auto: told by the first record's fields"
)
_FIELDS = "wanted field -> the record's own name for it, for instance {prompt: question}"
_TEMPLATES = "wanted field -> a Jinja template over the record, for instance {prompt: 'Q: {{ question }}'}"
_FAMILY = (
    "the record's field that names its family; a family is wholly in train or held out. "
    "null: every document is a family of its own"
)
_TRAIN_ON = "chats: which turns are targets; all: the prompts as well"
_BAD_RECORDS = "refuse: stop with the record's place; skip: leave it out, counted by reason"
_LICENCE = "under which licence the documents may be used; kept in the manifest"


class FilesSource(Section):
    """The user's own files, on a disk or behind a URL that fsspec reads."""

    kind: Literal["files"]
    paths: list[str] = Field(
        min_length=1,
        description="files, globs, or URLs (s3://, gs://, https://, hf://datasets/OWNER/NAME/FILE); sorted",
    )
    format: Literal["auto", "jsonl", "parquet", "csv", "arrow", "text", "webdataset"] = Field(
        description="auto: by the file's ending; jsonl and csv also compressed (.gz, .zst)"
    )
    documents: Documents = Field(description=_DOCUMENTS)
    fields: dict[str, str] = Field(description=_FIELDS)
    templates: dict[str, str] = Field(description=_TEMPLATES)
    family_field: str | None = Field(description=_FAMILY)
    train_on: Literal["assistant", "last_assistant", "all"] = Field(description=_TRAIN_ON)
    bad_records: Literal["refuse", "skip"] = Field(description=_BAD_RECORDS)
    max_line_bytes: PositiveInt = Field(description="jsonl: a longer line is a bad record")
    max_documents: PositiveInt | None = Field(
        description="read no more than this, in one process; null reads all"
    )
    licence: str = Field(description=_LICENCE)
    provenance: dict[str, str] = Field(description="whatever else should be kept with it, in your own words")


class HubSource(Section):
    """A dataset by its name on the Hugging Face hub, or a folder that `datasets` loads; streamed."""

    kind: Literal["hub"]
    dataset: str = Field(description="hf://OWNER/NAME, hf://OWNER/NAME@REVISION, or a folder")
    subset: str | None = Field(description="the dataset's configuration; null: its only one")
    split: str = Field(description="the dataset's split")
    documents: Documents = Field(description=_DOCUMENTS)
    fields: dict[str, str] = Field(description=_FIELDS)
    templates: dict[str, str] = Field(description=_TEMPLATES)
    family_field: str | None = Field(description=_FAMILY)
    train_on: Literal["assistant", "last_assistant", "all"] = Field(description=_TRAIN_ON)
    bad_records: Literal["refuse", "skip"] = Field(description=_BAD_RECORDS)
    max_documents: PositiveInt | None = Field(description="read no more than this; null reads all")
    licence: str = Field(description=_LICENCE)
    provenance: dict[str, str] = Field(description="whatever else should be kept with it, in your own words")


class Icd10cmSource(Section):
    """Medicine: ICD-10-CM as questions and answers, read from the installed package simple-icd-10-cm."""

    kind: Literal["icd10cm"]
    questions: list[Literal["code_to_description", "description_to_code", "exclusions", "chapter"]] = Field(
        min_length=1, description="which questions are asked of each code"
    )
    system_prompt: str = Field(description="the system message of every chat; may be empty")
    max_documents: PositiveInt | None = Field(
        description="an even, deterministic sample of this size over all codes; null keeps all"
    )


class LicencesSource(Section):
    """Law: licence agreements with their category, read from the installed package licensedcode-data."""

    kind: Literal["licences"]
    form: Literal["texts", "questions"] = Field(
        description="`texts`: whole agreements to continue pretraining; `questions`: clause -> category"
    )
    clause_characters: PositiveInt = Field(description="characters of the agreement quoted in a question")
    max_documents: PositiveInt | None = Field(description="an even, deterministic sample; null keeps all")


class PythonTopicsSource(Section):
    """General English prose that every Python carries: the language reference's topics (pydoc_data)."""

    kind: Literal["python_topics"]
    max_documents: PositiveInt | None = Field(description="read no more than this; null reads all")


RecordSource = FilesSource | HubSource
"""Sources whose records are the user's own, in a schema that is recognised or declared."""

SourceConfig = Annotated[
    FilesSource | HubSource | Icd10cmSource | LicencesSource | PythonTopicsSource,
    Field(discriminator="kind"),
]


class ReplayPhase(Section):
    """From a step on, this share of the samples is replay."""

    from_step: NonNegativeInt = Field(description="the first step of the phase")
    ratio: Fraction = Field(description="share of all samples that the replay source gives")


class ReplayConfig(Section):
    """General data mixed in so that the model does not forget what it knew."""

    source: str = Field(description="the name in data.sources that is replayed")
    phases: list[ReplayPhase] = Field(min_length=1, description="in the order of their steps; the first at 0")


class MixtureConfig(Section):
    """In which proportion the samples of several sources are read; exact over any window."""

    by: Literal["documents", "weights", "epochs", "tokens"] = Field(
        description="documents: every document once an epoch. weights: shares of the samples. epochs: passes "
        "over each source during the run. tokens: tokens of each source during the run"
    )
    shares: dict[str, PositiveFloat] = Field(
        description="source -> its weight, epochs or tokens; the replay source has none here"
    )
    replay: ReplayConfig | None = Field(description="a source that is read by ratio instead; null: none")


class DuplicatesConfig(Section):
    """Training documents that are also held out, word for word or nearly: removed from train, counted."""

    near_threshold: Annotated[float, Field(gt=0, le=1)] | None = Field(
        description="Jaccard similarity of token 5-grams from which on two documents are the same (MinHash); "
        "null: only exact copies"
    )


Detector = Literal["email", "phone", "national_id", "medical_record", "key", "credit_card", "ip_address"]


class PersonalDataConfig(Section):
    """Personal data and secrets in the text, found by patterns; docs/data.md says what they cannot find."""

    action: Literal["keep", "redact", "drop"] = Field(
        description="redact: replaced by [EMAIL] and the like before encoding; drop: the document is left "
        "out; both counted. keep: `metier audit` still reports what it finds"
    )
    detectors: list[Detector] = Field(min_length=1, description="what is looked for")


class DataConfig(Section):
    """A corpus: what it is made of, how it is split, where the prepared shards lie."""

    path: str = Field(
        description="folder of the prepared corpus, written by `metier prepare`; training also takes a URL"
    )
    upload_to: str | None = Field(
        description="a URL to which `metier prepare` copies the finished corpus; null: nowhere"
    )
    sources: dict[str, SourceConfig] = Field(min_length=1, description="name -> source")
    mixture: MixtureConfig
    held_out_fraction: float = Field(
        gt=0, lt=1, description="share of the families, chosen by hash, that training never sees"
    )
    split_seed: NonNegativeInt = Field(description="salt of that hash")
    tokens_per_shard: PositiveInt = Field(description="a shard is closed once it holds this many tokens")
    long_documents: Literal["refuse", "split", "truncate", "drop"] = Field(
        description="a document longer than batch.sequence_length: stop with its name, cut it into several, "
        "keep its beginning, or leave it out (both counted)"
    )
    control_tokens: Literal["refuse", "remove", "keep"] = Field(
        description="control tokens written out in a document's text, which would forge turns: stop with its "
        "name, take them out (counted), or let them be"
    )
    personal_data: PersonalDataConfig
    duplicates: DuplicatesConfig
