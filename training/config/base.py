"""What every part of the configuration is: frozen, strict, and without a default of its own."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A group of settings. An unknown key is an error and a value never changes after it was read."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
