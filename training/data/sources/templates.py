"""Fields made from a record by the user's Jinja templates, in a sandbox."""

from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from training.data.sources.pieces import BadRecordError, Record
from training.data.sources.values import list_fields
from training.errors import DataError


class FieldTemplates:
    """The templates of one source, compiled once."""

    def __init__(self, setting: str, templates: Mapping[str, str]) -> None:
        """Compile the templates found under the dotted key ``setting``.

        Raises:
            DataError: A template is no Jinja; the message names its setting.
        """
        self._setting = setting
        self._templates: dict[str, Template] = {}
        # Records are strangers' data and templates may be copied from anywhere: neither may run code.
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined,
            finalize=_refuse_null,
            keep_trailing_newline=True,
            autoescape=False,  # text for a model, no page for a browser
        )
        for field, text in templates.items():
            try:
                self._templates[field] = environment.from_string(text)
            except TemplateSyntaxError as error:
                raise DataError(
                    f"{setting}.{field}: no Jinja template, line {error.lineno}: {error}"
                ) from None

    def render(self, record: Record) -> dict[str, str]:
        """Make the fields.

        Raises:
            BadRecordError: A template needs a field that the record has not, or fails otherwise.
        """
        return {field: self._render(field, template, record) for field, template in self._templates.items()}

    def _render(self, field: str, template: Template, record: Record) -> str:
        try:
            return template.render(record)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadRecordError(
                "template failed",
                f"{self._setting}.{field} failed: {reason}; the record has {list_fields(record)}",
            ) from None


def _refuse_null(value: Any) -> Any:
    # Jinja would write the word None into the text.
    if value is None:
        raise ValueError("a value is null; write {{ field or '' }} where that is meant")
    return value
