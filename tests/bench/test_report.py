"""The page: everything is on it, nothing is fetched, and no text of others becomes markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from edgekit.bench.figures import Point, pareto_front, save_figures, spread_apart, to_svg, trade_off
from edgekit.bench.page import DARK, MAX_BYTES, Page, Section, render_page
from edgekit.bench.report import Training, build_page
from edgekit.bench.report_bundle import Bundle
from edgekit.bench.results import BenchReport
from edgekit.cli.main import run as cli
from edgekit.cli.report import read_training
from edgekit.compress.training.run_folder import RunFolder
from edgekit.errors import VerificationError
from edgekit.export.audit.audit import audit
from edgekit.export.manifest import read_manifest
from tests.bench.reports_for_tests import made_report
from tests.bench.tiny_for_tests import write_bundle, write_classifier

EVIL = "<script>alert(1)</script>"
TRAINING = Training(
    "student",
    {
        "teacher": {"name": "/home/someone/teacher", "val_acc": 0.75},
        "student": {"arch": "mobilevit_xxs"},
        "summary": "odd",
    },
    [1.0, 2.0, 3.0],
    {"loss": [3.0, 2.0, 1.0], "val_acc": [0.2, float("nan"), 0.5], "lr": [1e-3, 5e-4, 0.0], "other": [1.0]},
)


class Tags(HTMLParser):
    """Collects what a browser would see: tags, attributes, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    folder = write_bundle(tmp_path / "bundle", [write_classifier(tmp_path / "model.onnx")])
    return Bundle("bundle", read_manifest(folder), {"model.onnx": audit(folder / "model.onnx")})


def named(name: str) -> BenchReport:
    """Return a report whose file has this name."""
    return replace(made_report(model=name), data=f"300 pictures of {name}", notes=(f"note of {name}",))


def test_every_part_is_on_the_page(bundle: Bundle) -> None:
    page = Tags(render_page(build_page("All", [named("model.onnx")], [TRAINING], [bundle])))
    titles = ("From teacher to artifacts", "Accuracy and latency", "Training of student", "Parity with PyTorch: bundle")
    for words in (*titles, "What the files really are: bundle", "Contract: bundle", "Device", "AMD EPYC"):
        assert words in page.text, words
    for words in ("4.00×", "faster", "90.0 [86.1, 92.9]", "steady", "teacher, val acc 0.75", "100 % fp32", "a-red"):
        assert words in page.text, words
    assert [tag for tag, _ in page.tags].count("svg") == 6  # trade-off, distributions, long run; loss, accuracy, rate
    assert "/home/someone" not in page.text


def test_the_page_asks_for_nothing(bundle: Bundle) -> None:
    text = render_page(build_page("All", [named("model.onnx")], [TRAINING], [bundle]))
    page = Tags(text)
    loading = {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "video",
        "audio",
        "source",
        "base",
        "form",
        "image",
    }
    assert not loading & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith("#"), f"<{tag} {name}={attributes[name]}>"
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    policy = [attributes for tag, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0]["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert len(text.encode()) < 300_000 < MAX_BYTES


def test_names_of_others_are_text(bundle: Bundle, tmp_path: Path) -> None:
    manifest = bundle.manifest.model_copy(
        update={"classes": (EVIL, '"><img src=x onerror=alert(1)>'), "model": {EVIL: EVIL}, "versions": {EVIL: EVIL}}
    )
    evil = Bundle(EVIL, manifest, {"model.onnx": f"cannot be read: {EVIL}"})
    report = named(f"{EVIL}.onnx")
    failed = replace(report.rows[1], name=f"failed {EVIL}", status="failed", failure=EVIL)
    report = replace(report, rows=(*report.rows, failed), problems=(EVIL,))
    training = replace(TRAINING, name=EVIL, facts={"seed": EVIL, "versions": {EVIL: EVIL}}, notes=(EVIL,))
    page = Tags(render_page(build_page(EVIL, [report], [training], [evil])))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert page.text.count(EVIL) > 12, "they are shown, as text"


def test_colours_follow_light_and_dark() -> None:
    text = render_page(build_page("All", [made_report()], [], []))
    assert "prefers-color-scheme: dark" in text and all(colour in text for colour in DARK)
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--ink)" in drawn and "var(--c1)" in drawn
    assert "#0102" not in drawn and "#000000" not in drawn and "white" not in drawn
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in text


