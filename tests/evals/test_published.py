"""The list of published numbers: some typed by hand from the papers' tables, every one with a source."""

import pytest

from vjepa_jax.evals.published import CHECKED, datasets, published

FROZEN = "frozen, attentive 4 blocks, best head on val"
BY_HAND = [
    ("V-JEPA 2", "ViT-L", "ssv2", "top-1", FROZEN, "73.7", "2506.09985"),
    ("V-JEPA 2", "ViT-g 384", "ssv2", "top-1", FROZEN, "77.3", "2506.09985"),
    ("V-JEPA 2", "ViT-g 384", "k400", "top-1", FROZEN, "87.3", "2506.09985"),
    ("V-JEPA 2", "ViT-H", "coin", "top-1", FROZEN, "87.9", "2506.09985"),
    ("V-JEPA 2", "ViT-g", "diving48", "top-1", FROZEN, "90.1", "2506.09985"),
    ("V-JEPA 2", "ViT-g", "ek100", "noun recall@5", FROZEN, "55.7", "2506.09985"),
    ("V-JEPA 2", "ViT-L", "ek100", "action recall@5", FROZEN, "32.7", "2506.09985"),
    ("V-JEPA 1", "ViT-H", "jester", "top-1", FROZEN, "97.7", "2506.09985"),
    ("V-JEPA 1", "ViT-H 384", "ssv2", "top-1", "frozen, attentive 1 block", "72.2", "facebookresearch/jepa"),
    ("DINOv2", "ViT-g", "imagenet", "top-1", FROZEN, "86.1", "2506.09985"),
    ("InternVideo2", "s2-1B", "k400", "top-1", FROZEN, "89.4", "2506.09985"),
    ("V-JEPA 2.1", "ViT-G", "nyuv2", "RMSE", "linear depth probe", "0.307", "2603.14482"),
    ("V-JEPA 2.1", "ViT-G", "ek100", "action recall@5", FROZEN, "40.8", "2603.14482"),
    ("V-JEPA 2.1", "ViT-L", "davis2017", "J&F", "label propagation, V-JEPA 2.1", "68.7", "2603.14482"),
    ("V-JEPA 2.1", "ViT-G", "ego4d_sta", "mAP-All", "StillFast head, v2", "7.71", "2603.14482"),
    ("DINOv3", "ViT-L", "davis2017", "J&F", "label propagation, as DINOv3", "79.9", "dinov3"),
    ("ActionFormer on I3D", "", "thumos14", "mAP@0.3:0.7", "ActionFormer", "66.83", "ActionFormer"),
    ("JEPA-WM", "", "planning, Push-T", "success", "JEPA-WMs benchmark, CEM", "70.2", "2512.24497"),
]


@pytest.mark.parametrize("row", BY_HAND, ids=lambda row: f"{row[0]} {row[1]} {row[2]}")
def test_numbers_are_those_of_the_papers(row):
    found = [
        n for n in published() if (n.model, n.size, n.benchmark, n.metric, n.protocol) == row[:5] and row[6] in n.source
    ]
    assert [n.value for n in found] == [row[5]]


def test_every_number_has_a_source_and_stands_once():
    rows = published()
    assert len(rows) > 350
    for n in rows:
        assert n.source and n.protocol and n.model and n.benchmark and n.metric and n.checked in CHECKED, n
        assert float(n.value) >= 0.0 and (n.unit != "%" or float(n.value) <= 100.0), n
    keys = [(n.model, n.size, n.benchmark, n.metric, n.protocol) for n in rows]
    assert len(set(keys)) == len(keys)


def test_averages_are_those_of_their_six_benchmarks():
    """The papers' own arithmetic finds a wrong digit: an average of six numbers, rounded to a tenth."""
    names = ("ssv2", "diving48", "jester", "k400", "coin", "imagenet")
    of = {(n.model, n.size, n.benchmark): float(n.value) for n in published() if n.protocol == FROZEN}
    averages = {key[:2]: value for key, value in of.items() if key[2].startswith("average of")}
    assert len(averages) == 9
    for pair, average in averages.items():
        assert sum(of[(*pair, name)] for name in names) / 6 == pytest.approx(average, abs=0.101), pair


def test_data_sets():
    sets = datasets()
    assert sets["ssv2"].train == 168_913 and sets["ssv2"].test == 24_777 and sets["ssv2"].gigabytes == 19.4
    assert sets["coin"].gigabytes == 0.0  # not known
    assert all(d.title and d.where and d.licence for d in sets.values())


def test_the_wheel_holds_both_files(repo):
    """setup.py ships what the package reads."""
    assert 'package_data={"vjepa_jax.evals": ["*.csv"]}' in (repo / "setup.py").read_text()
    assert {p.name for p in (repo / "vjepa_jax" / "evals").glob("*.csv")} == {"published.csv", "datasets.csv"}
