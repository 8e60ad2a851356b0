"""`verify` says what differs and where, against another checkpoint or against the manifest alone."""

import json
import shutil

import numpy as np
import pytest

from conversion.cli import main
from tests.support.conversion import ROOT, change_config, converted, read_all, store

NAME = "model.layers.1.mlp.up_proj.weight"
PHOTO = ROOT / "examples" / "cat.jpg"


@pytest.fixture(scope="module")
def random_files(random_checkpoint, tmp_path_factory):
    """The checkpoint, converted to safetensors. Not to be changed."""
    return converted(random_checkpoint, tmp_path_factory.mktemp("random") / "files", "--to", "safetensors")


@pytest.fixture
def files(random_files, tmp_path):
    """A copy of that, to be changed."""
    return shutil.copytree(random_files, tmp_path / "files")


@pytest.fixture
def differing(capsys):
    """Runs a comparison that finds a difference; gives what it printed."""

    def run(*arguments):
        assert main(["verify", *map(str, arguments)]) == 1
        return capsys.readouterr().out

    return run


def test_the_same(conversion, checkpoint, files, tmp_path):
    conversion("convert", checkpoint, tmp_path / "orbax")
    for other in (files, tmp_path / "orbax"):
        assert "are bit-identical (141 tensors, " in conversion("verify", checkpoint, other)
        assert "its manifest.json are bit-identical (141 tensors, " in conversion("verify", other)


def test_one_element(conversion, checkpoint, files, tmp_path, differing):
    tensors = read_all(files)
    changed = tensors[NAME].copy()
    changed[3, 5] += 0.25
    store(files, tensors | {NAME: changed})
    against_source = differing(checkpoint, files)
    assert f"{NAME}: 1 of 1,536 elements differ, at most by 0.25, at [3, 5]" in against_source
    assert "differ in 1 respects" in against_source
    assert f"{NAME}: its xxh3_128 changed" in differing(files)
    store(files, tensors | {NAME: np.where(changed == changed[3, 5], np.nan, changed)})
    assert f"{NAME}: NaN or infinity on one side, first at [3, 5]" in differing(checkpoint, files)


def test_a_changed_sign_of_zero_is_a_difference(conversion, checkpoint, tmp_path, differing):
    tensors = read_all(checkpoint)
    tensors[NAME][0, 0] = 0.0
    store(checkpoint, tensors)
    conversion("convert", checkpoint, tmp_path / "orbax")
    tensors[NAME][0, 0] = -0.0
    store(checkpoint, tensors)
    assert "1 of 1,536 elements differ, at most by 0, at [0, 0]" in differing(checkpoint, tmp_path / "orbax")


