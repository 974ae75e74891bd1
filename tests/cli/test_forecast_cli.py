"""`edgekit forecast` and `edgekit schedule` as a user meets them: text on stderr, JSON on stdout, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from edgekit.chart import Canvas, Line, chart
from edgekit.cli.forecast import forecast
from edgekit.cli.main import run
from edgekit.cli.schedule import schedule
from edgekit.compress.training.schedule import ScheduleConfig, factor

LOGS = Path(__file__).parents[1] / "compress" / "forecast" / "logs"
RESTARTS = LOGS / "held_out" / "rotation_cnn_sgd_cosine-restarts_26.csv"


def invoke(command: object, *args: object) -> Result:
    assert command in (forecast, schedule)
    chosen = forecast if command is forecast else schedule
    return CliRunner().invoke(chosen, [str(arg) for arg in args], catch_exceptions=False)


def run_folder(folder: Path) -> Path:
    plan = {"name": "cosine-restarts", "t_0": 6.0}
    config = ScheduleConfig.model_validate(plan)
    rows = [
        {"kind": "epoch", "epoch": e, "lr": factor(config, e - 0.01, 20), "val_acc": 0.8 - 0.5 * e**-0.7}
        for e in range(1, 6)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(yaml.safe_dump({"recipe": {"fit": {"epochs": 20, "schedule": plan}}}))
    return folder


def test_forecast_names_the_restart_and_its_price(tmp_path: Path) -> None:
    png = tmp_path / "forecast.png"
    options = ("--until", 9, "--total-epochs", 36, "--schedule", "cosine-restarts", "--t0", 12, "--target", 95)
    result = invoke(forecast, RESTARTS, *options, "--png", png, "-v")
    assert result.stdout == ""
    for said in ("best before the restart at epoch 13", "planned restart at epoch 13: expect to lose"):
        assert said in result.stderr
    for said in ("without the schedule it would read", "95 target", "annealed-time", "P(95) by then"):
        assert said in result.stderr
    assert not any("\u2800" <= letter <= "\u28ff" for letter in result.stderr), "no braille where no terminal is"
    with Image.open(png) as picture:
        assert picture.format == "PNG" and picture.width > 600


def test_forecast_json_is_alone_on_stdout() -> None:
    result = invoke(forecast, RESTARTS, "--until", 20, "--total-epochs", 30, "--metric", "val_loss", "--json")
    answer = json.loads(result.stdout)
    assert (answer["schema_version"], answer["kind"], answer["direction"]) == (1, "forecast", "min")
    assert len(answer["epochs"]) == len(answer["median"]) == 10
    assert answer["restarts"] == [] and answer["peak_without_schedule"] is None
    assert sum(model["weight"] for model in answer["models"]) == pytest.approx(1)
    assert result.stderr != ""


def test_run_folder_tells_its_schedule_and_length(tmp_path: Path) -> None:
    answer = json.loads(invoke(forecast, run_folder(tmp_path), "--json", "-q").stdout)
    assert answer["total_epochs"] == 20
    assert [restart["epoch"] for restart in answer["restarts"]] == [7, 13, 19]
    assert answer["notes"] == []


@pytest.mark.parametrize("metric", ["mean_r1", "zeroshot_acc"])
def test_a_clips_own_metric_is_forecast_unasked(tmp_path: Path, metric: str) -> None:
    folder = run_folder(tmp_path)
    log = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    renamed = ({**row, metric: row["val_acc"], "val_loss": 1 / row["epoch"]} for row in rows)
    log.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "val_acc"}) + "\n" for row in renamed))
    assert json.loads(invoke(forecast, folder, "--json").stdout)["metric"] == metric


def test_the_readmes_target_in_percent_is_taken(tmp_path: Path) -> None:
    result = invoke(forecast, run_folder(tmp_path), "--target", 75, "--json")
    assert json.loads(result.stdout)["target"]["value"] == 0.75
    assert "the target 75 is read as 75 %" in result.stderr and "0.75 target" in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["{logs}/none.csv"], 3, "does not exist"),
        (["{log}"], 2, "already has epoch 36"),
        (["{log}", "--until", "2"], 2, "a forecast needs at least 4"),
        (["{log}", "--metric", "val_ac"], 2, "did you mean 'val_acc'"),
        (["{log}", "--t0", "3"], 2, "without --schedule"),
        (["{log}", "--schedule", "cosine", "--t0", "3"], 2, "cosine does not read --t0"),
        (["{log}", "--schedule", "cosin"], 2, "cosin"),
        (["{log}", "--total-epochs", "-3"], 2, "--total-epochs"),
        (["{log}", "--total-epochs", "0"], 2, "--total-epochs: Input should be greater than 0"),
    ],
)
def test_wrong_use_ends_with_a_line_and_a_code(
    args: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [arg.format(logs=LOGS, log=RESTARTS) for arg in args]
    if len(given) == 1 and code == 2:
        given += ["--total-epochs", "36"]
    assert run(["forecast", *given]) == code
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.out == ""


def test_run_folder_of_another_version_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder(tmp_path)
    for content in ("fit: 3\n", "[" * 5000):
        (tmp_path / "config.yaml").write_text(content)
        assert run(["forecast", str(tmp_path)]) == 2
        assert "no configuration of a run of this version" in capsys.readouterr().err
    assert run(["forecast", str(tmp_path), "--total-epochs", "10"]) == 0


def test_a_dollar_in_a_columns_name_is_no_formula(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("epoch,$a_$x\n" + "".join(f"{e},{0.8 - 0.5 * e**-0.7}\n" for e in range(1, 6)))
    assert invoke(forecast, log, "--metric", "$a_$x", "--png", tmp_path / "x.png").exit_code == 0
    assert (tmp_path / "x.png").is_file()


def test_schedule_draws_and_warns(tmp_path: Path) -> None:
    png = tmp_path / "schedule.png"
    options = ("--epochs", 20, "--t0", 8, "--warmup-epochs", 2, "--lr", 0.1, "--json", "--png", png)
    result = invoke(schedule, "cosine-restarts", *options)
    answer = json.loads(result.stdout)
    assert [jump["epoch"] for jump in answer["jumps"]] == [11, 19]
    assert answer["rate"][2] == pytest.approx(0.1)
    assert "epoch 11: the rate jumps" in result.stderr
    assert "*" in result.stderr and "⠁" not in result.stderr, "no braille where the output is no terminal"
    with Image.open(png) as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize("args", [("forecast", RESTARTS, "--until", 20), ("schedule", "cosine")])
def test_a_picture_that_is_there_stays_unless_asked(
    args: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png = tmp_path / "mine.png"
    png.write_bytes(b"mine")
    asked = [*map(str, args), "--png", str(png)]
    assert run(asked) == 2
    assert "mine.png exists already. Give --png another name, or pass --overwrite" in capsys.readouterr().err
    assert png.read_bytes() == b"mine"
    assert run([*asked, "--overwrite"]) == 0
    with Image.open(png) as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "step", "plateau", "one-cycle", "wsd"])
def test_schedules_without_jumps_draw_in_silence(name: str) -> None:
    result = invoke(schedule, name, "--epochs", 40)
    assert "warning" not in result.stderr
    assert len(result.stderr.splitlines()) >= 16


def test_wrong_schedule_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schedule", "wsd", "--decay-fraction", "3"]) == 2
    assert "--decay-fraction: Input should be less than or equal to 1" in capsys.readouterr().err
    assert run(["schedule", "cosine", "--warmup-epochs", "30", "--epochs", "20"]) == 2
    assert "not longer than its warm-up" in capsys.readouterr().err


@pytest.mark.parametrize("braille", [False, True])
def test_chart_puts_values_where_they_belong(braille: bool) -> None:
    rising = chart([Line([0, 10], [0, 1])], Canvas(20, 5, braille), x_label="epoch")
    assert len(rising) == 7
    assert rising[0].startswith("1.00") and rising[4].startswith("0.00")
    drawn = [line[6:] for line in rising[:5]]
    assert drawn[0].strip() and len(drawn[0]) - len(drawn[0].lstrip()) > 14, "the top is reached at the right"
    assert drawn[4][0] != " ", "the bottom is at the left"
    flat = chart([Line([1, 2, 3], [5, 5, float("nan")])], Canvas(20, 5, braille))
    assert sum(bool(line[6:].strip(" |│")) for line in flat[:5]) == 1
