"""`recapture evaluate`: quality against ground truth, and what changed between two evaluations."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..engine.config import OPTIONS
from ..engine.errors import InputError
from .clip import Device, StoreOption, format_duration, open_engine
from .options import takes
from .output import Json, emit
from .progress import Display


@takes(OPTIONS["model"], OPTIONS["seed"])
def evaluate(
    options: dict[str, Any],
    dataset: Annotated[
        Path | None, typer.Argument(metavar="[DATASET]", help="Folder of scenes with truth.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for tables and pictures; a rerun goes on in it.", show_default=False)
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(help="Rows of the table, comma-separated; `--rows list` names them.", show_default="all"),
    ] = None,
    depth: Annotated[
        str, typer.Option(help="Depth that the pipeline is given: true, reduced, estimated.")
    ] = "true,estimated",
    poses: Annotated[
        Literal["true", "estimated"], typer.Option(help="Source camera that the pipeline is given, or finds.")
    ] = "true",
    vary: Annotated[
        list[str] | None, typer.Option(help="KNOB=VALUE,VALUE: also try these; may be repeated.", show_default=False)
    ] = None,
    paths: Annotated[
        str | None, typer.Option(help="Only paths whose scene/path contains this.", show_default=False)
    ] = None,
    gcd: Annotated[
        Path | None, typer.Option(help="Original Kubric-4D release, with --controls.", show_default=False)
    ] = None,
    controls: Annotated[Path | None, typer.Option(help="Control file of that release.", show_default=False)] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Two finished evaluations: print what changed.", show_default=False),
    ] = None,
    vbench_python: Annotated[
        Path | None,
        typer.Option(help="Python of an environment with `vbench`: run it on the pictures too.", show_default=False),
    ] = None,
    device: Device = "auto",
    store: StoreOption = None,
    as_json: Json = False,
) -> None:
    """Run the pipeline over ground truth and score every row of the table."""
    if compare is not None:
        from ..evaluation.statistics import read_lines
        from ..evaluation.tables import comparison

        typer.echo(comparison(read_lines(compare[0]), read_lines(compare[1])))
        return
    _evaluate(
        dataset,
        out,
        options.get("model", "tiny"),
        rows,
        depth,
        poses,
        vary or [],
        paths,
        gcd,
        controls,
        vbench_python,
        options.get("seed", 0),
        device,
        store,
        as_json,
    )


def _evaluate(
    dataset: Path | None,
    out: Path | None,
    model: str,
    rows: str | None,
    depth: str,
    poses: Literal["true", "estimated"],
    vary: list[str],
    paths: str | None,
    gcd: Path | None,
    controls: Path | None,
    vbench_python: Path | None,
    seed: int,
    device: str,
    store: str | None,
    as_json: bool,
) -> None:
    import time

    from ..evaluation.dataset import read_dataset
    from ..evaluation.evaluate import Evaluation
    from ..evaluation.gcd import read_gcd
    from ..evaluation.page import write_summary
    from ..evaluation.rows import ROWS
    from ..evaluation.score import Scorer
    from ..evaluation.variations import parse_vary

    if rows == "list":
        for row in ROWS.values():
            typer.echo(f"{row.name:24}{row.about}")
        return
    if (dataset is None) == (gcd is None) or (gcd is None) != (controls is None):
        raise InputError("give a DATASET folder, or --gcd with --controls", param="dataset")
    if out is None:
        raise InputError("say where the tables go", param="out")
    entries = read_dataset(dataset) if dataset is not None else read_gcd(_given(gcd), _given(controls))
    entries = [entry for entry in entries if paths is None or paths in entry.name]
    if not entries:
        raise InputError(f"no path's name contains {paths!r}", param="paths")
    started = time.monotonic()
    engine = open_engine(model, device, store)
    base = engine.default_config(seed=seed)
    variations = [variation for text in vary for variation in parse_vary(text, base)]
    with Display(quiet=as_json) as display:

        def on_line(line: dict[str, Any], reused: bool) -> None:
            name = " ".join(str(line[key]) for key in ("scene", "path", "row", "depth", "vary") if line[key])
            psnr = next((value for key, value in line.items() if key.startswith("psnr_all_")), None)
            display.say(f"{name}  {'-' if psnr is None else f'{psnr:.2f} dB'}{'  (kept)' if reused else ''}")

        evaluation = Evaluation(
            engine=engine,
            entries=entries,
            out=out,
            scorer=Scorer(),
            base=base,
            vary=variations,
            rows=_chosen(rows, list(ROWS), "rows"),
            depths=_chosen(depth, ["true", "reduced", "estimated"], "depth"),
            on_line=on_line,
            poses=poses,
            vbench_python=vbench_python,
        )
        lines = evaluation.run()
    kinds = " and ".join(depth.split(","))
    network = "" if "estimated" not in depth else f" by {engine.models.depth_source(base.depth.model).name}"
    about = f"Model {engine.models.entry.name}, seed {seed}, {len(entries)} paths, with {kinds} depth{network}."
    write_summary(lines, out, about)
    if as_json:
        emit({"lines": len(lines), "rows": str(out / "rows.parquet"), "page": str(out / "index.html")})
        return
    typer.echo((out / "summary.md").read_text())
    typer.echo(f"page   {out / 'index.html'}")
    typer.echo(f"rows   {out / 'rows.parquet'}  ({len(lines)} lines, {format_duration(time.monotonic() - started)})")


def _given(path: Path | None) -> Path:
    assert path is not None
    return path


def _chosen(text: str | None, known: list[str], param: str) -> list[Any]:
    """The names in a comma-separated list, in the order of the table.

    Raises:
        InputError: a name that there is not.
    """
    if text is None:
        return known
    wanted = [word.strip() for word in text.split(",")]
    for word in wanted:
        if word not in known:
            raise InputError(f"there is no {word!r}; there are {', '.join(known)}", param=param)
    return [name for name in known if name in wanted]