def test_a_changed_file_beside_the_weights(published_orbax, tmp_path, differing):
    shutil.copytree(published_orbax, tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").write_text("{}")
    (tmp_path / "out" / "generation_config.json").unlink()
    out = differing(tmp_path / "out")
    assert "generation_config.json: missing" in out
    assert "tokenizer.json: changed" in out


def test_another_dtype_is_compared_after_rounding(conversion, checkpoint, tmp_path, differing):
    conversion("convert", checkpoint, tmp_path / "half", "--dtype", "bfloat16")
    assert "are the same once rounded to the coarser dtype" in conversion("verify", checkpoint, tmp_path / "half")
    tensors = read_all(checkpoint)
    tensors[NAME][0, 0] += 1
    store(checkpoint, tensors)
    assert "1 of 1,536 elements differ, at most by 0.999, at [0, 0]" in differing(checkpoint, tmp_path / "half")


def test_manifests_that_do_not_help(conversion, checkpoint, files, differing):
    assert "has no manifest.json" in conversion("verify", checkpoint, status=1)
    manifest = json.loads((files / "manifest.json").read_text())
    gone = manifest["tensors"].pop(NAME)
    (files / "manifest.json").write_text(json.dumps(manifest))
    assert f"{NAME}: not in the manifest" in differing(files)
    manifest["tensors"] |= {NAME: gone, "model.more": gone}
    (files / "manifest.json").write_text(json.dumps(manifest))
    assert "model.more: not in the checkpoint" in differing(files)
    entries = {"tensors": {"a": {}}, "files": {"a.json": {}}}
    for bad in (1, {"tensors": 1}, entries | {"tensors": {"a": 1}}, entries | {"files": {"../a.json": {}}}):
        (files / "manifest.json").write_text(json.dumps(bad))
        assert "manifest.json is damaged" in conversion("verify", files, status=1)


def test_the_manifest_says_where_it_comes_from(random_checkpoint, files):
    manifest = json.loads((files / "manifest.json").read_text())
    tensors = read_all(random_checkpoint)
    assert manifest["source"] == str(random_checkpoint)
    assert manifest["format"] == "safetensors"
    assert manifest["parameters"] == sum(tensor.size for tensor in tensors.values())
    assert manifest["bytes"] == 4 * manifest["parameters"]
    assert manifest["tensors"].keys() == tensors.keys()
    assert manifest["tensors"][NAME]["shape"] == [48, 32]


def test_not_finite(conversion, checkpoint, tmp_path, differing):
    tensors = read_all(checkpoint)
    tensors[NAME][:2, 0] = np.nan, -np.inf
    store(checkpoint, tensors)
    err = conversion("convert", checkpoint, tmp_path / "out", "--check-finite", status=1)
    assert f"{NAME}: 2 of 1,536 elements are NaN or infinite" in err
    assert not (tmp_path / "out").exists()
    conversion("convert", checkpoint, tmp_path / "out", "--resume")
    assert "bit-identical" in conversion("verify", checkpoint, tmp_path / "out")
    assert "2 of 1,536 elements are NaN" in differing(tmp_path / "out", "--check-finite")


def test_an_overflow_in_float16_is_found(conversion, checkpoint, tmp_path):
    tensors = read_all(checkpoint)
    tensors[NAME][0, 0] = 1e6
    store(checkpoint, tensors)
    arguments = ("convert", checkpoint, tmp_path / "out", "--check-finite")
    assert "1 of 1,536 elements" in conversion(*arguments, "--dtype", "float16", status=1)
    conversion(*arguments, "--dtype", "bfloat16", "--force")


def test_logits(conversion, published, published_orbax, tmp_path, differing, monkeypatch):
    """Both by our own model, as where PyTorch is not installed."""
    monkeypatch.setattr("conversion.logits.find_spec", lambda name: None)
    out = conversion("verify", published, published_orbax, "--logits", PHOTO)
    assert "logits: at most 0 apart" in out
    assert "greedy tokens: all 16 are the same" in out
    conversion("convert", published, tmp_path / "files", "--to", "safetensors", "--dtype", "float32")
    tensors = read_all(tmp_path / "files")
    tensors["lm_head.weight"] = -tensors["lm_head.weight"]
    store(tmp_path / "files", tensors)
    out = differing(published, tmp_path / "files", "--logits", PHOTO)
    assert "greedy tokens: the first to differ is number 1, " in out


@pytest.mark.torch
def test_logits_against_pytorch(conversion, published, published_orbax):
    pytest.importorskip("torch")
    out = conversion("verify", published, published_orbax, "--logits", PHOTO)
    assert f"{published} by PyTorch, {published_orbax} by idefics-jax" in out
    assert "greedy tokens: all 16 are the same" in out


def test_logits_need_two(conversion, published):
    assert "name both" in conversion("verify", published, "--logits", PHOTO, status=1)


def test_checkpoints_of_different_models(conversion, checkpoint, files, tmp_path, differing):
    from tests.support.random_checkpoint import save_random_checkpoint

    other = save_random_checkpoint(tmp_path / "other", {"num_hidden_layers": 6})
    out = differing(checkpoint, other)
    assert f"only in {other}" in out
    change_config(files, num_hidden_layers=6)
    assert "Missing from" in conversion("verify", checkpoint, files, status=1)
