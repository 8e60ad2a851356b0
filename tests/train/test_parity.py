"""Gradients and AdamW steps against PyTorch's, on transformers' model with the same random weights."""

import dataclasses
import json
import re
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from idefics_jax.checkpoints import hf_names
from tests.support.random_checkpoint import BASE, save_random_checkpoint
from tests.support.small_runs import CONFIG, SmallRun, by_path, make_batch, make_rows, noting_gradients, start
from tests.support.tiny_tokenizer import IMAGE_TOKEN_ID
from train.config import LoraConfig, OptimizerConfig
from train.optimizer import make_optimizer
from train.starting import abstract, model_config
from train.step import Batch

pytestmark = pytest.mark.torch

#: Frozen as the authors' config says it; what a preset does by itself is switched on in PyTorch's config too.
IDEFICS = {"freeze_text_layers": True, "freeze_vision_layers": True, "freeze_lm_head": True}
OPEN = {"freeze_text_layers": False, "freeze_vision_layers": False, "freeze_lm_head": False}

#: Name -> what trains, and changes of the checkpoint's config.
CASES = {
    "full": ("full", OPEN),
    "full, tied": ("full", OPEN | {"tie_word_embeddings": True}),
    "full, other switches": (
        "full",
        OPEN | {"use_resampler": False, "qk_layer_norms": False, "alpha_type": "vector", "cross_layer_interval": 1},
    ),
    "idefics": ("idefics", IDEFICS),
    "idefics, text exceptions": ("idefics", IDEFICS | {"freeze_text_module_exceptions": ["Linear", "LayerNorm"]}),
    "idefics, vision exceptions": ("idefics", IDEFICS | {"freeze_vision_module_exceptions": ["LayerNorm"]}),
    "idefics, other exceptions": ("idefics", IDEFICS | {"freeze_vision_module_exceptions": ["Linear", "Embedding"]}),
    "frozen-backbones": ("frozen-backbones", OPEN),
    "heads": ("heads", OPEN),
    "heads, tied": ("heads", OPEN | {"tie_word_embeddings": True}),
    "lora": ("lora", OPEN),
}
CASES["full, tied, other switches"] = ("full", CASES["full, tied"][1] | CASES["full, other switches"][1])

#: Those whose gradients the default run compares; with those of "full", before its ten steps.
COMPARED = ("full, tied, other switches", "lora")

#: Keys' biases move all of a query's scores alike, so their gradients are rounding errors around 0.
NOTHING = re.compile(r"k_proj\.bias|k_layer_norm\.bias")


def start_both(folder, trainable: str, changes: dict, keeper=None, **options) -> tuple[SmallRun, object]:
    """A run, and PyTorch's model with the same weights of which the same train."""
    from safetensors.torch import load_file

    directory = save_random_checkpoint(folder, {"vocab_size": 512} | changes)
    config = dataclasses.replace(CONFIG, random=None, model=str(directory), trainable=trainable, z_loss=1e-2)
    ours = start(dataclasses.replace(config, **options), keeper)
    theirs = their_model(directory, trainable)
    theirs.load_state_dict(load_file(directory / "model.safetensors"), strict=not theirs.config.tie_word_embeddings)
    if trainable == "lora":  # away from zero, where `a` has no gradient
        random = np.random.default_rng(0)
        moved = jax.tree.map(lambda x: x + 0.1 * random.standard_normal(x.shape, np.float32), ours.state.params)
        ours = ours._replace(state=ours.state._replace(params=moved))
        add_adapters(theirs, ours)
    return ours, theirs


def their_model(directory, trainable: str):
    """PyTorch's model by a folder's config, of which the same trains; by its own means where it has them."""
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    # Not `from_pretrained`, after which nothing is frozen any more (in transformers 5).
    theirs = IdeficsForVisionText2Text(IdeficsConfig.from_pretrained(directory, attn_implementation="eager")).eval()
    if trainable == "frozen-backbones":
        theirs.model.freeze_text_layers()
        theirs.model.freeze_vision_layers()
    if trainable in ("heads", "lora"):
        theirs.requires_grad_(False)
    if trainable == "heads":
        theirs.lm_head.requires_grad_(True)
        theirs.model.embed_tokens.additional_embedding.requires_grad_(True)
    return theirs


