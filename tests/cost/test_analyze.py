"""Costs of programs written out here, computed by hand."""

import pytest

from idefics_jax.cost import CHIPS, chip
from idefics_jax.cost.collectives import group_size, wire_bytes
from idefics_jax.cost.components import component
from idefics_jax.cost.hlo import Instruction
from idefics_jax.cost.kernels import kernel_cycles
from idefics_jax.parallel.hardware import Chip
from tests.support.hlo_snippets import SCAN, between_slices, estimate, read

V5E = CHIPS["v5e"]


def program(operations: str, called: str = "") -> str:
    """A program of these operations on `%a` and `%b`, both `bf16[1024,1024]` in HBM."""
    return f"""HloModule jit_f, is_scheduled=true
{called}
ENTRY %main (a: bf16[1024,1024], b: bf16[1024,1024]) -> bf16[1024,1024] {{
  %a = bf16[1024,1024]{{1,0:T(8,128)(2,1)}} parameter(0)
  %b = bf16[1024,1024]{{1,0:T(8,128)(2,1)}} parameter(1)
{operations}
}}
"""


MATRIX = "bf16[1024,1024]{1,0:T(8,128)(2,1)}"
BYTES = 2 * 1024**2


def test_a_scanned_product_counts_once_for_each_layer():
    cost = read(SCAN)
    assert cost.matmul_flops == 6 * 2 * 4096**3
    assert cost.compute_seconds == pytest.approx(6 * 1_000_000 / V5E.clock)
    # Each layer reads its slice of the weights; activations stay on the chip. The input is brought there once, and the
    # loop's counter is a copy of four bytes.
    assert cost.prefetched_bytes == 2 * 4096**2
    assert cost.hbm_bytes == pytest.approx(6 * 2 * 4096**2 + 2 * 4096**2, abs=1000)
    assert cost.by_component["mlp"] == pytest.approx(cost.adjusted_seconds, rel=1e-4)
    assert cost.top[0].name == "fusion"
    assert cost.top[0].runs == 6
    assert cost.top[0].mxu == pytest.approx(2 * 4096**3 / 131072 / 1_000_000)


def test_what_is_not_a_product_takes_no_longer_than_its_bytes():
    cost = read(program(f"  ROOT %sum = {MATRIX} add(%a, %b), {estimate(100_000)}"))
    assert cost.hbm_bytes == 3 * BYTES
    assert cost.compute_seconds == pytest.approx(100_000 / V5E.clock)
    assert cost.adjusted_seconds == pytest.approx(3 * BYTES / 819e9 / 0.85)
    assert cost.bound == "HBM"


def test_what_is_on_the_chip_takes_no_longer_than_it_would_from_memory():
    inside = MATRIX.replace("}", "S(1)}")
    on_chip = f"  %c = {inside} negate(%a), {estimate(1)}\n  ROOT %sum = {inside} add(%c, %c), {estimate(123)}"
    usual = BYTES / 819e9 / 0.85
    for cycles, seconds in ((100, 100 / V5E.clock), (100_000, 3 * usual)):
        cost = read(program(on_chip.replace("123", str(cycles))))
        assert cost.adjusted_seconds == pytest.approx(1 / V5E.clock + seconds, rel=1e-3)


def test_a_product_takes_no_shorter_than_its_bytes():
    product = f"  ROOT %p = {MATRIX} convolution(%a, %b), dim_labels=bf_io->bf, {estimate(1)}"
    cost = read(program(product))
    assert cost.matmul_flops == 2 * 1024**3
    assert cost.adjusted_seconds == pytest.approx(3 * BYTES / 819e9)
    assert cost.bound == "HBM"


def test_what_is_fetched_in_a_loop_is_hidden_by_that_loop_alone():
    on_chip = "bf16[4096,4096]{1,0:T(8,128)(2,1)S(1)}"
    fetched = SCAN.replace(
        "  %fusion = ",
        f"  %fetch = ({on_chip}, bf16[4096,4096]{{1,0}}, u32[]{{:S(2)}}) copy-start(%x)\n  %fusion = ",
    ).replace('estimated_cycles":"1000000"', 'estimated_cycles":"1"')
    product = f"convolution(%copy-done, %copy-done), dim_labels=bf_io->bf, {estimate(3_000_000)}"
    long = f"  %long = {on_chip} {product}\n  ROOT %out"
    cost = read(fetched.replace("  ROOT %out", long))
    reading = 2 * 4096**2 / 819e9
    assert cost.step_seconds == pytest.approx(6 * 2 * reading + 3_000_000 / V5E.clock, rel=1e-3)
    assert cost.by_category["prefetch"] == pytest.approx(6 * reading, rel=1e-3)


