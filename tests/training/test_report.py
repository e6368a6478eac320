"""report.html: valid, self-contained, escaped, complete, and content with whatever the run left behind."""

import html.parser
import json
import math
import re

import numpy as np
import pytest

from vjepa_jax import config
from vjepa_jax.training import charts, pictures, report
from vjepa_jax.training.metrics import to_json

VOID = {"meta", "img", "br", "wbr", "source"}
EVIL = '<script>alert("x")</script>&'


class Page(html.parser.HTMLParser):
    """Checks that tags nest and collects text, attributes and the contents of scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.words, self.scripts, self.ids = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"
        self.text = re.sub(r"\s+", " ", " ".join(self.words).replace("\u00a0", " "))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if "id" in dict(attrs):
            self.ids.append(dict(attrs)["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def read(workdir, **options) -> tuple[str, Page]:
    path = report.write_report(workdir, **options)
    assert path == workdir / "report.html" and not list(workdir.glob("*.tmp"))
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def write_metrics(workdir, records):
    (workdir / "metrics.jsonl").write_text("".join(to_json(r) + "\n" for r in records))


def health(step, rank=50.0, std=0.5, loss=0.4, copy=0.6, mean=0.7):
    return {"step": step, "loss": loss, "rankme": rank, "rankme_max": 96.0, "feature_std": std, "feature_std_min": 0.2,
            "pair_cosine": 0.125, "health_loss": loss, "baseline_copy": copy, "baseline_mean": mean}  # fmt: skip


def probe(encoder, kind, labels, mean, std=0.01):
    return {"encoder": encoder, "probe": kind, "num_labels": labels, "accuracy_mean": 100 * mean,
            "accuracy_std": 100 * std, "seeds": 3, "chance": 12.5, "num_test": 480, "selected": "lr=0.01"}  # fmt: skip


@pytest.fixture
def full(tmp_path):
    """A run that left everything."""
    run = config.from_config_dict({"steps": 400, "batch_size": 8, "data": {"path": f"videos/{EVIL}", "resolution": 64}})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict(run)))
    records = []
    for step in range(1, 401):
        record = {"step": step, "loss": 0.4 + 1 / step, "loss/group0": 0.3, "loss/group1": 0.5, "lr": 1e-3,
                  "ema": 0.99925,
                  "grad_norm": 0.1, "grad_norm/encoder": 0.06, "grad_norm/predictor": 0.08, "update_norm": 0.01,
                  "param_norm": 42.0, "weight_decay": 0.04, "clips_per_s": 321.0, "data_wait": 0.02, "mfu": 0.38,
                  "substituted": int(step == 7), "seconds": step * 2.0, "temperature/x": 0.07}  # fmt: skip
        records.append((health(step) if step % 100 == 0 else {}) | record)
    records[4]["grad_norm"] = math.nan
    write_metrics(tmp_path, records)
    rows = [probe("trained", "linear", 200, 0.314), probe("trained", "linear", 2000, 0.4567),
            probe("random init", "linear", 200, 0.2), probe("random init", "linear", 2000, 0.231),
            probe("trained", "attentive", 2000, 0.91), probe("random init", "attentive", 2000, 0.945),
            probe("raw pixels", "linear", 2000, 0.25)]  # fmt: skip
    (tmp_path / "probes.json").write_text(json.dumps(rows))
    (tmp_path / "bad_videos.jsonl").write_text(
        json.dumps({"path": f"a/{EVIL}.mp4", "error": "no frames"}) + "\n"
        + json.dumps({"path": f"a/{EVIL}.mp4", "error": "no frames"}) + "\n"
        + '{"path": "b.mp4", "err'
    )  # fmt: skip
    (tmp_path / "bad_videos.1.jsonl").write_text(json.dumps({"path": "seen-by-host-1.mp4", "error": "empty"}) + "\n")
    (tmp_path / "run.json").write_text(
        json.dumps({"date": "2025-01-02", "command": ["vjepa", "train", "--workdir", f"runs/{EVIL}"],
                    "devices": ["NVIDIA H100 80GB HBM3"], "versions": {"jax": "0.10.2"},
                    "totals": {"seconds": 3723.4, "items": 3200, "starts": 2, "init_seconds": 100.0,
                               "step_seconds": 3600.0, "data_wait_seconds": 123.4, "lost_seconds": 176.6}})
    )  # fmt: skip
    frames = [np.full((12, 20, 3), v, np.uint8) for v in (0, 90, 200)]
    for step in (200, 400):
        pictures.save_picture(tmp_path, "masks", step, pictures.png(frames[1]))
        pictures.save_picture(tmp_path, "pca_0", step, pictures.animation(frames))
    return tmp_path


def test_full_report_is_valid_and_complete(full):
    _, page = read(full, name="my run")
    for words in ("my run", "Healthy.", "RankMe 50 of 96", "cosine of random pairs 0.125", "beats the better baseline",
                  "400", "3200 clips", "0.4025", "45.7 ± 1.0", "1:02:03", "2025-01-02", "NVIDIA H100 80GB HBM3",
                  "0.10.2", "vit_small", "3 videos could not be decoded", "seen-by-host-1.mp4",
                  "38.0% MFU", "Goodput 90.0%: that share of the time of 2 starts went into steps that count.",
                  "lost with killed starts", "2:57"):  # fmt: skip
        assert words in page.text, words
    titles = ("Loss", "Loss by mask group", "Learning rate", "EMA momentum", "Gradient norm", "Update norm", "RankMe",
              "Feature standard deviation", "Cosine of random pairs", "Clips per second",
              "Share of time waiting for data", "Substituted videos", "temperature/x")  # fmt: skip
    labels = [a["aria-label"] for a in page.all("svg") if a.get("role") == "img"]
    for title in titles:
        assert any(label.startswith(title + ":") for label in labels), title
    assert "Weight decay" not in page.text, "constant: the configuration says it"
    sections = "probes learning health speed time masks features-over-time data configuration"
    assert set(sections.split()) <= set(page.ids)
    targets = [a["href"] for a in page.all("a")]
    assert targets and all(t.startswith("#") and t[1:] in page.ids for t in targets)


def test_report_loads_nothing_from_outside(full):
    text, page = read(full)
    for _, attrs in page.tags:
        for name in ("src", "srcset", "href", "action", "data", "poster"):
            assert attrs.get(name, "#").startswith(("#", "data:image/")), (name, attrs[name][:60])
    assert not page.all("link") and not page.all("iframe") and not page.all("base")
    assert not re.search(r"https?:|//[a-z]+\.[a-z]|@import|url\(|fetch\(|XMLHttpRequest", text)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_text_from_files_is_escaped(full):
    text, page = read(full, name=EVIL)
    assert EVIL not in text and "<script>alert" not in text
    assert page.text.count('<script>alert("x")</script>&') >= 5  # title, heading, path, ledger, command
    assert len(page.scripts) == len(page.all("script"))


def test_numbers_for_the_pointer_are_json(full):
    _, page = read(full)
    data = [json.loads(s) for s in page.scripts[:-1]]
    loss = data[0]["series"][0]
    assert len(loss["s"]) == len(loss["v"]) <= 240 and loss["s"][-1] == 400
    grad = next(d for d, a in zip(data, [x for x in page.all("svg") if x.get("role") == "img"], strict=True)
                if a["aria-label"].startswith("Gradient norm"))  # fmt: skip
    assert all(math.isfinite(v) for s in grad["series"] for v in s["v"])


def test_pictures_are_embedded_with_alternatives(full):
    _, page = read(full)
    images = page.all("img")
    assert len(images) == 3  # newest masks; newest and first feature map
    assert all(a["alt"] and a["width"] == "20" and a["height"] == "12" for a in images)
    assert [a["src"].split(";")[0] for a in images] == ["data:image/png", "data:image/webp", "data:image/webp"]
    assert "step 400" in images[0]["alt"] and "step 200" in images[2]["alt"]
    stills = page.all("source")
    assert len(stills) == 2 and all("reduced-motion" in a["media"] for a in stills)


def test_probe_table_prints_losers_and_marks_the_best(full):
    text, page = read(full)
    table = text[text.index('<table class="probes">') : text.index("</table>")]
    assert "<b>45.7 ± 1.0</b>" in table and "<b>94.5 ± 1.0</b>" in table
    assert "91.0 ± 1.0" in table and "<b>91.0 ± 1.0</b>" not in table
    assert re.findall(r'scope="row">([^<]+)', table) == ["trained", "random init", "raw pixels"]
    assert "200 labels" in table and "2,000 labels" in table and table.count("not run") == 2
    assert "480 test videos" in page.text and "Chance: 12.5 %" in page.text and "over 3 seeds" in page.text
    assert "in 2 of 3 columns. Not in: Attentive with 2,000 labels." in page.text
    assert "lr=0.01" in page.text


def test_probe_rows_can_be_given(tmp_path):
    _, page = read(tmp_path, probe_rows=[probe("trained", "knn", 10, 0.5) | {"seeds": 1}])
    assert "50.0" in page.text and "±" not in page.text and "one seed" in page.text


def test_empty_folder(tmp_path):
    _, page = read(tmp_path)
    assert "Not enough steps" in page.text and "No metrics yet" in page.text and "Probes" not in page.text


def test_unreadable_files_are_named_and_the_rest_is_shown(tmp_path):
    write_metrics(tmp_path, [{"step": 1, "loss": 0.5}])
    (tmp_path / "probes.json").write_text("{oops")
    (tmp_path / "config.json").write_text("[1]")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "masks_00000001.png").write_bytes(b"not a picture")
    (tmp_path / "pictures" / "pca_00000001.webp").write_bytes(b"")
    _, page = read(tmp_path)
    for words in ("probes.json could not be read", "config.json was left out: it holds no object",
                  "masks_00000001.png cannot be shown", "pca_00000001.webp cannot be shown", "0.5"):  # fmt: skip
        assert words in page.text, words


def test_a_constant_and_a_single_point_can_be_drawn(tmp_path):
    write_metrics(tmp_path, [{"step": 5, "loss": 0.0, "lr": 0.0, "grad_norm": 1e-9, "mfu": math.inf}])
    _, page = read(tmp_path)
    assert len([a for a in page.all("svg") if a.get("role") == "img"]) == 3


# --------------------------------------------------------------------------------------------------------- verdict


@pytest.mark.parametrize(
    ("records", "state", "word", "words"),
    [
        ([], "open", "Not enough steps", "0 of the 2"),
        ([health(100)], "open", "Not enough steps", "1 of the 2"),
        ([health(100), health(200)], "good", "Healthy", "beats the better baseline: loss 0.4, copy nearest 0.6"),
        ([health(100), health(200, loss=0.65)], "good", "Healthy", "does not beat the better baseline"),
        ([health(100), health(200, rank=4.7), health(300, rank=3)], "bad", "Collapsed", "alarm since step 200"),
        ([health(100), health(200, std=0.049)], "bad", "Collapsed", "feature std 0.049"),
        ([health(100, rank=2), health(200)], "good", "Healthy", "RankMe 50"),
        ([health(100), health(200, rank=math.nan)], "bad", "Collapsed", "RankMe nan"),
        ([health(100), {"step": 150, "loss": math.inf}], "bad", "Diverged", "the loss is inf at step 150"),
    ],
)
def test_verdict(records, state, word, words):
    found = report.verdict(records)
    assert found[:2] == (state, word) and words in found[2]


def test_verdict_and_the_warning_of_the_loop_agree():
    from vjepa_jax.training.health import warning

    for rank, std in ((50.0, 0.5), (4.7, 0.5), (4.9, 0.5), (50.0, 0.049), (50.0, 0.051)):
        record = health(200, rank=rank, std=std)
        assert (report.verdict([health(100), record])[1] == "Collapsed") == (warning(record) is not None)


# ---------------------------------------------------------------------------------------------------------- charts


def test_numbers_are_short_and_exact():
    values = (0.51234, 1234567, 0.000123, 12345.6, 9999.99, 0.0, -0.25, 150.0, 1e-6)
    assert [charts.number(v) for v in values] == [
        "0.5123", "1,234,567", "1.23e-4", "12,346", "10000", "0", "-0.25", "150", "1e-6"
    ]  # fmt: skip
    assert charts.number(0.99925, 6) == "0.99925"
    assert [charts.short(v) for v in (250, 20000, 3840000, 6e-4)] == ["250", "20k", "3.84M", "6e-4"]


def test_merged_points_keep_mean_and_extremes():
    records = [{"step": s, "loss": float(s % 10)} for s in range(1, 2401)] + [{"step": 2500, "lr": 1.0}]
    one = charts.line(records, "loss", "loss")
    assert len(one.steps) == 240 and one.steps[-1] == 2400
    assert set(one.values) == {4.5} and set(one.low) == {0.0} and set(one.high) == {9.0} and one.last == 0.0


def test_lines_go_where_the_values_are():
    chart = charts.Chart("T", (("a", "a", False),), scale="either")
    drawing = charts.render(
        chart, [{"step": 0, "a": 1.0}, {"step": 50, "a": 10.0}, {"step": 100, "a": 100.0}], (0, 100)
    )
    linear, log = re.findall(r'class="line s1" d="M([^"]+)"', drawing)
    for path, is_log in ((linear, False), (log, True)):
        (x0, y0), (x1, y1), (x2, y2) = (map(float, p.split()) for p in path.split("L"))
        assert x0 == charts.LEFT and x2 == charts.WIDTH - charts.RIGHT and x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
        assert charts.TOP <= y2 < y1 < y0 <= charts.HEIGHT - charts.BOTTOM
        share = (y0 - y1) / (y0 - y2)
        assert share == pytest.approx(0.5 if is_log else 9 / 99, abs=0.01)
    assert 'aria-pressed="false"' in drawing
    assert "<button" not in charts.render(chart, [{"step": 0, "a": -1.0}, {"step": 1, "a": 1.0}], (0, 1))
