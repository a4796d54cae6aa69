"""What travels between the client and the service. The service refuses what is not said here; the client does not.

Requests forbid unknown fields and bound every number. Answers ignore fields that they do not know, so that an older
client understands a newer service. Sizes are in pixels, times in seconds, moments in Unix seconds.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from .base import Asked
from .options import ClipOptions, Options, SampleOptions

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Variant = Literal[
    "video", "generated", "anchor", "mask", "side_by_side", "contact", "camera", "config", "report", "page"
]
Status = Literal["queued", "in_progress", "completed", "failed", "cancelled", "expired"]
TERMINAL: tuple[Status, ...] = ("completed", "failed", "cancelled", "expired")

MOST_UPLOAD_BYTES = 2 << 30
MOST_CAMERA_FRAMES = 3000


class Answered(BaseModel):
    """An answer, or a part of one."""

    model_config = ConfigDict(extra="ignore", frozen=True)


# Requests


class UploadCreate(Asked):
    bytes: int = Field(ge=1, le=MOST_UPLOAD_BYTES)
    sha256: Sha256
    filename: str | None = Field(default=None, max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")
    """A label: it never becomes a name on the service's disk."""


class Input(Asked):
    """An upload, or the URI of a file below a folder that the operator lets the tenant name."""

    upload: str | None = Field(default=None, pattern=r"^upl_[0-9a-f]{24}$")
    uri: str | None = Field(default=None, min_length=1, max_length=2000, pattern=r"^[^\x00-\x1f\x7f]+$")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.upload is None) == (self.uri is None):
            raise ValueError("give either upload or uri")
        return self


_Number = Annotated[float, Field(ge=-1e9, le=1e9)]
_Row3 = Annotated[list[_Number], Field(min_length=3, max_length=3)]
_Row4 = Annotated[list[_Number], Field(min_length=4, max_length=4)]


class CameraFrame(Asked):
    c2w: Annotated[list[_Row4], Field(min_length=4, max_length=4)]
    time_s: float | None = Field(default=None, ge=-1e6, le=1e6)
    K_px: Annotated[list[_Row3], Field(min_length=3, max_length=3)] | None = None


class CameraFile(Asked):
    """The project's own camera file, `camera.json` of an earlier result or one made by hand."""

    schema_: Literal["recapture.camera_path"] = Field(default="recapture.camera_path", alias="schema")
    version: Literal[1] = 1
    axes: Literal["opencv"] = "opencv"
    reference: Literal["source", "world"]
    unit: Literal["scene", "median_depth", "file"]
    width: int = Field(ge=1, le=16384)
    height: int = Field(ge=1, le=16384)
    frames: list[CameraFrame] = Field(min_length=1, max_length=MOST_CAMERA_FRAMES)


Camera = Annotated[str, Field(min_length=1, max_length=2000)] | CameraFile
"""A preset expression such as `arc(15deg)+zoom(1.1)`, or the content of a camera file. A string is never a path."""


WebhookUrl = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^https?://")]
"""Where the service sends a signed message when the render has ended."""


class EstimateCreate(Asked):
    input: Input
    camera: Camera
    options: Options = Options()


class RenderCreate(EstimateCreate):
    seed: Seed = 0
    model: str | None = Field(default=None, max_length=200)
    """The model that is asked for; None takes the one that is served."""
    deadline_s: int | None = Field(default=None, ge=1, le=7 * 86_400)
    """Seconds from now after which the render is given up as `expired`."""
    webhook_url: WebhookUrl | None = None


class Resample(SampleOptions):
    """Another sample with the adapters as they are tuned; None keeps what the render had."""

    seed: Seed | None = None
    webhook_url: WebhookUrl | None = None


class PreviewCreate(Asked):
    input: Input
    camera: Camera
    options: ClipOptions = ClipOptions()
    count: int = Field(default=5, ge=1, le=48)
    """Moments drawn, spread evenly over the clip."""
    frame: int | None = Field(default=None, ge=0, le=10**7)
    """Only this frame, counted from the first that is read; `count` means nothing then."""
    max_side: int = Field(default=384, ge=32, le=1024)
    format: Literal["webp", "mp4"] = "webp"
    tint: bool = True
    """Color the holes, instead of leaving them black."""


class SceneCreate(Asked):
    input: Input
    options: ClipOptions = ClipOptions()
    frame: int = Field(default=0, ge=0, le=10**7)
    """Counted from the first that is read."""
    max_side: int = Field(default=384, ge=32, le=448)
    """In pixels of the longer side: at most 448 x 448 points."""


# Answers


class Problem(Answered):
    code: str
    message: str
    param: str | None = None


class ErrorDetail(Problem):
    type: str
    request_id: str


class ErrorBody(Answered):
    error: ErrorDetail


class Clip(Answered):
    width: int
    height: int
    frames: int
    fps: float
    duration_s: float
    codec: str
    has_audio: bool