def add_adapters(theirs, ours: SmallRun) -> None:
    """Puts our run's adapters at the same linear maps, as parametrisations of their weights."""
    import torch

    class Adapted(torch.nn.Module):
        def __init__(self, a, b, scale):
            super().__init__()
            self.a, self.b, self.scale = torch.nn.Parameter(a), torch.nn.Parameter(b), scale

        def forward(self, weight):
            return weight + self.scale * self.b @ self.a

    tensors, lora = in_their_axes(by_path(ours.state.params), ours), ours.objective.config.lora
    places = [name for name, _ in theirs.named_modules() if re.search(r"\.[qkv]_proj$", name)]
    for name in places:
        a, b = (torch.tensor(tensors[f"{name}.parametrizations.weight.0.{which}"]) for which in "ab")
        module = Adapted(a, b, lora.alpha / lora.rank)
        torch.nn.utils.parametrize.register_parametrization(theirs.get_submodule(name), "weight", module)


def in_their_axes(arrays: dict[str, np.ndarray], ours: SmallRun) -> dict[str, np.ndarray]:
    """Arrays at our paths as PyTorch's tensors, by its names."""
    return dict(_in_their_axes(arrays, ours))


def _in_their_axes(arrays: dict[str, np.ndarray], ours: SmallRun) -> Iterator[tuple[str, np.ndarray]]:
    table = hf_names.rules(ours.config)
    for path, array in arrays.items():
        place, lora, which = path.partition("/lora/")
        if not lora:
            weight = hf_names.weight_at(path, array, ours.config, table)
            for at, name in np.ndenumerate(weight.names):
                yield name, weight.to_theirs(array[(*at, ...)])
            continue
        kernels = by_path(ours.frozen)
        weight = hf_names.weight_at(f"{place}/kernel", kernels[f"{place}/kernel"], ours.config, table)
        for at, name in np.ndenumerate(weight.names):
            rank = ours.objective.config.lora.rank
            low = array[(*at, ...)].reshape(-1, rank).T if which == "a" else array[(*at, ...)].reshape(rank, -1).T
            yield f"{name.removesuffix('.weight')}.parametrizations.weight.0.{which}", low


def their_loss(theirs, ours: SmallRun, batch: Batch):
    """Cross-entropy and z-loss of a batch in one part, written anew from the authors' rules."""
    import torch

    arrays = {name: torch.tensor(np.asarray(value[0])) for name, value in batch._asdict().items()}
    processor, real = ours.objective.image_processor, arrays["segment_ids"] > 0
    pixels = arrays["pixel_values"].double() / 255
    pixels = (pixels - torch.tensor(processor.image_mean)) / torch.tensor(processor.image_std)
    logits = theirs(
        input_ids=arrays["input_ids"].long(),
        attention_mask=real.long(),
        position_ids=arrays["position_ids"].long(),
        pixel_values=pixels.float().movedim(-1, 2),
        image_attention_mask=arrays["image_attention_mask"].long(),
    ).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), arrays["labels"][:, 1:].long())
    counted = real & (arrays["input_ids"] != IMAGE_TOKEN_ID)
    z_loss = torch.logsumexp(logits, dim=-1)[counted].square().mean()
    return loss + ours.objective.config.z_loss * z_loss, loss, z_loss