def test_a_product_does_not_read_the_buffers_of_the_gather_that_runs_beside_it():
    whole = "bf16[4096,1024]{1,0:T(8,128)(2,1)}"
    called = f"""%async_collective_fusion.1 (s: bf16[1024,1024], w: bf16[4096,1024], x: bf16[1024,1024]) -> () {{
  %x = {MATRIX} parameter(2)
  %y = {MATRIX} parameter(3)
  %product = {MATRIX} convolution(%x, %y), dim_labels=bf_io->bf
  %s = {MATRIX} parameter(0)
  %w = {whole} parameter(1)
  %gather = {whole} all-gather(%s), replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}
  ROOT %all = ({MATRIX}, {MATRIX}, {whole}, {whole}) tuple(%product, %s, %w, %gather)
}}
"""
    text = program(
        f'  %room = {whole} custom-call(), custom_call_target="AllocateBuffer"\n'
        f"  ROOT %f = ({MATRIX}, {MATRIX}, {whole}, {whole}) fusion(%a, %room, %a, %b), kind=kCustom, "
        f"calls=%async_collective_fusion.1, {estimate(1)}",
        called,
    )
    assert read(text).hbm_bytes == 3 * BYTES


def test_a_collective_reads_what_it_sends_and_writes_what_comes():
    cost = read(program(f"  ROOT %r = {MATRIX} all-reduce(%a), replica_groups={{{{0,1,2,3}}}}, to_apply=%add"))
    assert cost.hbm_bytes == 2 * (2 * 3 / 4 * BYTES)


def test_an_update_in_place_moves_only_what_is_written():
    update = """%update (p0: bf16[1024,1024], p1: bf16[8,1024]) -> bf16[1024,1024] {
  %p0 = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[8,1024]{1,0:T(8,128)(2,1)} parameter(1)
  %zero = s32[] constant(0)
  ROOT %d = bf16[1024,1024]{1,0:T(8,128)(2,1)} dynamic-update-slice(%p0, %p1, %zero, %zero)
}"""
    rows = "bf16[8,1024]{1,0:T(8,128)(2,1)}"
    text = program(
        f"  %rows = {rows} slice(%b), slice={{[0:8], [0:1024]}}, {estimate(10)}\n"
        f"  ROOT %u = {MATRIX} fusion(%a, %rows), kind=kLoop, calls=%update, {estimate(10)}",
        update,
    )
    assert read(text).hbm_bytes == 4 * 2 * 8 * 1024  # the slice is read and written, and again


def test_convolutions_do_not_count_their_padding():
    text = program(
        "  %image = bf16[1,6,6,4]{3,2,1,0} bitcast(%a)\n"
        "  %kernel = bf16[3,3,4,8]{3,2,1,0} bitcast(%b)\n"
        "  ROOT %c = bf16[1,6,6,8]{3,2,1,0} convolution(%image, %kernel), window={size=3x3 pad=1_1x1_1}, "
        f"dim_labels=b01f_01io->b01f, {estimate(10)}"
    )
    pairs = (6 * 3 - 2) ** 2  # in each direction, of 18 pairs two fall on padding
    assert read(text).matmul_flops == 2 * pairs * 4 * 8