class Upload(Answered):
    object: Literal["upload"] = "upload"
    id: str
    status: Literal["pending", "ready", "failed"]
    bytes: int
    offset: int
    """Bytes that have arrived: where to go on."""
    sha256: str
    filename: str | None = None
    clip: Clip | None = None
    error: Problem | None = None
    created_at: float


class Content(Answered):
    bytes: int
    sha256: str
    content_type: str


class Usage(Answered):
    compute_seconds: float
    """Wall time of the workers that held the render, all attempts together."""
    gpu_seconds: float
    """The same where the worker had a GPU, else 0."""


class Render(Answered):
    object: Literal["render"] = "render"
    id: str
    status: Status
    stage: str | None = None
    progress: float
    """0 to 1; never falls."""
    revision: int
    """Grows with every change; the id of its event."""
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    attempt: int
    error: Problem | None = None
    warnings: list[str] = []
    input: str
    """The upload, or the URI."""
    camera: str
    seed: int
    model: str
    config_digest: str
    resampled_from: str | None = None
    hole_share: float | None = None
    generated_share: float | None = None
    frames_digest: str | None = None
    """sha256 over the delivered and the generated frames before they were encoded: equal for equal requests."""
    reused: list[str] = []
    """Stages whose results were there already."""
    content: dict[str, Content] = {}
    usage: Usage

    @property
    def done(self) -> bool:
        """Whether the render has ended, with or without success."""
        return self.status in TERMINAL


class WebhookRender(Answered):
    """What a webhook says of a render; `renders.retrieve` has the rest."""

    id: str
    status: Status
    created_at: float
    completed_at: float | None = None
    error: Problem | None = None


class WebhookEvent(Answered):
    type: str
    """`render.` and the status that it ended with."""
    timestamp: str
    data: WebhookRender
    id: str = ""
    """Of the message, from its header: the same when it comes twice."""


class RenderPage(Answered):
    object: Literal["list"] = "list"
    data: list[Render]
    has_more: bool
    next: str | None = None
    """What to give as `after` for the next page."""


class Estimate(Answered):
    object: Literal["estimate"] = "estimate"
    clip_size: tuple[int, int]
    frames: int
    fps: float
    working_size: tuple[int, int]
    windows: list[tuple[int, int]]
    hole_share: float
    memory_bytes: int
    seconds: float
    stages_s: dict[str, float]
    warnings: list[str] = []


class PreviewFrame(Answered):
    index: int
    time_s: float
    hole_share: float
    webp: str | None = None
    """Base64."""


class Preview(Answered):
    object: Literal["preview"] = "preview"
    width: int
    height: int
    hole_share: float
    """Mean over the frames drawn."""
    frames: list[PreviewFrame]
    mp4: str | None = None
    """Base64."""
    seconds: float
    warnings: list[str] = []


class Scene(Answered):
    """One frame with its depth: what a 3D view lifts points from.

    The pixel in column x and row y, with depth d, lies at d K^-1 (x + 0.5, y + 0.5, 1) of the source camera: x right,
    y down, z forward, in median depths of the clip, which is the unit of lengths in camera expressions.
    """

    object: Literal["scene"] = "scene"
    frame: int
    frames: int
    """Of the clip, as far as it is read."""
    time_s: float
    start_s: float
    """Time of the first frame; paths run from here ..."""
    end_s: float
    """... to the time of the last."""
    width: int
    height: int
    K_px: list[list[float]]
    """3x3, in pixels of width x height."""
    subject_depth: float
    """Where the optical axis meets what camera expressions call the subject."""
    depth: str
    """Base64 of height x width little-endian float16, row by row; infinite is sky, NaN unknown."""
    webp: str
    """Base64 of the frame's colors, of the same size."""


class Model(Answered):
    object: Literal["model"] = "model"
    id: str
    license: Annotated[str, Field(validation_alias=AliasChoices("license", "licence"))]
    """`licence` is how the version before spelled it."""
    about: str
    frames: int
    """Frames in a window."""
    depth: str = ""
    """The depth model that goes with it; empty where its worker does not say."""
    depth_license: str = ""


class ModelList(Answered):
    object: Literal["list"] = "list"
    data: list[Model]


class PresetParameter(Answered):
    name: str
    unit: str
    default: float | str
    low: float | None = None
    high: float | None = None
    words: list[str] = []
    help: str


class Preset(Answered):
    object: Literal["preset"] = "preset"
    name: str
    summary: str
    parameters: list[PresetParameter]


class PresetList(Answered):
    object: Literal["list"] = "list"
    data: list[Preset]


class Health(Answered):
    status: Literal["ok", "unavailable"]
    checks: dict[str, str] = {}


def to_json(body: BaseModel) -> dict[str, Any]:
    """The JSON of a request: by the names that travel, without what was left to the service."""
    return body.model_dump(mode="json", by_alias=True, exclude_none=True)
