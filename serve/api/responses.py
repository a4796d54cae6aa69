"""From records to answers."""

from typing import Any

from ...client.schema import Content, ErrorBody, Problem, Render, Usage
from ..jobs.options import camera_text
from ..jobs.records import Job

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in (
        (400, "The body is not JSON."),
        (401, "No valid API key."),
        (404, "Not there, or another tenant's."),
        (409, "Another request under this idempotency key, or a state that does not allow it."),
        (413, "Too large."),
        (422, "Refused: names the field and what is accepted."),
        (429, "The queue or the tenant's quota is full; Retry-After says when to ask again."),
        (500, "The service failed."),
        (503, "Not in time; ask again."),
    )
}


def refusals_as_json() -> dict[int | str, dict[str, Any]]:
    """The same for a route whose answers are no JSON: FastAPI would document its refusals as of the answer's kind."""
    body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}}}
    return {status: {"description": about["description"], "content": body} for status, about in REFUSALS.items()}


def render_of(job: Job) -> Render:
    """A render as its owner sees it."""
    request, result = job.request, job.result or {}
    return Render(
        id=job.id,
        status=job.status,
        stage=job.stage,
        progress=job.progress,
        revision=job.revision,
        created_at=job.created_at,
        started_at=job.started_at,
        completed_at=job.completed_at,
        attempt=job.attempt,
        error=None if job.error is None else Problem.model_validate(job.error),
        warnings=job.warnings,
        input=request.get("uri") or request["input"],
        camera=camera_text(request["camera"]),
        seed=request["seed"],
        model=request["model"],
        config_digest=request["config_digest"],
        resampled_from=request["resampled_from"],
        hole_share=result.get("hole_share"),
        generated_share=result.get("generated_share"),
        frames_digest=result.get("frames_digest"),
        reused=result.get("reused", []),
        content={name: Content.model_validate(item) for name, item in result.get("content", {}).items()},
        usage=Usage(
            compute_seconds=job.compute_s, gpu_seconds=job.compute_s if result.get("device") == "cuda" else 0.0
        ),
    )
