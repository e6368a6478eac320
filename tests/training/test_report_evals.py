"""The evaluations of a report."""

import json

from vjepa_jax.evals.scores import score

from .test_report import EVIL, read, write_metrics


def leave(workdir, name="suite", **changes):
    rows = [
        score("world", "accuracy", "trained", [75.0], count=40, interval=(70.0, 80.0), chance=50.0),
        score("world", "accuracy", "random init", [50.0, 52.0], count=40, chance=50.0, note=EVIL),
        score("world", "jitter", "trained", [0.125], count=40, unit="", higher_is_better=False),
    ]
    part = {"protocol": "surprise", "config": {"pairs": 40}, "hash": "abc123", "seconds": 3.0, "cut": False}
    record = {"name": name, "command": "vjepa eval --config x", "step": 1200, "version": "0.1.0", "date": "today"}
    folder = workdir / "evals" / name
    folder.mkdir(parents=True)
    (folder / "scores.json").write_text(json.dumps(record | {"protocols": [part | {"scores": rows} | changes]}))


def test_scores_stand_beside_those_of_the_controls(tmp_path):
    write_metrics(tmp_path, [{"step": 1, "loss": 0.5}])
    leave(tmp_path)
    text, page = read(tmp_path)
    assert EVIL not in text and "evaluations" in page.ids
    assert "75.0 70.0 to 80.0 51.0" in page.text and "accuracy, % " in page.text
    assert "jitter (lower is better)" in page.text and "0.12" in page.text
    assert "step 1,200" in page.text and "vjepa eval --config x" in page.text and "pairs=40" in page.text


def test_long_tables_are_folded_after_ten_rows(tmp_path):
    rows = [score("world", f"metric {i}", "trained", [float(i)], count=4) for i in range(13)]
    leave(tmp_path, scores=rows)
    text, page = read(tmp_path)
    assert "3 more rows of world" in page.text and text.index("metric 9") < text.index("3 more rows") < text.index(
        "metric 10"
    )
    leave(tmp_path, name="short", scores=rows[:12])
    assert read(tmp_path)[0].count("more rows of world") == 1


def test_what_was_cut_off_and_what_cannot_be_read_is_said(tmp_path):
    leave(tmp_path, cut=True, scores=[])
    (tmp_path / "evals" / "broken").mkdir()
    (tmp_path / "evals" / "broken" / "scores.json").write_text("{")
    _, page = read(tmp_path)
    assert "cut off when its time was up" in page.text and "No score." in page.text
    assert "evals/broken/scores.json could not be read" in page.text


def test_metrics_of_evaluations_have_charts_of_their_own(tmp_path):
    key = "eval/surprise/relative_accuracy,_context_of_4_frames"
    write_metrics(tmp_path, [{"step": s, "loss": 0.5, key: 50.0 + s} for s in (1, 2, 3)])
    _, page = read(tmp_path)
    assert "surprise: relative accuracy, context of 4 frames" in page.text
    assert "evaluations-during-training" in page.ids and "other-metrics" not in page.ids
