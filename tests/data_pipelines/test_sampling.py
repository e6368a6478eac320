"""The order of draws: shares, epochs, no repeats, and that it looks random."""

import dataclasses
import zlib

import grain
import numpy as np
import pytest

from data_pipelines import pipeline, sampling
from data_pipelines.sources import DataError
from vjepa_jax.config import ConfigError, DataConfig, from_config_dict

WINDOW = 10_000  # draws over which shares are looked at


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """A source as far as the order of draws is concerned."""

    num_videos: int
    clusters: np.ndarray | None = None
    cluster_names: tuple[str, ...] = ()
    path: str = "videos.arrow"

    def __len__(self):
        return self.num_videos


def clustered(counts, names=()):
    return Rows(sum(counts), np.repeat(np.arange(len(counts), dtype=np.int32), counts), tuple(names))


def order_of(source, weights, seed=1, **data):
    return sampling.source_order(source, DataConfig(path="", **data), seed, weights)


def by_number(weights):
    return {str(i): weight for i, weight in enumerate(weights)}


def bounds_of(weights):
    return order_of(clustered([1] * len(weights)), by_number(weights)).clusters.bounds


def deviations(chosen, shares):
    """By how many draws the share of each item is missed, at most, over all windows of WINDOW draws."""
    worst = []
    for item, share in enumerate(shares):
        had = np.concatenate([[0], np.cumsum(chosen == item)])
        worst.append(np.abs(had[WINDOW:] - had[:-WINDOW] - WINDOW * share).max())
    return np.array(worst)


def peak(hits, share):
    """The highest line of the spectrum of a 0-1 sequence over its mean: some 10 for a random one, of any length."""
    spectrum = np.abs(np.fft.rfft(hits - share)) ** 2
    return spectrum.max() / (len(hits) * share * (1 - share))


def test_the_default_order_stays_as_it_is():
    """Numbers from the grain datasets of which pipeline.py was made before it had other orders."""
    keys, orders = pipeline.draws(
        DataConfig(path="", weights=(0.7, 0.3), clips_per_video=2), [Rows(1000), clustered([100, 200])], 5
    )
    assert orders == [None, None]
    first = [keys[i] for i in range(2000)]
    assert first[:5] == [(0, 0, 1558), (1, 0, 592), (2, 0, 1839), (3, 1, 580), (4, 0, 1120)]
    assert zlib.crc32(np.array(first, np.int64).tobytes()) == 2954058694
    assert keys[2600] == (2600, 1, 117)


@pytest.mark.parametrize("weights", [(0.7, 0.125, 0.125, 0.05), (0.056, 0.188, 0.318, 0.188, 0.250)])
def test_sources_have_their_shares_in_any_window(weights):
    mixed = grain.MapDataset.mix(
        [grain.MapDataset.range(10**9).map(lambda _, i=i: i) for i in range(len(weights))], weights
    )
    for start in (0, 987_654_321):
        chosen = np.array([mixed[start + i] for i in range(WINDOW + 2000)])
        assert deviations(chosen, np.array(weights) / sum(weights)).max() < 3


@pytest.mark.parametrize("start", [0, 3 * 10**9])
def test_clusters_have_their_shares_in_any_window_and_no_rhythm(start):
    weights = np.array([0.3, 0.1, 0.2, 0.15, 0.05, *[0.2 / 60] * 60])
    bounds = bounds_of(weights)
    chosen = np.array([sampling.choose(bounds, start + i, 7)[0] for i in range(WINDOW + 2**13)])
    assert deviations(chosen, weights).max() < 4
    for item in range(12):
        assert peak(chosen == item, weights[item]) < 25


def test_what_the_statistics_find():
    """Independent draws miss their shares, and even spacing has a rhythm."""
    places = np.arange(WINDOW + 2**13)
    independent = np.random.default_rng(0).random(len(places)) < 0.1
    assert deviations(independent, [1 - 0.1, 0.1])[1] > 20 and peak(independent, 0.1) < 25
    even = np.floor((places + 1) * 0.1) > np.floor(places * 0.1)
    assert deviations(even, [1 - 0.1, 0.1])[1] <= 1 and peak(even, 0.1) > 1000


