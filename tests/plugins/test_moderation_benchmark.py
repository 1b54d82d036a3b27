"""The moderation benchmark: near-duplicates stay on one side of a split; the simple methods learn what is simple."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("PLAUDIT_DATA", ROOT.parent / "shared" / "data"))


def module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize("name", ["hatecheck", "convabuse"])
def test_no_cluster_and_no_prompt_group_is_on_both_sides(name):
    if not (DATA / name).is_dir():
        pytest.skip(f"no data in {DATA}: PLAUDIT_DATA names the folder of the data sets")
    sets = module("moderation_data")
    data = sets.SETS[name](DATA)
    for seed in range(2):
        split = sets.split(data, seed, 800)
        labelled = [label.item for label in split.labels]
        assert len(labelled) == 800
        assert not {item.cluster for item in labelled} & {item.cluster for item in split.test}
        group = [{data.plugin.render(item.request).group for item in items} for items in (labelled, split.test)]
        assert not group[0] & group[1]
        assert {label.value for label in split.labels} == set(data.plugin.categories)
        assert split == sets.split(data, seed, 800)


def test_a_bag_of_words_learns_what_a_word_tells_and_the_majority_counts():
    torch = pytest.importorskip("torch")
    simple = module("moderation_text")
    good = ["a fine day", "fine tea here", "what a fine book", "fine work", "it is fine", "fine rain"]
    bad = ["a vile day", "vile tea here", "what a vile book", "vile work", "it is vile", "vile rain"]
    labels = ["good"] * 6 + ["bad"] * 6
    found = simple.logistic_regression(
        good + bad, labels, ["a fine fish", "some vile fish"], ("good", "bad"), simple.words
    )
    assert found.argmax(dim=1).tolist() == [0, 1]
    assert torch.allclose(found.sum(dim=1), torch.ones(2, dtype=torch.float64))
    shares = simple.majority(["good", "good", "bad"], ("good", "bad", "severe"), 2)
    assert shares.tolist() == [pytest.approx([3 / 6, 2 / 6, 1 / 6])] * 2
