"""A program's text taken apart."""

import pytest

from idefics_jax.cost.hlo import arrays, parse, shape_bytes
from tests.support.hlo_snippets import SCAN


def test_instructions_have_names_opcodes_operands_and_users():
    body = parse(SCAN).computations["body"]
    fusion = body.by_name["fusion"]
    assert (fusion.opcode, fusion.operands, fusion.called) == ("fusion", ("x", "weights", "index"), "fused")
    assert fusion.estimated_cycles == 1_000_000
    assert fusion.shape == "bf16[4096,4096]{1,0:T(8,128)(2,1)S(1)}"
    assert [user.name for user in body.users["index"]] == ["next", "fusion"]
    assert body.root is not None
    assert body.root.operands == ("next", "fusion", "weights")


def test_parameters_and_constants_have_their_numbers():
    program = parse(SCAN)
    assert program.entry == "main"
    assert {number: each.name for number, each in program.computations["fused"].parameters.items()} == {
        0: "param_0",
        1: "param_1",
        2: "param_2",
    }
    assert program.computations["condition"].by_name["bound"].constant == 6
    assert program.computations["condition"].by_name["less"].constant is None


def test_a_fusion_is_followed_by_what_it_is_made_of():
    names = [each.name for _, each in parse(SCAN).within("body")]
    assert names.index("product") == names.index("fusion") + names[names.index("fusion") + 1 :].index("product") + 1
    assert names[-1] == "result"


def test_an_instruction_may_have_several_lines():
    text = (
        "ENTRY %main (a: f32[8,128]) -> f32[8,128] {\n"
        "  %a = f32[8,128]{1,0:T(8,128)} parameter(0)\n"
        '  ROOT %kernel.1 = f32[8,128]{1,0:T(8,128)} custom-call(%a), custom_call_target="tpu_custom_call", '
        'frontend_attributes={kernel_metadata={\n}, other={\n  "x": 1\n}}\n'
        "}\n"
    )
    kernel = parse(text).computations["main"].instructions[-1]
    assert kernel.target == "tpu_custom_call"
    assert '"x": 1' in kernel.text


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse("HloModule nothing\n")


def test_bytes_of_shapes():
    assert shape_bytes("bf16[8,128]{1,0:T(8,128)(2,1)}") == 2048
    assert shape_bytes("pred[3]{0}") == 3
    assert shape_bytes("s4[16]{0:T(8)}") == 8
    assert shape_bytes("f8e4m3fn[5]{0}") == 5
    assert shape_bytes("f32[]") == 4
    assert shape_bytes("(f32[2]{0}, u32[]{:S(2)}, token[])") == 12


def test_only_arrays_without_a_memory_space_are_in_hbm():
    shape = "(bf16[4,4]{1,0:T(8,128)(2,1)S(1)}, bf16[4,4]{1,0:T(8,128)(2,1)})"
    assert [array.in_hbm for array in arrays(shape)] == [False, True]
    assert shape_bytes(shape, hbm_only=True) == 32
