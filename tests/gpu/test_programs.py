"""Training compiled for H100s that are absent: `pytest -m cuda`, with the extra cuda and no GPU."""

import dataclasses
import re
from collections import Counter
from importlib.util import find_spec
from typing import get_args

import jax
import numpy as np
import pytest

from idefics_jax import IdeficsConfig
from idefics_jax.cost.gpus import UNTUNED, gpu_devices
from tests.reference.generation import random_prompts
from train.config import DataConfig, LoraConfig, OptimizerConfig, TrainableName, TrainConfig
from train.planning.compiling import lower
from train.starting import mesh_of

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(find_spec("jax_cuda13_plugin") is None, reason="needs the extra cuda, though no GPU"),
]


def config():
    """A layer of each kind, with the published models' lengths: 257 patches, 64 latents that see 321 vectors."""
    tiny = IdeficsConfig.tiny()
    vision = dataclasses.replace(
        tiny.vision_config, embed_dim=640, num_hidden_layers=1, num_attention_heads=8, image_size=224
    )
    perceiver = dataclasses.replace(
        tiny.perceiver_config, resampler_n_latents=64, resampler_depth=1, resampler_n_heads=8, resampler_head_dim=96
    )
    changes = {"hidden_size": 1024, "intermediate_size": 2048, "num_attention_heads": 8, "dtype": "bfloat16"}
    changes |= {"num_hidden_layers": 1, "cross_layer_interval": 1}
    return dataclasses.replace(tiny, vision_config=vision, perceiver_config=perceiver, **changes)


def attention_calls(text):
    """How often cuDNN is called, by kind; forward and backward."""
    return Counter(re.findall(r'custom_call_target="__cudnn\$fmha(\w+)"', text))


#: Without a GPU nothing is measured, but two thirds of the time go into choosing how each product and fusion would run.
SOONER = UNTUNED | {"xla_gpu_autotune_level": 0, "xla_gpu_experimental_enable_fusion_autotuner": False}


@pytest.mark.parametrize("trainable", get_args(TrainableName))
def test_every_choice_of_what_trains_compiles(trainable):
    remat = ("attention",) if trainable == "heads" else "full"
    data, optimizer = DataConfig(sequence_length=256, max_images=2), OptimizerConfig(name="sgd")
    lora = LoraConfig(dropout=0.0)  # random numbers take longest to compile
    run = TrainConfig(
        out="", random="tiny", trainable=trainable, batch_size=4, remat=remat, lora=lora, data=data, optimizer=optimizer
    )
    lowered, _ = lower(run, config(), mesh_of(run, gpu_devices("h100", 2)))
    program = lowered.compile(compiler_options=SOONER)
    calls, text = attention_calls(program.as_text()), program.as_text()
    assert calls["ScaleBiasSoftmaxBackward"] == 1  # cross-attention alone has a mask in memory
    assert calls["ScaleBiasSoftmax"] == (1 if trainable == "heads" else 2)  # kept, or run again
    assert calls["SoftmaxBackward"] >= 1
    assert re.search(r'"mask_type": ?"CAUSAL"', text)
    assert not re.search(r"f32\[\d+,8,25[678],25[678]\]", text)  # scores
    assert program.memory_analysis().peak_memory_in_bytes < 2**30


@pytest.mark.accelerator
def test_a_gpu_generates():
    from idefics_jax import IdeficsForVisionText2Text

    model = IdeficsForVisionText2Text.from_config(config(), jax.random.key(0), param_dtype="bfloat16")
    assert np.all(model.generate(**random_prompts(config(), 0, 1, images=(1, 1)), max_new_tokens=4) >= 0)