def test_a_strided_convolution():
    text = program(
        "  %image = bf16[2,224,224,3]{3,2,1,0} bitcast(%a)\n"
        "  %kernel = bf16[14,14,3,64]{3,2,1,0} bitcast(%b)\n"
        "  ROOT %c = bf16[2,16,16,64]{3,2,1,0} convolution(%image, %kernel), window={size=14x14 stride=14x14}, "
        f"dim_labels=b01f_01io->b01f, {estimate(10)}"
    )
    assert read(text).matmul_flops == 2 * 2 * 16 * 16 * 64 * 14 * 14 * 3


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1},{2,3}}", 2),
        ("replica_groups=[4,8]<=[32]", 8),
        ("replica_groups=[4,8]<=[8,4]T(1,0)", 8),
        ("replica_groups=mesh['data'=2,'fsdp'=16,'tensor'=4] {'fsdp'}", 16),
        ("replica_groups=mesh['data'=2,'fsdp'=16,'tensor'=4] {'data','tensor'}", 8),
        ("replica_groups=mesh['fsdp'=16] {'fsdp':(1)4}", 4),
        ("replica_groups=mesh['data'=2,'fsdp'=16]", 32),
        ("replica_groups={}", 64),
    ],
)
def test_group_sizes(groups: str, size: int):
    assert group_size(f"%x = f32[] all-reduce(%y), channel_id=1, {groups}, to_apply=%add", 64) == size


@pytest.mark.parametrize(
    ("kind", "bytes_sent"),
    [
        ("all-gather", 600),  # three quarters of the 800 that each has in the end
        ("reduce-scatter", 150),  # three quarters of what it has at first
        ("all-reduce", 300),
        ("all-to-all", 150),
        ("collective-permute", 200),
    ],
)
def test_bytes_on_the_wire(kind: str, bytes_sent: int):
    assert wire_bytes(kind, 4, 200, 800) == bytes_sent


def test_a_synchronous_collective_is_part_of_the_step():
    scope = 'metadata={op_name="jit(f)/mlp/psum"}'
    cost = read(program(f"  ROOT %r = {MATRIX} all-reduce(%a), replica_groups={{{{0,1,2,3}}}}, to_apply=%add, {scope}"))
    assert [(each.component, each.kind, each.group, each.synchronous, each.count) for each in cost.collectives] == [
        ("mlp", "all-reduce", 4, True, 1)
    ]
    assert cost.step_seconds == pytest.approx(2 * 3 / 4 * BYTES / (4 * 45e9))
    assert cost.by_component == {"collectives": pytest.approx(cost.step_seconds)}
    assert cost.bound == "interconnect"


def test_an_asynchronous_collective_is_hidden_as_far_as_there_is_something_to_hide_it():
    gathered = "bf16[4096,1024]{1,0:T(8,128)(2,1)}"
    cost = read(
        program(
            f"  %s = ({MATRIX}, {gathered}) all-gather-start(%a), replica_groups=[1,4]<=[4], dimensions={{0}}\n"
            f"  ROOT %d = {gathered} all-gather-done(%s)"
        )
    )
    (gather,) = cost.collectives
    assert gather.wire_bytes == 3 * BYTES
    assert not gather.synchronous
    assert gather.seconds == pytest.approx(3 * BYTES / 180e9)
    assert cost.step_seconds == cost.exposed_seconds == gather.exposed_seconds == gather.seconds  # nothing hides it
    assert cost.by_limit == {"interconnect": gather.seconds}
    assert cost.bound == "interconnect"


def test_a_collective_on_the_sparse_core_is_hidden():
    called = """%offloaded (p: bf16[1024,1024]) -> bf16[256,1024] {
  %p = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %rs = bf16[256,1024]{1,0:T(8,128)(2,1)} reduce-scatter(%p), replica_groups=mesh['x'=4] {'x'}, dimensions={0}
}, execution_thread="sparsecore"
"""
    text = program(
        '  %start = ((), (), (s32[1]{0})) call-start(), async_execution_thread="sparsecore", to_apply=%offloaded, '
        'backend_config={"sparse_core_config":{"offload":"OFFLOAD_COLLECTIVE"}}\n'
        "  ROOT %done = bf16[256,1024]{1,0:T(8,128)(2,1)} call-done(%start)",
        called,
    )
    (scatter,) = read(text).collectives
    assert (scatter.kind, scatter.synchronous, scatter.wire_bytes) == ("reduce-scatter", False, 3 / 4 * BYTES)


