"""Base of what the client sends."""

from pydantic import BaseModel, ConfigDict


class Asked(BaseModel):
    """A request, or a part of one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)
