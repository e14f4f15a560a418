"""Where documents come from: one section per kind of source, chosen by its ``kind``."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from training.config.base import Section


class FilesSource(Section):
    """The user's own files: JSON lines (also .gz), Parquet, or plain text."""

    kind: Literal["files"]
    paths: list[str] = Field(min_length=1, description="files or globs, read in sorted order")
    documents: Literal["messages", "prompt_completion", "text"] = Field(
        description="what a record holds: chat `messages`, a `prompt` and a `completion`, or `text`"
    )
    family_field: str | None = Field(
        description="the record's field that names its family; a family is wholly in train or held out. "
        "null: every document is a family of its own"
    )
    max_documents: PositiveInt | None = Field(description="read no more than this; null reads all")


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


SourceConfig = Annotated[
    FilesSource | Icd10cmSource | LicencesSource | PythonTopicsSource, Field(discriminator="kind")
]


class DataConfig(Section):
    """A corpus: what it is made of, how it is split, where the prepared shards lie."""

    path: str = Field(description="folder of the prepared corpus; `metier prepare` writes it")
    sources: dict[str, SourceConfig] = Field(min_length=1, description="name -> source")
    held_out_fraction: float = Field(
        gt=0, lt=1, description="share of the families, chosen by hash, that training never sees"
    )
    split_seed: NonNegativeInt = Field(description="salt of that hash")
    documents_per_shard: PositiveInt = Field(description="documents per Arrow shard")
    long_documents: Literal["refuse", "split", "truncate", "drop"] = Field(
        description="a document longer than batch.sequence_length: stop with its name, cut it into several, "
        "keep its beginning, or leave it out (both counted)"
    )
