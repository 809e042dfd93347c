"""The command line: ``jaxregions study`` and ``jaxregions info``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from jaxregions.study.config import StudyConfig, activation_names

if TYPE_CHECKING:
    from jaxregions.study.runner import Study, StudyResult

__all__ = ["app", "main"]

app = typer.Typer(
    help="Exact affine-region geometry of piecewise-affine networks conditioned on a mini-batch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_DEFAULT = StudyConfig
_NETWORK, _TRAINING = "Network and data", "Training"
_MEASURING, _RUNNING = "Measuring", "Running"


def main() -> None:
    """Entry point of the ``jaxregions`` command."""
    app()


def _joined(values: tuple) -> str:
    return ",".join(f"{v:g}" for v in values)


def _option(panel: str, text: str, *names: str, **extra: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **extra)


@app.command()
def study(
    dataset: Annotated[
        str,
        _option(
            _NETWORK,
            "digits, breast_cancer, moons, circles, spirals, mnist1d, mnist, fashion_mnist.",
        ),
    ] = _DEFAULT.dataset,
    data_path: Annotated[
        str | None, _option(_NETWORK, "Folder with the files of mnist or fashion_mnist.")
    ] = None,
    widths: Annotated[str, _option(_NETWORK, "Hidden widths.")] = _joined(_DEFAULT.widths),
    activation: Annotated[
        str, _option(_NETWORK, f"{', '.join(activation_names())}.")
    ] = _DEFAULT.activation,
    bias_std: Annotated[
        float, _option(_NETWORK, "Standard deviation of the initial raw biases.")
    ] = _DEFAULT.bias_std,
    epochs: Annotated[int, _option(_TRAINING, "Epochs.")] = _DEFAULT.epochs,
    batch_size: Annotated[
        int, _option(_TRAINING, "Examples in a step, and in the mini-batch that is conditioned on.")
    ] = _DEFAULT.batch_size,
    learning_rate: Annotated[
        float, _option(_TRAINING, "Learning rate of Adam.")
    ] = _DEFAULT.learning_rate,
    checkpoints: Annotated[
        str | None,
        _option(
            _MEASURING,
            "Epochs to measure at, beside the first and last; by default 1,2,5,10,20,50,...",
        ),
    ] = None,
    windows: Annotated[
        int, _option(_MEASURING, "Windows on data points, and as many off-data controls.")
    ] = _DEFAULT.windows,
    radii: Annotated[
        str, _option(_MEASURING, "Radii of the full-dimensional windows, in input units.")
    ] = _joined(_DEFAULT.radii),
    slice_radii: Annotated[
        str, _option(_MEASURING, "Radii of the windows in slices, in input units.")
    ] = _joined(_DEFAULT.slice_radii),
    slice_dimensions: Annotated[
        str, _option(_MEASURING, "Dimensions of the slices for layer 1; all layers: 2.")
    ] = _joined(_DEFAULT.slice_dimensions),
    seed: Annotated[
        int, _option(_RUNNING, "Seed of everything: same seed, same numbers.")
    ] = _DEFAULT.seed,
    output: Annotated[str, _option(_RUNNING, "Folder of the report.")] = _DEFAULT.output,
    quick: Annotated[
        bool, _option(_RUNNING, "At most 2 epochs, 16 windows, one slice radius.", "--quick")
    ] = False,
    resume: Annotated[
        bool, _option(_RUNNING, "Continue from the last finished checkpoint in OUTPUT.", "--resume")
    ] = False,
) -> None:
    """Train an MLP with BatchNorm and its twin without; measure regions near and off the data.

    Writes OUTPUT/index.html, the figures, results.csv, results.json and windows.npz. Lists are
    written with commas, as in --widths 128,128.
    """
    from rich.console import Console

    console = Console(stderr=True)
    start = time.perf_counter()
    try:
        config = StudyConfig(
            dataset=dataset,
            data_path=data_path,
            widths=_numbers("widths", widths, int),
            activation=activation,
            bias_std=bias_std,
            batch_size=batch_size,
            epochs=epochs,
            learning_rate=learning_rate,
            checkpoints=None if checkpoints is None else _numbers("checkpoints", checkpoints, int),
            windows=windows,
            radii=_numbers("radii", radii, float),
            slice_radii=_numbers("slice_radii", slice_radii, float),
            slice_dimensions=_numbers("slice_dimensions", slice_dimensions, int),
            seed=seed,
            output=output,
            quick=quick,
            resume=resume,
        )
        with console.status("Loading"):
            from jaxregions.study import prepare
            from jaxregions.study.store import DamagedCheckpoint

            ready = prepare(config)
    except (ValueError, ImportError, OSError) as error:
        _fail(str(error))
    try:
        result = _with_progress(ready, console)
    except KeyboardInterrupt:
        folder = Path(output) / "checkpoints"
        some = any(folder.glob("*.npz"))
        kept = f"Finished checkpoints are in {folder}; the same command with --resume continues."
        typer.echo(f"Interrupted. {kept if some else 'No checkpoint was finished.'}", err=True)
        raise typer.Exit(130) from None
    except (OSError, DamagedCheckpoint) as error:
        _fail(str(error))
    _summary(ready, result, time.perf_counter() - start)


@app.command()
def info() -> None:
    """Print versions and devices, and say what is slower for want of an optional part."""
    import jax

    from jaxregions.exact import rational_backend
    from jaxregions.study.store import versions

    for name, version in versions().items():
        typer.echo(f"{name:<20} {version}")
    for device in jax.devices():
        typer.echo(f"{'device':<20} {device.platform}: {device.device_kind}")
    backend = rational_backend()
    slower = (
        "" if backend == "python-flint" else " (python-flint is missing: exact ties are slower)"
    )
    typer.echo(f"{'rational arithmetic':<20} {backend}{slower}")


def _numbers(name: str, text: str, kind: type) -> tuple:
    try:
        return tuple(kind(part) for part in text.replace(" ", ",").split(",") if part)
    except ValueError:
        sort = "integers" if kind is int else "numbers"
        raise ValueError(
            f"{name}: expected {sort} with commas between, received {text!r}"
        ) from None


def _fail(message: str) -> NoReturn:
    typer.echo(f"Error: {' '.join(message.split())}", err=True)
    raise typer.Exit(2)


def _with_progress(ready: Study, console: Any) -> StudyResult:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from jaxregions.study import run

    columns = (
        TextColumn("{task.description:<44}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("Starting", total=ready.steps)
        return run(ready, lambda what, steps: bars.update(task, description=what, advance=steps))


def _summary(ready: Study, result: StudyResult, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    from jaxregions.study.report import COLUMNS, overview
    from jaxregions.study.story import certificate, epochs

    config = ready.config
    shown = Table(title=f"{config.dataset}, after {epochs(config.epochs)}: mean per window")
    for heading in ("", *COLUMNS):
        shown.add_column(heading, justify="right" if heading else "left")
    for title, rows in overview(config, ready.scene, result.table):
        shown.add_row(f"[bold]{title.replace('radius', 'r =')}[/bold]")
        for label, values in rows:
            shown.add_row(label.replace("radius", "r ="), *values)
        shown.add_section()
    console = Console()
    console.print(shown)
    said = certificate(config, result.table)
    alarm = "bold red" if said.startswith("WARNING") else None
    console.print(f"All layers: {said}.", style=alarm, highlight=False)
    console.print("± is half a 95% interval over windows; difference: BN minus no BN, paired.")
    console.print(
        f"Report: {result.page.resolve()}  ({seconds:.0f} s)", soft_wrap=True, highlight=False
    )
