"""`generate --plan`: what a pod would do, without one."""

import json

import pytest

from tests.support.commands import check_sentence


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--plan", "v5e:2x4"), "--plan needs --mesh"),
        (("--plan", "v5e:2x4", "--mesh", "tensor=-1", "--num-beams", "2"), "does not know beam search"),
        (("--plan", "nonsense:9", "--mesh", "tensor=-1"), "nonsense is no TPU that costs can be read for"),
    ],
)
def test_plans_that_cannot_be_made(arguments, message, generate):
    check_sentence(generate(*arguments, status=1), message)


@pytest.mark.slow
def test_a_plan_is_printed_and_no_weight_is_read(generate, checkpoint, tmp_path):
    pytest.importorskip("libtpu")
    for file in checkpoint.glob("*.json"):
        if "index" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    options = ("--plan", "v5e:2x4", "--mesh", "fsdp=4,tensor=2", "--dtype", "bfloat16")
    printed = generate(*options, model=tmp_path)
    assert "| fits | yes" in printed
    assert "## decode" in printed
    found = json.loads(generate(*options, "--json", model=tmp_path))
    assert found["fits"]
    assert [program["name"] for program in found["programs"]] == ["images", "prefill", "decode"]
    assert found["decode_step_seconds"] > 0
