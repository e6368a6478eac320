"""From run folders and published numbers to Markdown, HTML and LaTeX."""

import dataclasses
import html.parser
import json
import re

import pytest

from vjepa_jax import cli
from vjepa_jax.config import ConfigError, from_config_dict, to_dict
from vjepa_jax.evals import results, table_formats, table_plan, tables
from vjepa_jax.evals.published import Published
from vjepa_jax.evals.scores import score
from vjepa_jax.evals.tables import Column, Table
from vjepa_jax.parallel.chips import Machine

PROTOCOL = "frozen"
TABLE = Table(
    "A & B",
    (
        Column("SSv2 top-1", "ssv2", "top-1", (("ssv2", "top-1", PROTOCOL),)),
        Column("depth RMSE", "nyuv2", "RMSE", (("nyuv2", "RMSE", "linear"),), unit="m", lower_is_better=True),
    ),
)
NUMBERS = (
    Published("V-JEPA 2", "ViT-L", "ssv2", "top-1", PROTOCOL, "73.7", "%", "paper A", "paper", ""),
    Published("V-JEPA 2", "ViT-L", "ssv2", "top-1", "fine-tuned", "99.9", "%", "paper A", "paper", ""),
    Published("DINOv2", "ViT-g", "nyuv2", "RMSE", "linear", "0.372", "m", "paper_B", "second-hand", "by others"),
    Published("OmniMAE", "ViT-L", "ssv2", "top-1", PROTOCOL, "60.6", "%", "memory", "recall", ""),
)


def rows(value=71.25, encoder="trained", **more):
    options = {"count": 100, "interval": (70.0, 72.5), "chance": 0.575, "note": "lr=0.001"} | more
    return score("ssv2", "top-1", encoder, [value], **options)


def run_folder(tmp_path, tiny_config, name="first", protocol="aaaa", step=7, scores=None, variant="vit_large"):
    """A run of ViT-L as V-JEPA 2 with one file of scores, in the form of `vjepa eval`."""
    folder = tmp_path / name
    (folder / "evals" / "ssv2").mkdir(parents=True)
    config = to_dict(from_config_dict(tiny_config()))
    config["model"] |= {"variant": variant, "patch_size": 16, "embed_dim": None, "depth": None, "num_heads": None}
    config["data"]["resolution"] = 256
    config["masks"]["groups"] = [group | {"context": None, "target": None} for group in config["masks"]["groups"]]
    (folder / "config.json").write_text(json.dumps(config))
    scores = [rows(), rows(5.0, "random init")] if scores is None else scores
    part = {"protocol": "classification", "hash": protocol, "scores": scores}
    record = {"command": f"vjepa eval --checkpoint {name}", "step": step, "version": "0.1.0", "protocols": [part]}
    (folder / "evals" / "ssv2" / "scores.json").write_text(json.dumps(record))
    return folder


def collected(*folders):
    problems = []
    found = results.collect(map(str, folders), problems)
    return [r for r in found if r.score["benchmark"] != results.TRAINING], problems


def test_a_cell_holds_ours_and_published_with_their_sources(tmp_path, tiny_config):
    found, problems = collected(run_folder(tmp_path, tiny_config))
    assert not problems and found[0].protocol == "aaaa" and found[0].step == 7
    grid = tables.assemble("T", TABLE, found, NUMBERS)
    assert [row[:3] for row in grid.rows] == [
        ("V-JEPA 2", "ViT-L", ""),
        ("V-JEPA 2", "ViT-L", "random init"),
        ("DINOv2", "ViT-g", ""),
    ]
    text = table_formats.as_markdown([grid])
    assert "71.2 [70.0, 72.5] (a) / 73.7 (1)" in text and "5.0 [70.0, 72.5] (a)" in text
    assert "not run / 0.372 (2)" in text and "not run / -" in text
    assert "(a) run first, evals/ssv2/scores.json; step 7; 1 seed, 100 scored; protocol aaaa; chance 0.575" in text
    assert "(1) paper A; frozen" in text and "(2) paper_B; linear; by others; second-hand" in text
    assert "vjepa eval --checkpoint first   (step 7, vjepa_jax 0.1.0)" in text
    assert "99.9" not in text  # another protocol
    assert "lower is better" in text and not grid.warnings


