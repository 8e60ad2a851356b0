"""Generation compiled for H100s that are absent: `pytest -m cuda`, with the extra cuda and no GPU."""

import dataclasses
import re
from collections import Counter
from importlib.util import find_spec

import pytest

from idefics_jax import IdeficsConfig, make_mesh
from idefics_jax.cost.gpus import gpu_devices
from idefics_jax.cost.hlo import parse
from idefics_jax.cost.traffic import hbm_bytes
from idefics_jax.parallel.hardware import DECODING
from idefics_jax.planning.lowering import lower
from tests.reference.generation import random_prompts

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(find_spec("jax_cuda13_plugin") is None, reason="needs the extra cuda, though no GPU"),
]

#: XLA's own values of the options that decoding changes.
DEFAULTS = {"xla_gpu_dot_merger_threshold_mb": "32", "xla_disable_hlo_passes": ""}


def lowered(tensor, prompts):
    """Lower a call of the 9B with few layers, each as wide as the published ones."""
    whole = IdeficsConfig.idefics_9b_instruct()
    config = dataclasses.replace(
        whole,
        num_hidden_layers=2,
        cross_layer_interval=2,
        vision_config=dataclasses.replace(whole.vision_config, num_hidden_layers=1),
        perceiver_config=dataclasses.replace(whole.perceiver_config, resampler_depth=1),
    )
    inputs = random_prompts(config, 0, prompts, lengths=(90, 120), images=(1, 1))
    mesh = make_mesh(1, 1, tensor, devices=gpu_devices("h100", tensor))
    return lower(config, mesh, inputs, max_new_tokens=8, do_sample=False)


def traffic(call, compiled):
    """Bytes that a step of decoding moves, over those of the weights and caches."""
    program = parse(compiled.as_text())
    (loop,) = [op for each in program.computations.values() for op in each.instructions if op.opcode == "while"]
    body = program.computations[loop.attribute("body")]
    free = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant")
    return sum(hbm_bytes(program, body, op) for op in body.instructions if op.opcode not in free) / call.step_bytes


def attention_calls(text):
    """Count the calls of cuDNN by kind and mask."""
    return Counter(re.findall(r'custom_call_target="__cudnn\$fmha(\w+)".*?"mask_type": ?"(\w+)"', text))


@pytest.mark.parametrize(("tensor", "prompts"), [(1, 1), (8, 8)])
def test_a_call_compiles(tensor, prompts):
    call = lowered(tensor, prompts)
    images, prefill, decode = (each.lowered.compile() for each in call.programs)
    assert attention_calls(images.as_text()) == {("Softmax", "PADDING"): 2}  # the vision tower's, and the resampler's
    # The images' mask is in memory; so is that of the prompts' padding.
    assert attention_calls(prefill.as_text()) == {("ScaleBiasSoftmax", "NO_MASK"): 1, ("ScaleBiasSoftmax", "CAUSAL"): 2}
    assert not attention_calls(decode.as_text())
    assert 1 < traffic(call, decode) < 1.2
    for program, share in ((images, 0.5), (prefill, 0.5), (decode, 0.02)):
        assert program.memory_analysis().temp_size_in_bytes < share * call.step_bytes


@pytest.mark.parametrize(("prompts", "option"), [(8, "xla_gpu_dot_merger_threshold_mb"), (1, "xla_disable_hlo_passes")])
def test_decoding_on_several_gpus_needs_its_options(prompts, option):
    call = lowered(8, prompts)
    *_, decode = call.programs
    assert traffic(call, decode.lowered.compile()) < 1.2
    assert DECODING.keys() == DEFAULTS.keys()
    assert traffic(call, decode.lowered.compile({option: DEFAULTS[option]})) > 1.5