@pytest.mark.parametrize("case", [case for case in CASES if case not in COMPARED])
def test_the_same_tensors_train(case, tmp_path):
    """The gradients of the others are compared, and with them their names."""
    pytest.importorskip("torch")
    trainable, changes = CASES[case]
    config = {**BASE, "vocab_size": 512} | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    run = dataclasses.replace(CONFIG, random=None, model=str(tmp_path), trainable=trainable)
    architecture = model_config(run)
    _, params, _ = abstract(run, architecture, None)
    table = hf_names.rules(architecture)
    ours = {
        name
        for path, array in flatten_dict(params, sep="/").items()
        for name in hf_names.weight_at(path, array, architecture, table).names.flat
    }
    theirs = their_model(tmp_path, trainable)
    assert ours == {name for name, parameter in theirs.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    "case", [case if case in COMPARED else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_gradients_of_every_trainable_tensor(case, tmp_path):
    pytest.importorskip("torch")
    trainable, changes = CASES[case]
    lora = LoraConfig(rank=3, alpha=6.0, dropout=0.0)
    ours, theirs = start_both(tmp_path, trainable, changes, noting_gradients(), lora=lora)
    total, loss, z_loss = their_loss(theirs, ours, make_batch())
    total.backward()
    state, metrics = ours.step(ours.state, ours.frozen, make_batch())
    np.testing.assert_allclose(metrics["loss"], loss.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(metrics["z_loss"], z_loss.detach().numpy(), rtol=1e-5)
    assert_same_gradients(ours, state.opt_state.gradients, theirs)


def assert_same_gradients(ours: SmallRun, gradients, theirs) -> None:
    """The same tensors train, and have the gradients that the last backward pass left with PyTorch's."""
    reference = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    assert set(in_their_axes(by_path(ours.state.params), ours)) == reference.keys()
    largest = max(float(gradient.abs().max()) for gradient in reference.values() if gradient is not None)
    compared = 0
    for name, gradient in in_their_axes(by_path(gradients), ours).items():
        if reference[name] is None or NOTHING.search(name):
            assert np.abs(gradient).max() < 1e-6 * largest, name
            continue
        expected = reference[name].numpy()
        assert np.abs(gradient - expected).max() <= 1e-4 * np.abs(expected).max(), name
        compared += np.abs(expected).max() > 0
    assert compared >= len(reference) - 8


#: Of `m4/training/config.py`, and what it misses: the last norm, CLIP's misspelt first one.
NO_DECAY = re.compile(r"bias|alpha|layernorm|\bln\b|layer_norm|perceiver_resampler|^model\.norm|pre_layrnorm")


def test_ten_steps_of_adamw(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import get_linear_schedule_with_warmup

    adamw = OptimizerConfig(
        name="adamw", learning_rate=3e-3, schedule="linear", warmup_steps=3, weight_decay=0.1, clip=1.0
    )
    ours, theirs = start_both(tmp_path, "full", OPEN, noting_gradients(make_optimizer(adamw, 10)))
    parameters = dict(theirs.named_parameters())
    groups = [
        {
            "params": [value for name, value in parameters.items() if bool(NO_DECAY.search(name)) == spared],
            "weight_decay": 0.0 if spared else 0.1,
        }
        for spared in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.999), eps=1e-8)
    rates = get_linear_schedule_with_warmup(optimizer, 3, 10)
    state = ours.state
    for number in range(10):
        rows = make_rows(seed=number % 2)
        total, loss, z_loss = their_loss(theirs, ours, make_batch(rows))
        total.backward()
        state, metrics = ours.step(state, ours.frozen, make_batch(rows, parts=2))
        if number == 0:
            np.testing.assert_allclose(metrics["loss"], loss.detach().numpy(), rtol=1e-5)
            np.testing.assert_allclose(metrics["z_loss"], z_loss.detach().numpy(), rtol=1e-5)
            assert_same_gradients(ours, state.opt_state.gradients, theirs)
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        np.testing.assert_allclose(metrics["loss"], loss.detach().numpy(), rtol=1e-4)
        np.testing.assert_allclose(metrics["gradient_norm"], norm.numpy(), rtol=1e-3)
    before = in_their_axes(by_path(ours.state.params), ours)
    for name, value in in_their_axes(by_path(state.params), ours).items():
        if not NOTHING.search(name):  # Adam makes whole steps of what is only rounding errors
            moved, expected = value - before[name], parameters[name].detach().numpy() - before[name]
            assert np.abs(moved - expected).max() <= 2e-2 * np.abs(expected).max(), name
            assert np.linalg.norm(moved - expected) <= 1e-3 * np.linalg.norm(expected), name
