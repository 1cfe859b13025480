"""What the application takes, from `serve run` (name=value) and from YAML (`args:`)."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from typing_extensions import Self

from cgpt.generation.prefix_store import DISK_BYTES
from cgpt.generation.scheduler import Scheduler

Name = Annotated[str, StringConstraints(min_length=1)]


class FleetOptions(BaseModel):
    """The options of a fleet; those of the model and of the server are the options of `cgpt serve`.

    name: several are separated by commas, as are allow_host and cors. api_key: better in $CGPT_API_KEY, as the
    dashboard shows these options. cpus: of Ray's, for each replica. replicas: of the model; or max_replicas, between
    which and min_replicas their number follows the requests, target_ongoing for each. fronts: processes that check
    requests and hand them to replicas. drain: seconds that running requests get where a replica is to end. surge:
    replicas, in percent, that may be there beside the others while new ones take their place.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: Name
    revision: Name | None = None
    threads: int | None = Field(None, ge=1)
    precision: Literal["auto", "exact", "int8"] = "auto"
    dense: Literal["bf16", "bf16-packed", "int8", "int4"] | None = None
    kv_cache_dtype: Literal["f32", "f16", "bf16", "int8"] | None = None
    huge_pages: bool = False
    memory: Name | None = None
    weights_cache: Name | None = None

    name: str = ""
    strict: bool = False
    api_key: str | None = None
    allow_host: str = ""
    cors: str = ""
    max_running: int = Field(Scheduler.MAX_RUNNING, ge=1, le=Scheduler.MAX_RUNNING)
    max_waiting: int = Field(256, ge=1)
    max_tokens: int = Field(16384, ge=1)
    prefix_cache: float | None = Field(None, ge=0)
    prefix_cache_dir: Name | None = None
    prefix_cache_disk: float = Field(DISK_BYTES / 1e9, ge=0)
    prompt_lookup_num_tokens: int | None = Field(None, ge=1)
    log_prompts: bool = False

    cpus: float = Field(1, gt=0)
    replicas: int = Field(1, ge=1)
    min_replicas: int = Field(1, ge=0)
    max_replicas: int | None = Field(None, ge=1)
    target_ongoing: float = Field(4, gt=0)
    fronts: int = Field(1, ge=1)
    drain: float = Field(30, ge=0)
    surge: int = Field(0, ge=0, le=100)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas is not None and not self.min_replicas <= self.max_replicas:
            raise ValueError(f"max_replicas must be min_replicas or more, {self.min_replicas}, not {self.max_replicas}")
        if self.max_replicas is not None and "replicas" in self.model_fields_set:
            raise ValueError("replicas is a number that stays, max_replicas lets it change: give one of them")
        return self


def listed(names: str) -> tuple[str, ...]:
    """The names that commas separate."""
    return tuple(name.strip() for name in names.split(",") if name.strip())
