"""The paper's numbers in results/published against its tables, transcribed here a second time as text."""

import pandas as pd
import pytest

from medq.results import SCHEMA, published

TABLE1 = """
BrainMRI    ECE    0.0067 0.0060 0.2516 0.2482 0.0065 0.0054
BrainMRI    Brier  0.0164 0.0146 0.5287 0.5154 0.0174 0.0140
ChestXray   ECE    0.0292 0.0301 0.2841 0.2960 0.0296 0.0314
ChestXray   Brier  0.0860 0.0855 0.6457 0.6713 0.0883 0.0860
SkinCancer  ECE    0.1067 0.1096 0.1677 0.1706 0.1240 0.1284
SkinCancer  Brier  0.2979 0.2992 0.4580 0.4587 0.3167 0.3148
"""
TABLE2 = """
BrainMRI    CNN          FBGEMM    112    282  64.5
BrainMRI    CNN          QNNPACK   103    284  75.8
BrainMRI    Transformer  FBGEMM     40    689   0.3
BrainMRI    Transformer  QNNPACK     3  16864   0.2
ChestXray   CNN          FBGEMM     97    272  76.9
ChestXray   CNN          QNNPACK   114    292  76.1
ChestXray   Transformer  FBGEMM     31   1154   0.4
ChestXray   Transformer  QNNPACK     3  16122   0.3
SkinCancer  CNN          FBGEMM     76    409  66.6
SkinCancer  CNN          QNNPACK    72    403  77.4
SkinCancer  Transformer  FBGEMM     33   1038   0.5
SkinCancer  Transformer  QNNPACK     3  16015   0.3
"""
TABLE3 = {  # rows FP32, INT8-PTQ, INT8-QAT; AUPRC and AUC of each class in turn
    "BrainMRI": (
        ["glioma", "meningioma", "notumor", "pituitary"],
        """
0.997 0.999 0.995 0.998 0.999 1.000 0.998 0.999
0.978 0.992 0.962 0.985 0.995 0.998 0.985 0.994
0.995 0.998 0.993 0.997 0.998 0.999 0.996 0.998
""",
    ),
    "ChestXray": (
        ["COVID", "Normal", "Viral Pneumonia"],
        """
0.992 0.998 0.978 0.995 0.985 0.996
0.925 0.978 0.892 0.962 0.918 0.975
0.988 0.997 0.972 0.993 0.981 0.995
""",
    ),
    "SkinCancer": (
        ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"],
        """
.42 .92 .58 .95 .62 .93 .38 .96 .52 .91 .95 .97 .72 .98
.32 .85 .45 .89 .48 .86 .28 .91 .38 .82 .88 .93 .58 .95
.40 .91 .55 .94 .59 .92 .35 .95 .49 .90 .94 .96 .68 .97
""",
    ),
}
TABLE4 = """
resnet18         6.7  7.4   2.0  2.0  3.39 3.96
resnet50        16.0 19.3   4.7  5.0  3.45 3.92
densenet121     74.8 79.6  12.3 14.6  5.62 3.49
efficientnet_b0  9.6 10.0   8.1  9.6  1.03 3.21
mobilenetv2      6.3  6.4   5.0  5.4  1.22 3.13
convnext_tiny   14.6 16.9   8.5  8.9  1.74 3.86
swin_tiny       20.8 22.1  18.7 19.6  1.12 3.95
vit_base        37.7 39.8  23.6 25.1  1.59 3.88
"""
REGIMES = ["fp32", "fp16", "ptq-fbgemm", "ptq-qnnpack", "qat-fbgemm", "qat-qnnpack"]


def rows(text):
    return [line.split() for line in text.strip().splitlines()]


@pytest.fixture(scope="module")
def paper():
    return published()


def test_table1(paper):
    m = paper.metrics
    given = m[m["backbone"] == "mean"]
    expected = {
        (dataset, metric.lower(), regime): float(value)
        for dataset, metric, *values in rows(TABLE1)
        for regime, value in zip(REGIMES, values)
    }
    assert given.set_index(["dataset", "metric", "regime"])["value"].to_dict() == expected
    assert (given["form"] == given["regime"].map(lambda r: "float" if r.startswith("fp") else "fake-quant")).all()


def test_table2(paper):
    t = paper.latency[paper.latency["batch_size"] == 32].set_index(["dataset", "backbone", "engine"])
    expected = {(d, kind.lower(), engine.lower()): [*map(float, values)] for d, kind, engine, *values in rows(TABLE2)}
    given = t[["throughput", "p50_ms", "convert_seconds"]]
    assert dict(zip(given.index, given.to_numpy().tolist())) == expected
    assert (t["regime"] == "ptq-" + t.index.get_level_values("engine")).all()
    images = t["throughput"] * t["p50_ms"] / 1000  # medians of each, throughput without decimals
    assert images[t["throughput"] > 10].between(25, 40).all(), "it is batch 32"


@pytest.mark.parametrize("dataset", TABLE3)
def test_table3(paper, dataset):
    classes, text = TABLE3[dataset]
    m = paper.metrics[(paper.metrics["dataset"] == dataset) & (paper.metrics["backbone"] == "resnet50")]
    expected = {
        (regime, classes[k // 2], ("auprc", "auroc")[k % 2]): float(value)
        for regime, values in zip(("fp32", "ptq", "qat"), rows(text))
        for k, value in enumerate(values)
    }
    assert m.set_index(["regime", "class", "metric"])["value"].to_dict() == expected


def test_table4(paper):
    t = paper.latency[paper.latency["batch_size"] == 1].set_index(["regime", "backbone"])[["p50_ms", "p99_ms"]]
    ratios = paper.ratios.set_index("backbone")[["speedup", "size_ratio"]]
    given = {b: [*t.loc["fp32", b], *t.loc["ptq-fbgemm", b], *ratios.loc[b]] for b in ratios.index}
    assert given == {name: [*map(float, values)] for name, *values in rows(TABLE4)}
    assert len(t) == 16 and len(ratios) == 8


def test_nothing_else_is_there(paper):
    assert len(paper.metrics) == 36 + 3 * 8 + 3 * 6 + 3 * 14
    assert len(paper.latency) == 12 + 16
    assert not paper.metrics.duplicated(["dataset", "backbone", "regime", "form", "metric", "class"]).any()


def test_same_schema_as_ours(paper):
    for path in paper.path.glob("*.csv"):
        columns = pd.read_csv(path, nrows=0).columns
        assert set(columns) <= {*SCHEMA[path.name], "source"}, path.name


def test_the_set_says_whose_numbers_it_holds(paper):
    assert "paper's own numbers" in paper.banner()
    assert paper.regimes[:6] == REGIMES and len(paper.backbones) == 8
