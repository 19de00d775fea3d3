"""Profiles: whatever a file holds, loading it gives checked parameters or one sentence."""

import string
import unicodedata

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medq import config, params
from medq.errors import UserError, one_of

GOOD = {"profile": "mine", "datasets": ["phantom-BrainMRI"], "backbones": ["resnet18"]}


def write(folder, value, name="mine.yaml"):
    path = folder / name
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value), encoding="utf-8")
    return path


def refused(folder, value):
    with pytest.raises(UserError) as error:
        params.load(write(folder, value))
    text = str(error.value)
    assert "\n" not in text and text.startswith(str(folder / "mine.yaml"))
    return text


@pytest.mark.parametrize("kind, key", [("deduplicated", "deduplicate"), ("inner", "train")])
def test_a_variant_of_the_reference_trains_with_one_key_changed(kind, key):
    variant, base = (params.load(f"reference{end}").model_dump() for end in (f"-{kind}", ""))
    scope = {"profile", "about", "datasets", "backbones", "regimes", "controls", "study", "overrides", "qat", "latency"}
    assert {name for name in base if variant[name] != base[name]} - scope == {key}
    assert set(variant["backbones"]) <= set(base["backbones"]) - set(base["overrides"])
    if key == "train":
        assert variant[key] | {"selection": "held-out"} == base[key]


def test_the_paper_profile_is_the_papers_protocol():
    rates = {"learning_rate": 1e-4, "weight_decay": 1e-4, "min_improvement": 1e-3, "batch_size": 32}
    assert params.load("paper").train.model_dump(exclude={"selection"}) == rates | {"epochs": 50, "patience": 10}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"bakbones": ["resnet18"]}, "did you mean 'backbones'"),
        ({"train": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"train": {"epochs": "three"}}, "train.epochs"),
        ({"train": {"epochs": 0}}, "train.epochs"),
        ({"train": {"epochs": True}}, "train.epochs"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate"),
        ({"train": 5}, "train"),
        ({"image_size": 20_000}, "image_size"),
        ({"datasets": []}, "datasets"),
        ({"datasets": ["phantom-BrainMRI", "phantom-BrainMRI"]}, "twice"),
        ({"datasets": ["BrainMRY"]}, "did you mean 'BrainMRI'"),
        ({"backbones": ["resnet19"]}, "resnet18"),
        ({"regimes": ["int4"]}, "fp32"),
        ({"folds": [-1]}, "folds"),
        ({"folds": "some"}, "folds"),
        ({"profile": "other"}, "profile"),
        ({"profile": "../mine"}, "profile"),
        ({"study": {"ablation": ["resnet19"]}}, "study.ablation"),
        ({"overrides": {"resnet18": {"train": {"epochs": -1}}}}, "epochs"),
        ({"overrides": {"resnet81": {}}}, "did you mean 'resnet18'"),
        ({"cell_minutes": 0}, "cell_minutes"),
        ({"overrides": {"resnet18": {"train": {"epoch": 3}}}}, "resnet18.train: unknown key 'epoch' (did you mean 'ep"),
        ({"overrides": {"resnet18": {"qat": {"epochs": True}}}}, "resnet18.qat: epochs: input should be a valid int"),
        ({"study": {"recipes": ["minimax"]}}, "study.recipes: unknown recipe 'minimax'; did you mean 'minmax'"),
        ({"folds": []}, "folds: "),
        ({"folds": 0}, "folds: must be a list"),
        ({"latency": {"batch_sizes": []}}, "latency.batch_sizes"),
        ({"latency": {"seconds": float("inf")}}, "latency.seconds"),
        ({"latency": {"seconds": [1.0, 0.0]}}, "latency.seconds.1: input should be greater than 0, not '0.0'"),
        ({"latency": {"seconds": "long"}}, "latency.seconds: must be a list, like [a, b], not 'long'"),
        (
            {"latency": {"seconds": [9.0, 3.0, 1.0]}},
            "latency.seconds: give one number, or one for each of the 2 batch_siz",
        ),
        ({"calibration": {"sizes": []}}, "calibration.sizes"),
        ({"seed": 2**32}, "seed"),
        ({"weights": ""}, "weights"),
        ({"train": {"epochs": 0}, "weights": "none"}, "train.epochs"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds: must ascend"),
        ({"seeds": [43, 42]}, "seeds: must ascend"),
        ({"overrides": {"resnet18": {"seeds": [1]}}}, "overrides.resnet18.seeds"),
        ({"overrides": {"resnet18": {"train": {"selection": "inner"}}}}, "train.selection"),
        ({"overrides": {"resnet18": {"weights": ""}}}, "overrides.resnet18.weights"),
    ],
)
def test_mistakes_name_the_file_and_the_key(tmp_path, change, said):
    assert said in refused(tmp_path, GOOD | change)


@pytest.mark.parametrize(
    "text, said",
    [
        ("profile: [", "line"),
        ("- a\n- b\n", "mapping"),
        ("", "mapping"),
        ("a: &x [*x]", ""),
        ("{" * 3000, ""),
        ("profile: mine\n\tx: 1", "YAML"),
        ("profile: mine\nprofile: mine\n", "line 2: the key 'profile' is repeated"),
        ("train: {epochs: 3, epochs: 5}", "the key 'epochs' is repeated"),
        ("profile: !!python/object/apply:os.system [ls]", "YAML"),
    ],
)
def test_what_is_no_profile_at_all(tmp_path, text, said):
    assert said in refused(tmp_path, text)