def test_what_was_never_checked_is_printed_when_asked_for_and_says_so():
    plain = table_formats.as_markdown([tables.assemble("T", TABLE, [], NUMBERS)])
    asked = table_formats.as_markdown([tables.assemble("T", TABLE, [], NUMBERS, recall=True)])
    assert "60.6" not in plain and "60.6" in asked and "memory; frozen; not checked against the source" in asked


def test_different_settings_in_a_column_are_named_and_kept_apart(tmp_path, tiny_config):
    a = run_folder(tmp_path, tiny_config, "first", "aaaa", scores=[rows()])
    b = run_folder(tmp_path, tiny_config, "second", "bbbb", scores=[rows(60.0)])
    grid = tables.assemble("T", TABLE, collected(a, b)[0], NUMBERS)
    (warning,) = grid.warnings
    assert warning == (
        "SSv2 top-1: measured with different settings, not to be compared with each other (aaaa: a; bbbb: b)"
    )
    text = table_formats.as_markdown([grid])
    assert "71.2 [70.0, 72.5] (a); 60.0 [70.0, 72.5] (b) / 73.7 (1)" in text and warning in text
    same = run_folder(tmp_path, tiny_config, "third", "aaaa", scores=[rows(60.0)])
    assert not tables.assemble("T", TABLE, collected(a, same)[0], NUMBERS).warnings


def test_of_two_steps_of_a_run_the_last_stands(tmp_path, tiny_config):
    folder = run_folder(tmp_path, tiny_config)
    (folder / "evals" / "later").mkdir()
    record = {"command": "c", "step": 9, "version": "0.1.0", "protocol": "aaaa", "scores": [rows(80.0)]}
    (folder / "evals" / "later" / "scores.json").write_text(json.dumps(record))
    grid = tables.assemble("T", TABLE, collected(folder)[0], NUMBERS)
    assert [e.text for e in grid.rows[0][3][0].ours] == ["80.0 [70.0, 72.5]"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("{", "is left out: it is damaged or of another shape (JSONDecodeError"),
        ("[1]", "is left out: it is damaged or of another shape (AttributeError"),
        ('{"command": "c"}', "is left out: it is damaged or of another shape (KeyError: 'scores')"),
        ('{"scores": [{"benchmark": "ssv2", "value": 3}]}', "a score is left out: its metric is None"),
        ('{"scores": [7]}', "a score is left out: 7 is not a group of keys"),
    ],
)
def test_a_damaged_file_is_one_line_and_the_rest_is_read(tmp_path, tiny_config, content, line):
    folder = run_folder(tmp_path, tiny_config)
    (folder / "evals" / "bad").mkdir()
    (folder / "evals" / "bad" / "scores.json").write_text(content)
    found, problems = collected(folder)
    assert len(found) == 2 and len(problems) == 1 and line in problems[0] and "bad/scores.json" in problems[0]


def test_folders_that_are_no_runs_are_one_line(tmp_path, tiny_config):
    with pytest.raises(ConfigError, match="nowhere is not a folder: give run folders"):
        results.collect(["nowhere"], [])
    with pytest.raises(ConfigError, match=r"holds no run: a run folder has config\.json"):
        results.collect([str(tmp_path)], [])
    run_folder(tmp_path, tiny_config)
    assert len(collected(tmp_path)[0]) == 2  # a folder of runs
    (tmp_path / "first" / "config.json").write_text("{}")
    found, problems = collected(tmp_path)
    assert found[0].model == "unknown model" and "the model is unknown, config.json cannot be read" in problems[0]


