"""A training step and a sampling step of a video model, against the rate of a matrix product and the planner's memory.

`python -m recapture.benchmarks.steps FOLDER` prints a row each. The work of a training step is counted as three forward
passes, whatever checkpointing computes again.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from torch.utils.flop_counter import FlopCounterMode

from ..engine.models import adapters
from ..engine.models.checkpointing import Checkpointing, checkpointed
from ..engine.models.precision import Precision, dtype_of, name_of
from ..engine.models.video import VideoModel
from ..engine.planning.memory import GIB
from ..engine.planning.tensor_memory import forward_bytes, shapes_of, step_bytes
from .timing import Row, device_name, versions

_POLICIES: tuple[Checkpointing, ...] = ("full", "stock", "balanced", "none")
"""Those that take least memory first: what they measure is kept where the last do not fit."""


def rows(folder: Path, device: torch.device, dtype: torch.dtype, size: tuple[int, int]) -> Iterator[Row]:
    """Rows of one model directory at a working size (height, width)."""
    cuda = device.type == "cuda"
    product_flops = _product_rate(device, dtype)
    model = VideoModel(folder, device=device, dtype=dtype)
    adapters.inject(model.unet, 16)
    shapes = shapes_of(folder, dtype, 16, cuda=cuda)
    inputs = {
        n: [torch.randn(x.shape, device=device).to(x.dtype) for x in shapes.inputs(n, model.shape.frames, size)]
        for n in (1, 2)
    }
    autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)

    @torch.no_grad()
    def sample() -> None:
        model.unet(*inputs[2])

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.unet(*inputs[1])
    forward_flops = counter.get_total_flops()

    def row(name: str, work: Callable[[], None], flops: float, planned: int) -> Row:
        made: Row = {
            "op": "video_step",
            "implementation": name,
            "device": device_name(device.type),
            "shape": f"{model.shape.frames}x{size[0]}x{size[1]}",
            "model": folder.name,
            "dtype": name_of(dtype),
            "product_tflops": round(product_flops / 1e12, 3),
            "planned_gib": round(planned / GIB, 3),
            "versions": versions(),
        }
        try:
            seconds, peak = _timed(work, device)
        except torch.OutOfMemoryError:
            return {**made, "out_of_memory": True}
        share = flops / seconds / product_flops
        return {
            **made,
            "seconds": round(seconds, 4),
            "peak_gib": peak and round(peak / GIB, 3),
            "product_share": round(share, 3),
        }

    for how in _POLICIES:

        def step(how: Checkpointing = how) -> None:
            adapters.train_only(model.unet, ["temporal"])
            with checkpointed(model.unet, how), autocast, adapters.enabled(model.unet, adapters.ADAPTERS):
                loss = model.unet(*inputs[1]).sample.float().square().mean()
                loss.backward()
            model.unet.zero_grad(set_to_none=True)

        planned = step_bytes(shapes, "temporal", 1, model.shape.frames, size, how).peak
        yield row(f"tuning, {how}", step, 3 * forward_flops, planned)
    adapters.train_only(model.unet, ())
    yield row("sampling with guidance", sample, 2 * forward_flops, forward_bytes(shapes, 2, model.shape.frames, size))


def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 512
    a = torch.randn(side, side, device=device).to(dtype)
    seconds, _ = _timed(lambda: a @ a, device, repeats=10)
    return 2 * side**3 / seconds


def _timed(work: Callable[[], object], device: torch.device, *, repeats: int = 2) -> tuple[float, int | None]:
    """Seconds of a call, the best of several after one that warms up, and on a GPU the bytes it took beyond before."""
    cuda, times = device.type == "cuda", []
    before = torch.cuda.memory_allocated() if cuda else 0
    work()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times), torch.cuda.max_memory_allocated() - before if cuda else None


def main(
    folder: Path,
    device: Literal["cpu", "cuda"] = "cpu",
    dtype: Precision = "auto",
    height: int = 576,
    width: int = 1024,
    out: Annotated[Path | None, typer.Option(help="Append the rows to this file.")] = None,
) -> None:
    """Time a training step by checkpointing policy, and a sampling step."""
    place = torch.device(device)
    for row in rows(folder, place, dtype_of(dtype, place), (height, width)):
        line = json.dumps(row)
        typer.echo(line)
        if out is not None:
            with out.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    typer.run(main)