def test_figures_are_files_too(tmp_path: Path) -> None:
    files = save_figures(build_page("All", [made_report()], [TRAINING], []).figures, tmp_path)
    assert {file.name for file in files} >= {"accuracy-latency.png", "accuracy-latency.svg", "training-loss.svg"}
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as picture:
                assert picture.size == (752, 496)
                assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20, "something is drawn"
        else:
            assert ElementTree.parse(file).getroot().tag.endswith("svg")
            assert "var(--" not in file.read_text()


def test_figures_come_out_equal_each_time() -> None:
    figure = trade_off([Point(1, 0.02, 0.7, 0.6, 0.8)])
    assert to_svg(figure) == to_svg(figure)


def test_pareto_front_is_what_nothing_beats() -> None:
    slow_best, quick, beaten, equal = (
        Point(1, 20e-3, 0.9, 0.8, 1.0),
        Point(2, 5e-3, 0.8, 0.7, 0.9),
        Point(3, 10e-3, 0.7, 0.6, 0.8),
        Point(4, 30e-3, 0.9, 0.8, 1.0),
    )
    assert pareto_front([slow_best, quick, beaten, equal]) == [quick, slow_best]


def test_a_report_of_nothing_measured_still_is_a_page() -> None:
    bare = replace(made_report(), samples={}, answers={}, data=None)
    rows = tuple(replace(row, latency=None, scores=None, speedup=None, sustained=None) for row in bare.rows)
    page = Tags(render_page(build_page("Bare", [replace(bare, rows=rows)], [], [])))
    assert "svg" not in {tag for tag, _ in page.tags}
    assert "model.onnx" in page.text


def test_old_results_are_shown(tmp_path: Path) -> None:
    content = made_report().to_json()
    for name in ("answers", "device", "problems"):
        del content[name]
    for row in content["rows"]:
        for name in ("throughput", "sustained", "sha256", "process_memory_bytes"):
            del row[name]
    old = BenchReport.from_json(json.loads(json.dumps(content)))
    assert "model.onnx" in render_page(build_page("Old", [old], [], []))


def test_a_page_too_large_is_refused() -> None:
    page = Page("Large", "", (Section("Notes", notes=("x" * MAX_BYTES,)),))
    with pytest.raises(VerificationError, match="more than 3000000"):
        render_page(page)


def test_numbers_of_models_alike_do_not_cover_each_other() -> None:
    near = np.array([[50.0, 50.0], [50.0, 50.0], [51.0, 50.0], [50.0, 52.0], [99.0, 99.0], [20.0, 80.0]])
    low, high = np.zeros(2), np.full(2, 100.0)
    moved = spread_apart(near, 16.0, low, high)
    gaps = np.hypot(*(moved[:, None] - moved[None]).transpose(2, 0, 1))
    assert gaps[~np.eye(len(near), dtype=bool)].min() > 15.9
    np.testing.assert_allclose(moved[5], near[5], atol=0.01)  # one with room stays
    assert (moved >= 8).all() and (moved <= 92).all(), "badges stay within the axes"
    crowd = spread_apart(np.full((200, 2), 50.0), 16.0, low, high)  # no room for all: it ends all the same
    assert np.isfinite(crowd).all()


def test_a_run_that_went_on_from_another_shows_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path / "second")
    run.path.mkdir()
    (run.path / "run.json").write_text("{}")
    rows = [{"kind": "epoch", "epoch": epoch, "loss": 3.0 - epoch, "val_acc": 0.1 * epoch} for epoch in (1, 2)]
    run.metrics_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.write_history([{**row, "loss": 9.0, "phase": 1} for row in rows])
    assert cli(["report", str(run.path), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "Dashed: a new phase begins." in page
    training = read_training(run.path)
    assert training.epochs == [1.0, 2.0, 3.0, 4.0] and training.phase_ends == (2.0,)
    assert training.columns["loss"] == [9.0, 9.0, 2.0, 1.0]