def test_probes_and_the_log_of_a_run_become_scores(tmp_path, tiny_config):
    folder = run_folder(tmp_path, tiny_config, scores=[])
    row = {"encoder": "trained", "probe": "knn", "num_labels": 1000, "selected": "leave-one-out", "chance": 25.0}
    (folder / "probes.json").write_text(json.dumps([row | {"num_test": 50, "correct": [40, 42]}]))
    lines = [{"step": s, "clips_per_s": v, "rankme": 3.5} for s, v in ((1, 1.0), (2, 8.0), (3, 10.0), (4, 9.0))]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = {r.score["metric"]: r for r in results.collect([str(folder)], [])}
    probe = found["knn, 1,000 labels, leave-one-out"].score
    assert probe["value"] == 82.0 and probe["seeds"] == 2 and probe["low"] < 82.0 < probe["high"]
    assert (
        found["clips a second"].score["value"] == 9.0 and found["clips a second"].step == 4
    )  # not the first, slow one
    assert found["RankMe"].score["value"] == 3.5 and found["GFLOP a training clip"].score["value"] > 100


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, ("V-JEPA 2", "ViT-L")),
        ({"position": "sincos", "variant": "vit_huge"}, ("V-JEPA 1", "ViT-H")),
        ({"variant": "vit_giant_xformers"}, ("V-JEPA 2", "ViT-g")),
        ({"levels": [5, 11, 17, 23]}, ("V-JEPA 2.1", "ViT-L, scratch")),
        ({"variant": "vit_gigantic_xformers", "levels": [11, 23, 37, 47]}, ("V-JEPA 2.1", "ViT-G")),
        ({"variant": "vit_micro", "patch_size": 8}, ("V-JEPA 2", "ViT-micro/8")),
        ({"depth": 2}, ("V-JEPA 2", "ViT-L (changed)")),
    ],
)
def test_models_are_called_as_the_published_tables_call_them(tiny_config, changes, name):
    model = {"variant": "vit_large", "patch_size": 16, "position": "rope_tiled"} | changes
    config = tiny_config(data={"resolution": 256}, masks={"groups": [{"num_blocks": 2}]})
    run = from_config_dict(config | {"model": model})
    assert results.name_model(run) == name
    if not changes:
        large = dataclasses.replace(run, data=dataclasses.replace(run.data, resolution=384))
        assert results.name_model(large) == ("V-JEPA 2", "ViT-L 384")


def grid_with_odd_names(tmp_path, tiny_config):
    odd = [rows(note='<b>50 % & "more"_#{x}</b> | y')]
    return tables.assemble("T", TABLE, collected(run_folder(tmp_path, tiny_config, scores=odd))[0], NUMBERS)


def test_html_is_one_page_that_loads_nothing_and_escapes(tmp_path, tiny_config):
    page = table_formats.as_html([grid_with_odd_names(tmp_path, tiny_config)])
    assert "&lt;b&gt;50 % &amp; &quot;more&quot;_#{x}&lt;/b&gt;" in page and "A &amp; B" in page
    assert not re.search(r"(src|href)=\"[^#]", page) and "default-src 'none'" in page
    depth = []

    class Balance(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "link", "br"):
                depth.append(tag)

        def handle_endtag(self, tag):
            assert depth.pop() == tag

    Balance().feed(page)
    assert not depth and page.count("<tr") == 3  # head, V-JEPA 2, DINOv2


def test_latex_escapes_and_every_row_has_all_columns(tmp_path, tiny_config):
    text = table_formats.as_latex([grid_with_odd_names(tmp_path, tiny_config)])
    assert r"\textless{}b\textgreater{}50 \% \& ''more''\_\#\{x\}\textless{}/b\textgreater{}" in text
    assert r"\caption{A \& B}" in text and r"\begin{tabular}{lcc}" in text and text.count(r"\toprule") == 1
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 3 and all(len(re.findall(r"(?<!\\)&", line)) == 2 for line in body)
    assert r"\textbf{71.2 [70.0, 72.5]\textsuperscript{a}} / 73.7\textsuperscript{1}" in text
    for opened, closed in (("{", "}"),):
        plain = re.sub(r"\\[{}]", "", "\n".join(line for line in text.splitlines() if not line.startswith("%")))
        assert plain.count(opened) == plain.count(closed)