def test_a_fused_all_reduce_of_which_a_slice_is_kept_is_a_reduce_scatter():
    called = """%scatter (p: bf16[1024,1024]) -> bf16[256,1024] {
  %p = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %all = bf16[1024,1024]{1,0:T(8,128)(2,1)} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
  %mine = u32[] partition-id()
  %zero = u32[] constant(0)
  ROOT %kept = bf16[256,1024]{1,0:T(8,128)(2,1)} dynamic-slice(%all, %mine, %zero), dynamic_slice_sizes={256,1024}
}"""
    text = program("  ROOT %f = bf16[256,1024]{1,0:T(8,128)(2,1)} fusion(%a), kind=kCustom, calls=%scatter", called)
    (scatter,) = read(text).collectives
    assert (scatter.kind, scatter.synchronous, scatter.wire_bytes) == ("reduce-scatter", True, 3 / 4 * BYTES)


@pytest.mark.parametrize("share_hidden", [0.0, 0.25, 2.0])
def test_a_transfer_between_slices_is_waited_for_as_far_as_nothing_hides_it(share_hidden: float):
    sent = 2 * 2048 * 8 * 128
    seconds = 2 * 3 / 4 * sent / 3.125e9
    cost = read(between_slices(round(share_hidden * seconds * V5E.clock)))
    (reduction,) = cost.collectives
    assert (reduction.kind, reduction.network, reduction.group) == ("all-reduce", "DCN", 4)
    assert reduction.wire_bytes == 2 * 3 / 4 * sent
    assert reduction.seconds == pytest.approx(seconds)
    assert reduction.exposed_seconds == pytest.approx(max(0, 1 - share_hidden) * seconds, abs=1e-8)
    assert cost.step_seconds == pytest.approx(max(1, share_hidden) * seconds, rel=1e-4)


def test_what_is_gathered_between_slices_is_sent_to_each_of_the_others():
    cost = read(between_slices(0, "ALL_GATHER", "bf16[8192,8,128]"))
    assert cost.collectives[0].wire_bytes == 3 * 2 * 2048 * 8 * 128


def kernel(metadata: str) -> str:
    """A program with a Pallas kernel."""
    call = f'custom-call(%a, %b), custom_call_target="tpu_custom_call", backend_config={{{metadata}}}'
    return program(f"  ROOT %attention.3 = {MATRIX} {call}")


def test_a_kernel_with_a_cost_estimate_is_priced_by_it():
    flops = 4e9
    text = kernel(f'"cost_estimate":{{"flops":"{flops:.0f}","transcendentals":"0","bytes_accessed":"1000"}}')
    cost = read(text)
    assert cost.step_seconds == pytest.approx(flops / (0.5 * V5E.peak_flops))
    assert cost.by_category == {"pallas": pytest.approx(cost.step_seconds)}
    assert cost.unpriced == {}


def test_an_attention_kernel_costs_the_blocks_that_it_computes():
    def cycles(name: str, query: str, result: str = "", chip: Chip = V5E) -> float | None:
        given = f"s8[1,1,1]{{2,1,0}}, {query}, {query}, {query}"
        text = f"custom-call(%a, %b), operand_layout_constraints={{{given}}}"
        return kernel_cycles(Instruction(name, result, "custom-call", (), text, False), chip)

    query = "bf16[8,1024,128]{2,1,0}"
    forward = cycles("splash_mha_fwd_segmented.1", query)
    assert forward is not None
    whole = 2 * 2 * 8 * 128 * 1024**2 / V5E.flops_per_cycle  # of two products at the peak
    assert 0.5 * forward < whole < forward
    rows = query.replace("[8", "[3,8")
    assert cycles("splash_mha_fwd_segmented.1", rows) == pytest.approx(3 * forward)
    # JAX 0.10 gives the kernel's scratch arrays first, without heads.
    scratch = "(f32[1024,128]{1,0}, f32[1024,128]{1,0}, bf16[8,1024,128]{2,1,0})"
    assert cycles("splash_mha_fwd_segmented.1", query, scratch) == forward
    assert cycles("splash_mha_fwd_segmented.1", query, "(bf16[8,1024,128]{2,1,0}, f32[8,1024,128])") == forward
    longer = query.replace("1024", "4096")  # of 16 blocks, six are empty
    assert cycles("splash_mha_fwd_segmented.1", longer) == pytest.approx(10 * forward)
    backward = cycles("splash_mha_dkv_segmented.1", rows)
    assert backward is not None
    assert 3 * 2.5 * whole < backward < 3 * 3 * whole  # of five products
    assert cycles("splash_mha_dkv_segmented.1", query) == pytest.approx(backward / 3)
    two_cores = CHIPS["v5p"]
    assert cycles("splash_mha_fwd_segmented.1", rows, chip=two_cores) == 2 * cycles(
        "splash_mha_fwd_segmented.1", query, chip=two_cores
    )
    assert cycles("rope.1", query) is None