def test_seconds_are_for_all_batch_sizes_or_for_each():
    assert [params.Latency(seconds=3).budget(n) for n in (1, 32)] == [3, 3]
    assert [params.Latency(batch_sizes=[32, 1], seconds=[2.0, 9.0]).budget(n) for n in (1, 32)] == [9, 2]


def test_not_utf8_and_not_there(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"profile: \xff\xfe")
    (tmp_path / "folder.yaml").mkdir()
    for name, said in (("mine", "UTF-8"), ("yours", "Beside it: folder.yaml, mine.yaml"), ("folder", "cannot be read")):
        with pytest.raises(UserError, match=said):
            params.load(tmp_path / f"{name}.yaml")


def test_changes_are_merged_and_checked(tmp_path):
    path = write(tmp_path, GOOD | {"train": {"epochs": 7, "patience": 2}})
    changed = params.load(path, train={"epochs": 3})
    assert (changed.train.epochs, changed.train.patience) == (3, 2)
    with pytest.raises(UserError, match="train.epochs"):
        params.load(path, train={"epochs": 0})


def test_a_power_of_ten_is_a_number_with_and_without_a_point(tmp_path):
    text = yaml.safe_dump(GOOD) + "train: {learning_rate: 3e-4, weight_decay: 1.0e-3}\n"
    train = params.load(write(tmp_path, text)).train
    assert (train.learning_rate, train.weight_decay) == (3e-4, 1e-3)


def test_paths_in_a_profile_are_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDQ_DATA", raising=False)
    (tmp_path / "params").mkdir()
    beside = write(tmp_path / "params", GOOD | {"data_root": "../data", "weights": "w.pt"})
    loaded = params.load(beside.relative_to(tmp_path))
    assert (loaded.root(), loaded.weights) == (f"{tmp_path}/data", f"{tmp_path}/params/w.pt")
    monkeypatch.setenv("MEDQ_DATA", "/elsewhere")
    assert loaded.root() == "/elsewhere"
    loaded = params.load(write(tmp_path, GOOD | {"data_root": "/data", "weights": "none"}))
    assert (loaded.data_root, loaded.weights) == ("/data", "none")


@pytest.mark.parametrize(
    "name",
    ["data", "a/b", "..", "latency", "a,b", "a=b", "{a}", " a", "a\nb", "", "-x", "a <b> c", "a\0", "a\x1b", "図" * 67],
)
@pytest.mark.parametrize("kind", ["backbones", "datasets"])
def test_no_folder_of_a_batch_can_be_called_so(tmp_path, kind, name):
    entry = getattr(params, kind)()[{"backbones": "resnet18", "datasets": "ChestXray"}[kind]]
    entry = entry.model_dump(mode="json", exclude={"name"})
    write(tmp_path, {name: entry}, f"{kind}.yaml")
    with pytest.raises(UserError, match="not a valid name"):
        getattr(params, kind)(tmp_path)
    write(tmp_path, {"My own é-2.0": entry}, f"{kind}.yaml")
    assert list(getattr(params, kind)(tmp_path)) == ["My own é-2.0"]


def test_all_mistakes_of_a_catalogue_are_named(tmp_path):
    write(tmp_path, {"-x": {}, "a <b> c": {}, 2024: {}, "fine": {"tytle": "X"}}, "backbones.yaml")
    with pytest.raises(UserError) as error:
        params.backbones(tmp_path)
    for part in (str(tmp_path / "backbones.yaml"), "'-x'", "'a <b> c'", "2024", "fine", "'tytle'"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_a_range_that_kernels_do_not_clamp_to_is_refused(tmp_path):
    write(tmp_path, {"seven-bits": {"title": "X", "rounded": "layers"}}, "recipes.yaml")
    with pytest.raises(UserError, match="seven-bits: rounded: layers needs `reduce_range: false`"):
        params.recipes(tmp_path)


def test_names_are_found_in_either_normal_form(tmp_path):
    entry = {"title": "X", "timm": "resnet18", "family": "cnn"}
    for form in ("NFC", "NFD"):
        write(tmp_path, {unicodedata.normalize(form, "bénin"): entry}, f"{form}.yaml")
        (known,) = config.catalogue(tmp_path / f"{form}.yaml", params.Backbone)
        assert one_of("backbone", unicodedata.normalize("NFD", "bénin"), [known]) == known == "b\u00e9nin"


def test_overrides_reach_one_backbone_alone(tmp_path):
    changes = {"backbones": ["resnet18", "resnet50"], "overrides": {"resnet50": {"train": {"epochs": 3}}}}
    loaded = params.load(write(tmp_path, GOOD | changes))
    assert (loaded.training("resnet50").epochs, loaded.training("resnet18").epochs) == (3, 50)


KNOWN = st.sampled_from([*params.Params.model_fields, "epochs", "train", "learning_rate", "resnet18", "recipes"])
KEYS = st.one_of(KNOWN, st.text(string.printable, max_size=6), st.integers(), st.booleans(), st.none())
WORDS = st.sampled_from(["resnet18", "fp32", "all", "phantom-BrainMRI", "mine", "none", "cpu"])
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), WORDS)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(KEYS, VALUES, max_size=4), whole=st.booleans(), root=VALUES)
def test_anything_gives_parameters_or_a_sentence(tmp_path, changes, whole, root):
    value = root if whole else GOOD | changes
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.dump(value, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    try:
        loaded = params.load(path)
    except UserError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        assert isinstance(loaded, params.Params) and loaded.profile == "mine"
