"""`synfundus plot`: curves of one or several runs, from their files, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from synfundus.config.machine import PlotConfig
from synfundus.config.schema import RunConfig
from synfundus.distributed.world import World
from synfundus.errors import ConfigError
from synfundus.pictures.charts import SOFTWARE, Curve, Panel, draw_curves, spans_decades
from synfundus.stages import Summary
from synfundus.stages.rehearsal import require_run
from synfundus.storage import filesystem
from synfundus.telemetry.console import Console
from synfundus.telemetry.run_files import RunView, read_run, series

DEFAULT_CURVES = (
    *("loss", "validation_loss", "loss_t0", "loss_t3", "psnr_db", "ssim", "vessel_correlation"),
    *("grad_norm", "lr", "images_per_s", "data_wait_percent"),
)
"""The usual curves, in this order."""
_TITLES = {
    "loss": "training loss",
    "validation_loss": "validation loss, averaged weights",
    "validation_loss_all_labels": "validation loss, averaged weights, no label dropped",
    "loss_t0": "loss, least noise (first quarter of the timesteps)",
    "loss_t3": "loss, most noise (last quarter of the timesteps)",
    "psnr_db": "PSNR of reconstructions, dB",
    "ssim": "SSIM of reconstructions",
    "vessel_correlation": "vessel correlation of reconstructions",
    "grad_norm": "gradient norm before clipping",
    "lr": "learning rate",
    "images_per_s": "images a second, all ranks",
    "data_wait_percent": "waiting for data, %",
}
PICTURE_NAME = "curves.png"
_JUDGED = ("validation_loss", "validation_loss_all_labels", "psnr_db", "ssim", "vessel_correlation")
"""Curves of a validation, whose title says what they are of."""
_ALWAYS_LINEAR = ("psnr_db", "ssim", "vessel_correlation", "images_per_s", "data_wait_percent")


def run(config: RunConfig, world: World, console: Console) -> Summary:
    """Plot the curves of running or finished runs.

    Returns:
        ``out``, ``runs``, ``curves`` (names of the panels), ``without_rows`` (runs that have nothing to draw yet).

    Raises:
        ConfigError: There is no run in a folder, none has a row, or none has a curve that was asked for; several runs
            and no place for their picture; a file in its place that `plot` did not write.
    """
    del world
    out, drawn, empty = look(config.plot, console)
    options = config.plot
    keys = _keys(drawn, options.curves)
    for view in drawn:
        for key in keys:  # metrics.jsonl has null where a figure was not finite
            missing = sum(key in row and row[key] is None for row in (*view.rows, *view.validation))
            if missing:
                console.warning(f"{view.url}: {missing} values of {key} are not finite; the curve passes over them")
    panels = plan_panels(drawn, options.curves)
    data = draw_curves(panels, run_names(drawn), heading=_heading(drawn), smoothing=options.smoothing)
    filesystem.write_bytes(out, data)
    console.message(f"{len(panels)} curves of {len(drawn)} run(s): {out}")
    return {"out": out, "runs": [view.url for view in drawn], "curves": keys, "without_rows": empty}


def look(options: PlotConfig, console: Console) -> tuple[str, list[RunView], list[str]]:
    """Return the picture to write, the runs to draw, and the runs without a row; refuses as `run`."""
    urls = list(dict.fromkeys(options.run_dirs))
    out = options.out or _place_beside(urls)
    if filesystem.exists(out) and not _is_plot(out):
        raise ConfigError("`plot` did not write what is there", where=out, hint="give another --out")
    for url in urls:
        require_run(url)
    views = [read_run(url) for url in urls]
    drawn = [view for view in views if view.rows or view.validation]
    empty = [view.url for view in views if not (view.rows or view.validation)]
    for url in empty:
        console.warning(f"{url} has no row of metrics yet; it is left out")
    if not drawn:
        raise ConfigError("no run has a row of metrics yet", where=", ".join(empty), hint="wait for its first row")
    _keys(drawn, options.curves)
    return out, drawn, empty


def _place_beside(urls: Sequence[str]) -> str:
    """Return the default path of a run's picture."""
    if not urls:
        raise ConfigError("--run-dir is missing", where="plot.run_dirs", hint="give --run-dir")
    if len(urls) > 1:
        raise ConfigError(
            f"--out is missing: the picture of {len(urls)} runs belongs in none of their folders",
            where="plot.out",
            hint="give --out FILE.png",
        )
    return filesystem.join(urls[0], PICTURE_NAME)


def _is_plot(url: str) -> bool:
    return not filesystem.is_dir(url) and f"Software\0{SOFTWARE}".encode() in filesystem.read_range(url, 0, 4096)


def plan_panels(views: Sequence[RunView], wanted: Sequence[str]) -> list[Panel]:
    """Return a panel for each curve of any run.

    Args:
        views: Runs with rows.
        wanted: Names in metrics.jsonl; empty for the usual ones.

    Raises:
        ConfigError: No run has one of those wanted.
    """
    panels = []
    for key in _keys(views, wanted):
        curves = [Curve(number, points) for number, view in enumerate(views) if (points := _points(view, key))]
        logarithmic = key not in _ALWAYS_LINEAR and spans_decades(curves)
        of = {view.judged_on for view in views if _points(view, key)} if key in _JUDGED else set()
        title = ", ".join([_TITLES.get(key, key), *filter(None, of if len(of) == 1 else ())])
        panels.append(Panel(title, curves, logarithmic=logarithmic))
    return panels


def run_names(views: Sequence[RunView]) -> list[str]:
    """Return a name for each run: the last parts of its path, as many as make it unique."""
    parts = [PurePosixPath(view.url.rstrip("/")).parts for view in views]
    for length in range(1, max(len(part) for part in parts) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        names = [view.name if length == 1 else name for view, name in zip(views, names, strict=True)]
        if len(set(names)) == len(names):
            return names
    return [view.url for view in views]


def _points(view: RunView, key: str) -> list[tuple[int, float]]:
    return series(view.rows, key) or series(view.validation, key)


def _keys(views: Sequence[RunView], wanted: Sequence[str]) -> list[str]:
    """Return the names of the curves to draw."""
    names = {key for view in views for row in (*view.rows, *view.validation) for key in row} - {"images_seen"}
    found = {key for key in names if any(_points(view, key) for view in views)}
    missing = [key for key in wanted if key not in found]
    if missing:
        raise ConfigError(
            f"no run has a curve {', '.join(repr(key) for key in missing)}",
            where="plot.curves",
            hint=f"there are {', '.join(sorted(found))}",
        )
    keys = list(dict.fromkeys(wanted)) or [key for key in DEFAULT_CURVES if key in found]
    if not keys:
        raise ConfigError(
            "no run has a finite value of a curve that is usually drawn",
            where=", ".join(view.url for view in views),
            hint=f"there are {', '.join(sorted(found)) or 'none'}; --curve draws one by name",
        )
    return keys


def _heading(views: Sequence[RunView]) -> str:
    kinds = {"vae": "autoencoder", "diffusion": "diffusion", "": "training"}
    what = " and ".join(dict.fromkeys(kinds.get(view.kind, view.kind) for view in views))
    furthest = max(view.images_seen for view in views)
    return f"{what}: {len(views)} run{'s' if len(views) > 1 else ''}, up to {furthest:,} images"