def test_an_attention_kernel_for_images_costs_the_keys_that_each_block_of_tokens_has():
    def cycles(rows: int, tokens: int, keys: int) -> float:
        shapes = f"s8[{rows},{tokens},{keys}]{{2,1,0}}, bf16[{rows},8,{keys},128]{{3,2,1,0}}"
        text = f"custom-call(%a, %b), operand_layout_constraints={{{shapes}, bf16[{rows},8,{tokens},128]{{3,2,1,0}}}}"
        shape = f"bf16[{rows},8,{tokens},128]{{3,2,1,0}}"
        found = kernel_cycles(Instruction("image_attention_fwd.1", shape, "custom-call", (), text, False), V5E)
        assert found is not None
        return found

    one = cycles(1, 1024, 256)
    assert one > 2 * 2 * 8 * 128 * 1024 * 256 / V5E.flops_per_cycle  # of two products at the peak
    assert cycles(3, 1024, 256) == pytest.approx(3 * one)
    assert cycles(1, 4096, 256) == pytest.approx(4 * one)  # four blocks
    assert cycles(1, 1024, 512) == pytest.approx(2 * one)  # two, of half the tokens


def test_a_kernel_without_one_is_named():
    cost = read(kernel(""))
    assert cost.unpriced == {"Pallas kernel attention": 1}
    assert cost.adjusted_seconds == 0
    assert cost.by_category == {"prefetch": pytest.approx(3 * BYTES / 819e9)}  # no step is shorter than its bytes take


@pytest.mark.parametrize(
    ("op_name", "expected"),
    [
        ("jit(train_step)/vision/dot_general", "vision"),
        ("jit(train_step)/while/body/eval_jaxpr/transpose(jvp(vision))/while/body/mul", "vision"),
        (
            "jit(f)/transpose(jvp())/while/body/checkpoint/rematted_computation/self_attention/dot_general",
            "self_attention",
        ),
        ("jit(f)/jvp(decoder)/while/body/cross_mlp/dot_general", "mlp"),
        ("jit(f)/cross_attention/resampler/dot_general", "resampler"),
        ("jit(f)/optimizer/add", "optimizer"),
        ("jit(f)/jvp(jit(__call__))/while/body/btnh,bnsh->bnts/dot_general", None),
        ("jit(f)/headless/dot_general", None),
        ("jit(f)/my.head/dot_general", None),
        ("embedding", None),  # an argument of this name
        ("", None),
    ],
)
def test_components_by_scope(op_name: str, expected: str | None):
    assert component(op_name) == expected


def test_a_fusion_without_a_scope_has_that_of_what_it_is_made_of():
    fused = """%fused (p0: bf16[1024,1024], p1: bf16[1024,1024]) -> bf16[1024,1024] {
  %p0 = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(1)
  %small = bf16[8]{0} constant({...}), metadata={op_name="jit(f)/vision/mul"}
  %large = bf16[1024,1024]{1,0:T(8,128)(2,1)} multiply(%p0, %p1), metadata={op_name="jit(f)/head/mul"}
  ROOT %r = bf16[1024,1024]{1,0:T(8,128)(2,1)} negate(%large)SCOPE
}"""
    call = f"  ROOT %f = {MATRIX} fusion(%a, %b), kind=kLoop, calls=%fused, {estimate(100_000)}"
    assert set(read(program(call, fused.replace("SCOPE", ""))).by_component) == {"head"}
    scope = ', metadata={op_name="jit(f)/mlp/neg"}'
    assert set(read(program(call, fused.replace("SCOPE", scope))).by_component) == {"mlp"}
    own = ', metadata={op_name="jit(f)/optimizer/neg"}'
    assert set(read(program(call + own, fused.replace("SCOPE", scope))).by_component) == {"optimizer"}