def test_a_cluster_knows_how_often_it_was_drawn():
    """And no window holds more draws of it than foretold."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        bounds, window = bounds_of(rng.pareto(1.0, rng.integers(1, 9)) + 0.01), int(rng.integers(1, 40))
        foretold, had, times = dict(sampling._leaves(bounds, window)), {}, []
        for draw in range(600):
            cluster, turn, most = sampling.choose(bounds, draw, 3, window)
            assert (turn, most) == (had.get(cluster, 0), foretold[cluster])
            had[cluster] = turn + 1
            times.append(cluster)
            recent = times[-window:]
            assert all(recent.count(c) <= foretold[c] for c in set(recent))


def test_many_clusters():
    """As many as the curated videos of V-JEPA 2 have."""
    rng = np.random.default_rng(0)
    weights = rng.pareto(1.2, 210_000) + 0.01
    source = Rows(420_000, np.repeat(np.arange(210_000, dtype=np.int32), 2))
    order = order_of(source, by_number(weights))
    assert len(order.clusters.counts) == 210_000
    rows = np.array([order(10**8 + i) for i in range(4000)])
    heavy = np.argsort(-weights)[:20]
    np.testing.assert_allclose((rows // 2 == heavy[:, None]).sum(1), 4000 * weights[heavy] / weights.sum(), atol=4)


@pytest.mark.parametrize("clips", [1, 3])
def test_epochs_within_a_cluster(clips):
    counts = [1, 6, 4, 9]
    order = order_of(clustered(counts), by_number([0.1, 0.4, 0.3, 0.2]), clips_per_video=clips)
    drawn = np.array([order(i) for i in range(2000)])
    ends = np.cumsum(counts)
    for count, end in zip(counts, ends, strict=True):
        own = drawn[(drawn // clips >= end - count) & (drawn // clips < end)] - (end - count) * clips
        epochs = own[: len(own) // (count * clips) * count * clips].reshape(-1, count * clips)
        np.testing.assert_array_equal(np.sort(epochs), np.broadcast_to(np.arange(count * clips), epochs.shape))
        assert count * clips < 6 or len({tuple(epoch) for epoch in epochs.tolist()}) > 0.9 * len(epochs)


def test_shuffles_are_even():
    """Every permutation of 4 as often as the others (chi-square of 23 degrees of freedom), none left out."""
    seen = [tuple(sampling._shuffle(i, 4, 11, epoch) for i in range(4)) for epoch in range(2400)]
    counts = np.unique(np.array(seen), axis=0, return_counts=True)[1]
    assert len(counts) == 24 and ((counts - 100) ** 2 / 100).sum() < 60
    for count in (1, 2, 17, 1000):
        assert sorted(sampling._shuffle(i, count, 5) for i in range(count)) == list(range(count))


def assert_no_repeats(videos, window):
    last = {}
    for draw, video in enumerate(videos):
        assert draw - last.get(video, -window) >= window
        last[video] = draw


def test_no_video_twice_in_a_window():
    rng = np.random.default_rng(0)
    for _ in range(60):
        count, clips = int(rng.integers(2, 40)), int(rng.integers(1, 4))
        window = int(rng.integers(2, count + 1))
        order = order_of(Rows(count), None, int(rng.integers(2**32)), clips_per_video=clips, no_repeat_window=window)
        drawn = np.array([order(i) for i in range(4 * count * clips)])
        assert_no_repeats((drawn // clips).tolist(), window)
        epochs = np.sort(drawn.reshape(4, -1))  # each clip of each video once
        np.testing.assert_array_equal(epochs, np.broadcast_to(np.arange(count * clips), epochs.shape))


def test_a_window_leaves_the_order_free():
    """Any video comes at any place of an epoch, but for those so near to its ends that the window concerns them."""
    order = order_of(Rows(12), None, no_repeat_window=2)
    epochs = np.array([order(i) for i in range(12 * 400)]).reshape(400, 12)
    counts = np.array([np.bincount(column, minlength=12) for column in epochs.T[1:-1]])
    assert counts.min() > 10 and counts.max() < 80  # 33 on average
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 400


def test_no_video_twice_in_a_window_with_clusters():
    weights, counts = [0.5, 0.3, 0.15, 0.05], [40, 25, 15, 7]
    order = order_of(clustered(counts), by_number(weights), clips_per_video=2, no_repeat_window=25)
    drawn = np.array([order(i) for i in range(3000)])
    assert_no_repeats((drawn // 2).tolist(), 25)
    free = order_of(clustered(counts), by_number(weights), clips_per_video=2)
    with pytest.raises(AssertionError):
        assert_no_repeats([free(i) // 2 for i in range(3000)], 25)


def test_rows_in_any_order():
    """A manifest need not be sorted by cluster."""
    mixed = np.array([2, 0, -1, 1, 0, 2, 2, -1, 0, 1], np.int32)
    weights = {"zero": 0.5, "one": 0.0, "two": 0.3, "-1": 0.2}
    order = order_of(Rows(10, mixed, ("zero", "one", "two")), weights)
    shares = np.bincount(mixed[[order(i) for i in range(2000)]] + 1, minlength=4) / 2000
    np.testing.assert_allclose(shares, [0.2, 0.5, 0.0, 0.3], atol=0.002)
    rng = np.random.default_rng(0)
    stand_ins = np.bincount(mixed[[order.stand_in(rng) for _ in range(2000)]] + 1, minlength=4) / 2000
    np.testing.assert_allclose(stand_ins, [0.2, 0.5, 0.0, 0.3], atol=0.05)


def test_curated_weights():
    """Against the sum written out; the published weights of the target sets (arXiv 2506.09985, appendix A)."""
    counts, weights = np.random.default_rng(0).integers(0, 9, (4, 50)), (0.7, 0.125, 0.125, 0.05)
    expected = [sum(w * n[c] / sum(n) for w, n in zip(weights, counts.tolist(), strict=True)) for c in range(50)]
    np.testing.assert_allclose(sampling.curated_weights(counts, weights), expected)
    np.testing.assert_allclose(sum(expected), 1.0)
    for bad_counts, bad_weights in ((counts * 0, weights), (-counts, weights), (counts, (0.7, 0.3, 0.0, 0.1))):
        with pytest.raises(DataError, match="counts of clusters must not be negative"):
            sampling.curated_weights(bad_counts, bad_weights)


def test_files_of_weights(tmp_path):
    path = tmp_path / "clusters.csv"
    source = clustered([5, 5], ("cats", "dogs"))

    def read(text, mix=(), sources=(source, Rows(3))):
        path.write_text(text)
        return sampling.cluster_weights(DataConfig(path="", cluster_weights=str(path), cluster_mix=mix), sources)

    assert read("cluster, weight\ndogs,0.25\ncats, 0.75\n") == {"dogs": 0.25, "cats": 0.75}
    assert read("cluster,a,b\ncats,1,0\ndogs,3,8\n", (0.8, 0.2)) == {"cats": 0.2, "dogs": pytest.approx(0.8)}
    assert sampling.cluster_weights(DataConfig(path=""), [source]) is None
    assert order_of(Rows(3), {"cats": 1.0}) is None  # sources without clusters are drawn as ever

    with pytest.raises(DataError, match=r"no source has cluster birds \(and 1 more\): remove the row"):
        read("cluster,weight\ncats,1\ndogs,1\nbirds,1\nfish,1\n")
    with pytest.raises(DataError, match=r"cluster dogs of videos.arrow has no row in data.cluster_weights: add one"):
        order_of(source, read("cluster,weight\ncats,1\n"))
    with pytest.raises(DataError, match=r"all clusters of videos.arrow have weight 0"):
        order_of(source, read("cluster,weight\ncats,0\ndogs,0\n"))
    with pytest.raises(DataError, match="no source has clusters: give an index or manifest that does"):
        read("cluster,weight\ncats,1\n", sources=[Rows(3)])
    for text, mix, columns in (
        ("cluster,weights\ncats,1\n", (), "cluster,weight; it is 'cluster,weights'"),
        ("", (), "cluster,weight; it is ''"),
        ("cluster,a\ncats,1\n", (0.5, 0.5), "cluster and 2 target sets, as data.cluster_mix has weights; it is"),
    ):
        with pytest.raises(DataError, match=f"the first line must name the columns {columns}"):
            read(text, mix)
    for line in ("cats,one", "cats,-1", "cats,nan", "cats", "cats,1,2"):
        with pytest.raises(DataError, match=f"cannot read '{line}': write cluster,weight, numbers from 0 on"):
            read(f"cluster,weight\n{line}\n")
    with pytest.raises(DataError, match="cluster cats occurs twice"):
        read("cluster,weight\ncats,1\ncats,2\n")
    with pytest.raises(DataError, match=r"data.cluster_weights: cannot read .*absent.csv"):
        sampling.cluster_weights(DataConfig(path="", cluster_weights=str(tmp_path / "absent.csv")), [source])


def test_windows_that_cannot_be_kept():
    with pytest.raises(DataError, match=r"data.no_repeat_window=6 exceeds the 5 videos of videos.arrow"):
        order_of(Rows(5), None, no_repeat_window=6)
    with pytest.raises(DataError, match=r"cluster 1 of videos.arrow may be drawn 2 times within it and has 1 videos"):
        order_of(clustered([9, 1]), by_number([0.9, 0.1]), no_repeat_window=4)


def test_what_a_config_refuses(tiny_config):
    for match, data in (
        (r"data.no_repeat_window=-1 must not be negative", {"no_repeat_window": -1}),
        (r"data.cluster_mix needs data.cluster_weights", {"cluster_mix": (1.0,)}),
        (r"data.cluster_mix=\(1.0, 0.0\) must be positive", {"cluster_mix": (1.0, 0.0), "cluster_weights": "w.csv"}),
        (r"data.pictures='skips' is not one of skip, repeat; did you mean 'skip'", {"pictures": "skips"}),
    ):
        with pytest.raises(ConfigError, match=match):
            from_config_dict(tiny_config(data=data))
