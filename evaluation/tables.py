"""The tables of an evaluation: the summary, and what changed between two."""

from collections.abc import Sequence
from dataclasses import dataclass

from .statistics import Line, LineKey, differences, groups, means


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One metric of a table, shown times `scale`."""

    metric: str
    title: str
    digits: int
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A title (empty under another table of the same), column heads, and rows of text."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table as Markdown."""
        title = f"### {self.title}\n\n" if self.title else ""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return title + "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def columns(lines: Sequence[Line]) -> list[list[Column]]:
    """The tables' columns for clips of this length: against the truth, and the clip by itself."""
    lengths = [int(name.rsplit("_", 1)[1]) for line in lines for name in line if name.startswith("psnr_all_")]
    count = max(lengths, default=14)
    n = count - 1

    def column(metric: str, title: str, digits: int, scale: float = 1.0) -> Column:
        return Column(metric=metric, title=title, digits=digits, scale=scale)

    truth = [
        column(f"psnr_all_{n}", f"PSNR all, last {n}", 2),
        column(f"psnr_all_{count}", f"PSNR all, {count}", 2),
        column(f"psnr_visible_{n}", "PSNR visible", 2),
        column(f"psnr_visible_covered_{n}", "visible and covered", 2),
        column(f"psnr_occluded_{n}", "PSNR occluded", 2),
        column(f"psnr_other_moments_{n}", "other moments", 2),
        column(f"psnr_edge_{n}", "edge PSNR", 2),
        column("edge_flicker", "edge flicker, less is better", 2),
        column(f"ssim_all_{n}", "SSIM all", 3),
        column(f"ssim_occluded_{n}", "SSIM occluded", 3),
        column(f"effnetlite0_distance_all_{n}", "EfficientNet-Lite0 distance all", 3),
        column(f"effnetlite0_distance_occluded_{n}", "occluded", 3),
        column(f"lpips_all_{n}", "LPIPS all", 3),
        column("coverage", "coverage", 3),
        column("seconds", "seconds", 0),
    ]
    clip = [
        column("subject_consistency_effnetlite0", "subject (EfficientNet-Lite0)", 2, 100),
        column("background_consistency_effnetlite0_stride16", "background (its stride 16)", 2, 100),
        column("temporal_flickering", "flicker", 2, 100),
        column("motion_smoothness_dis", "motion smoothness (DIS)", 2, 100),
        column("imaging_quality_niqe", "NIQE, less is better", 2),
        column("sharpness_ratio", "sharpness / truth's", 2),
        column("seam_ratio", "worst seam", 2),
        column(f"camera_rotation_deg_{n}", "camera off by, deg", 2),
        column(f"camera_translation_share_{n}", "of the path's length", 3),
        column("camera_computed", "in share of frames", 2),
        column("source_rotation_deg", "source camera off by at most, deg", 2),
        column("source_position_share", "of its path's length", 3),
    ]
    clip += [
        column(name, name.replace("_", " "), 2, 100)
        for name in dict.fromkeys(name for line in lines for name in line if name.startswith("vbench_"))
    ]
    present = {name for line in lines for name, value in line.items() if value is not None}
    return [[c for c in part if c.metric in present] for part in (truth, clip)]


def kinds(lines: Sequence[Line]) -> list[str]:
    """`all`, and the kinds of path if there is more than one."""
    found = list(dict.fromkeys(line["kind"] for line in lines))
    return ["all", *found] if len(found) > 1 else ["all"]


def summary(lines: Sequence[Line]) -> list[Table]:
    """Every group's means over paths; of the first column also half the width of its 95 % interval."""
    tables = []
    for kind in kinds(lines):
        chosen = [line for line in lines if kind in ("all", line["kind"])]
        paths = len({(line["scene"], line["path"]) for line in chosen})
        title = f"{'All' if kind == 'all' else kind.capitalize()} paths ({paths})"
        for part in columns(chosen):
            rows = []
            for key, group in groups(chosen).items():
                values = [means(group, column.metric) for column in part]
                cells = [
                    "" if value is None else f"{value.mean * column.scale:.{column.digits}f}"
                    for value, column in zip(values, part, strict=True)
                ]
                if values and values[0] is not None:
                    half = (values[0].high - values[0].low) / 2 * part[0].scale
                    cells[0] += f" ±{half:.{part[0].digits}f}"
                rows.append([*labels(key), *cells])
            tables.append(Table(title=title, head=["row", "depth", *(column.title for column in part)], rows=rows))
            title = ""
    return tables


def comparison(before: Sequence[Line], after: Sequence[Line]) -> str:
    """What changed, path by path, for every group and metric of both, as Markdown; bold is more than noise."""
    old, new = groups(before), groups(after)
    shared = [key for key in new if key in old]
    if not shared:
        return "The two evaluations share no row.\n"
    parts = [
        "Second minus first, mean over the paths that both have, with its 95 % bootstrap interval; "
        "**bold** where that leaves out zero.\n"
    ]
    for part in columns([*before, *after]):
        rows = []
        for key in shared:
            cells = []
            for column in part:
                change = differences(old[key], new[key], column.metric)
                if change is None:
                    cells.append("")
                    continue
                values = (value * column.scale for value in (change.mean, change.low, change.high))
                mean, low, high = (f"{value:+.{column.digits}f}" for value in values)
                text = f"{mean} [{low}, {high}]"
                cells.append(text if change.is_noise else f"**{text}**")
            rows.append([*labels(key), *cells])
        head = ["row", "depth", *(column.title for column in part)]
        parts.append(Table(title="", head=head, rows=rows).markdown())
    alone = [" ".join(label for label in labels(key) if label) for key in [*old, *new] if (key in old) != (key in new)]
    if alone:
        parts.append(f"Only in one of them: {', '.join(alone)}.\n")
    return "\n".join(parts)


def labels(key: LineKey) -> tuple[str, str]:
    """Row with its variation, and depth."""
    row, depth, vary = key
    return (f"{row}, {vary}" if vary else row), ("" if depth == "none" else depth)