def test_a_copy_is_of_its_users_component_and_the_rest_is_other():
    copied = (
        f"  %c = {MATRIX} copy(%a), {estimate(10_000)}\n"
        f'  ROOT %n = {MATRIX} negate(%c), {estimate(10_000)}, metadata={{op_name="jit(f)/USER/neg"}}'
    )
    assert set(read(program(copied.replace("USER", "vision"))).by_component) == {"vision"}
    assert set(read(program(copied.replace("USER", "decoder"))).by_component) == {"other"}


def test_every_sum_is_the_step():
    for text in (SCAN, between_slices(1000), kernel("")):
        cost = read(text)
        for sums in (cost.by_component, cost.by_category, cost.by_limit):
            assert sum(sums.values()) == pytest.approx(cost.step_seconds)


def test_mfu_is_the_share_of_the_peak():
    cost = read(SCAN)
    assert cost.mfu(6 * 2 * 4096**3) == pytest.approx(6 * 2 * 4096**3 / 196.608e12 / cost.step_seconds)


@pytest.mark.parametrize(
    ("name", "peak"),
    [("v5e:16x16", 197e12), ("v5p", 459e12), ("TPU v6 lite", 918e12), ("tpu7x:2x2x1", 2307e12 / 2), ("TPU v5", 459e12)],
)
def test_chips_by_topology_and_device_kind(name: str, peak: float):
    assert chip(name).peak_flops == pytest.approx(peak, rel=0.003)


def test_other_chips_are_refused():
    with pytest.raises(ValueError, match="v9 is no TPU that costs can be read for; known: v5e, v5p, v6e, tpu7x"):
        chip("v9:2x2")


def test_of_a_slice_that_is_prefetched_the_slice_counts():
    part = "bf16[256,1024]{1,0:T(8,128)(2,1)S(1)}"
    cost = read(
        program(f"  %s = (({MATRIX}), {part}, s32[]{{:S(2)}}) slice-start(%a)\n  ROOT %d = {part} slice-done(%s)")
    )
    assert cost.prefetched_bytes == cost.hbm_bytes == BYTES / 4


def test_a_weight_that_a_fusion_inside_only_reshapes_is_read():
    flat = "bf16[1048576]{0:T(1024)(128)(2,1)}"
    called = f"""%view (q: bf16[1024,1024]) -> bf16[1048576] {{
  %q = {MATRIX} parameter(0)
  ROOT %flat = {flat} bitcast(%q)
}}

%outer (p: bf16[1024,1024]) -> bf16[1048576] {{
  %p = {MATRIX} parameter(0)
  %inner = {flat} fusion(%p), kind=kLoop, calls=%view
  ROOT %n = bf16[1048576]{{0:T(1024)(128)(2,1)S(1)}} negate(%inner)
}}
"""
    text = program(
        f"  ROOT %f = bf16[1048576]{{0:S(1)}} fusion(%a), kind=kLoop, calls=%outer, {estimate(10_000)}", called
    )
    assert read(text).hbm_bytes == BYTES


def test_of_a_stack_that_a_fusion_inside_lays_out_anew_the_slice_is_read():
    stack, layer = "bf16[8,1024,1024]{2,1,0:T(8,128)(2,1)}", "bf16[1,1024,1024]{2,1,0:T(8,128)(2,1)}"
    called = f"""%retile (q: bf16[8,1024,1024]) -> bf16[8,1024,1024] {{
  %q = {stack} parameter(0)
  ROOT %laid = {stack} copy(%q)
}}

%outer (p: bf16[8,1024,1024]) -> bf16[1,1024,1024] {{
  %p = {stack} parameter(0)
  %zero = s32[] constant(0)
  %inner = {stack} fusion(%p), kind=kLoop, output_to_operand_aliasing={{{{}}: (0, {{}})}}, calls=%retile
  %layer = {layer} dynamic-slice(%inner, %zero, %zero, %zero), dynamic_slice_sizes={{1,1024,1024}}
  ROOT %n = bf16[1,1024,1024]{{2,1,0:T(8,128)(2,1)S(1)}} negate(%layer)
}}
"""
    text = program(
        f'  %all = {stack} custom-call(), custom_call_target="AllocateBuffer"\n'
        f"  ROOT %f = bf16[1,1024,1024]{{2,1,0:S(1)}} fusion(%all), kind=kLoop, calls=%outer, {estimate(10_000)}",
        called,
    )
    assert read(text).hbm_bytes == BYTES