def test_markdown_cells_do_not_break_the_table():
    table = Table("x", (Column("a|b", "ssv2", "top-1", (("ssv2", "top-1", PROTOCOL),)),))
    lines = table_formats.as_markdown([tables.assemble("T", table, [], NUMBERS)]).splitlines()
    counts = {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")}
    assert counts == {4}


def test_scores_that_no_table_shows_get_their_own(tmp_path, tiny_config):
    odd = score("my [odd]* set", "acc?", "trained", [0.5], count=3, unit="")
    found, _ = collected(run_folder(tmp_path, tiny_config, scores=[rows(), odd]))
    many = [score("wide", f"m{i}", "trained", [1.0], count=3) for i in range(8)]
    wide = [tables.results_lib.Result("r", "V-JEPA 2", "ViT-L", row, "s") for row in many]
    assert [len(t.columns) for t in tables.others([TABLE], [*found, *wide])] == [1, 6, 2]
    (rest,) = tables.others([TABLE], found)
    assert rest.title == "my [odd]* set" and [c.title for c in rest.columns] == ["acc?"]
    grid = tables.assemble("X1", rest, found)
    assert [e.text for e in grid.rows[0][3][0].ours] == ["0.5"]


@pytest.mark.parametrize("name", ["T1", "T2", "T3", "T4", "T5", "T6", "T7"])
def test_the_tables_of_experiments_load_and_their_published_numbers_exist(name, repo, monkeypatch):
    monkeypatch.chdir(repo)
    found, table = tables.load_table(name)
    known = {(n.benchmark, n.metric, n.protocol) for n in tables.published()}
    assert found == name and table.columns
    for column in table.columns:
        assert set(column.published) <= known, column.title
        assert not column.config or column.config.startswith("experiments/evals/")
    text = (repo / "experiments" / "tables" / f"{name}.py").read_text()
    assert all(line in text for line in ("COMMAND:", "HARDWARE:", "PUBLISHED NUMBER:", "MEASURED:"))


def test_the_command_writes_all_three_forms(tmp_path, tiny_config, capsys, repo, monkeypatch):
    monkeypatch.chdir(repo)
    run_folder(tmp_path / "runs", tiny_config, scores=[])
    score_of = lambda metric: score("ssv2", metric, "trained", [71.25], count=9, interval=(70.0, 72.5))
    named = run_folder(tmp_path / "runs", tiny_config, "named", scores=[score_of("top-1, best head on test")])
    (named / "evals" / "broken").mkdir()
    (named / "evals" / "broken" / "scores.json").write_text("{")
    out = tmp_path / "tables"
    assert cli.main(["tables", str(tmp_path / "runs"), "--workdir", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "note: " in printed and "broken/scores.json is left out" in printed
    for suffix in ("md", "html", "tex"):
        text = (out / f"tables.{suffix}").read_text()
        assert "71.2 [70.0, 72.5]" in text and "73.7" in text and "2506.09985" in text
    assert cli.main(["tables", "--table", "T9"]) == cli.USAGE_ERROR
    assert "no table 'T9': there is T1, T2" in capsys.readouterr().err


def test_the_plan_counts_what_a_column_costs(repo, monkeypatch, capsys):
    monkeypatch.chdir(repo)
    columns = (
        Column("once", "a", "m", data=("ssv2",), work="features", clips=(2.0, 3.0), frames=16, resolution=256),
        Column("later", "b", "m", data=("coin",), work="unknown"),
        Column("free", "c", "m", data=("world",), work="none"),
    )
    table = Table("plan", columns, (("V-JEPA 2 ViT-L", "vitl"),))
    once, later, free = table_plan.plan(table)
    # ViT-L on 2,048 tokens: 24 blocks of 24 N D^2 + 4 N^2 D, and the patches of 1,536 values
    forward = 24 * (24 * 2048 * 1024**2 + 4 * 2048**2 * 1024) + 2 * 2048 * 1536 * 1024
    assert once.flops == pytest.approx((2 * 168_913 + 3 * 24_777) * forward)
    assert later.flops is None and free.flops == 0.0
    text = table_plan.describe("P", table, Machine(4, "h100", 0.5))
    hours = once.flops / (0.5 * 989e12) / 3600
    assert f"in all {hours:,.0f} device-hours, {hours / 4:,.0f} hours on 4; 1 of 3 cells are not counted" in text
    assert "h100 at 50% MFU assumed" in text and "disk: 19.4 GB, and 1 of unknown size" in text
    assert cli.main(["tables", "--plan", "T1", "--chip", "v5p"]) == 0
    printed = capsys.readouterr().out
    assert "vjepa eval --config experiments/evals/ssv2.py:vitg_384 --checkpoint runs/vitg_384" in printed
    assert "--config experiments/evals/finetune.py:ucf101 --checkpoint runs/vitl\n" in printed
    assert "v5p at 35% MFU" in printed and "168,913" in printed


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"work": "guess"}, "work='guess' is not one of probe, finetune, segmentation, depth, features, none, unknown"),
        ({"data": ("sssv2",), "work": "features"}, "no data set 'sssv2' in datasets.csv; did you mean 'ssv2'"),
    ],
)
def test_a_plan_that_cannot_be_made_is_one_line(change, line):
    table = Table("plan", (Column("x", "a", "m", **change),), (("V-JEPA 2 ViT-L", "vitl"),))
    with pytest.raises(ConfigError, match=re.escape(line)):
        table_plan.plan(table)
    with pytest.raises(ConfigError, match="no model 'V-JEPA 2 ViT-X' in the family"):
        table_plan.plan(Table("plan", (Column("x", "a", "m"),), (("V-JEPA 2 ViT-X", ""),)))
