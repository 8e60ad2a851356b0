"""Pieces of compiled programs' texts, as the TPU compiler writes them, cut down to what matters."""

from idefics_jax.cost import CHIPS, Cost, analyze


def read(text: str, chip: str = "v5e", devices: int = 4) -> Cost:
    """What the program costs."""
    return analyze(text, CHIPS[chip], devices)


def estimate(cycles: int) -> str:
    """A compiler's estimate, as it stands in an operation's attributes."""
    return f'backend_config={{"flag_configs":[],"window_config":{{"estimated_cycles":"{cycles}","is_mask":false}}}}'


_X, _WEIGHTS, _INDEX = "bf16[4096,4096]{1,0:T(8,128)(2,1)}", "bf16[6,4096,4096]{2,1,0:T(8,128)(2,1)}", "s32[]{:T(128)}"
_ON_CHIP = "bf16[4096,4096]{1,0:T(8,128)(2,1)S(1)}"
_CARRY = f"({_INDEX}, {_ON_CHIP}, {_WEIGHTS})"
_PLAIN_CARRY = "(s32[], bf16[4096,4096], bf16[6,4096,4096])"
_MLP = 'metadata={op_name="jit(f)/while/body/mlp/dot_general" stack_frame_id=6}'

#: A loop over stacked weights whose bound is in the condition.
SCAN = f"""HloModule jit_f, is_scheduled=true

%fused (param_0: bf16[4096,4096], param_1: bf16[6,4096,4096], param_2: s32[]) -> bf16[4096,4096] {{
  %param_0 = {_ON_CHIP} parameter(0)
  %param_1 = {_WEIGHTS} parameter(1)
  %param_2 = s32[]{{:T(128)S(6)}} parameter(2)
  %zero = {_INDEX} constant(0)
  %slice = bf16[1,4096,4096]{{2,1,0:T(8,128)(2,1)}} dynamic-slice(%param_1, %param_2, %zero, %zero)
  %view = {_X} bitcast(%slice)
  ROOT %product = {_ON_CHIP} convolution(%param_0, %view), dim_labels=bf_io->bf, {_MLP}
}}

%body (tuple.1: {_PLAIN_CARRY}) -> {_PLAIN_CARRY} {{
  %one = {_INDEX} constant(1)
  %tuple.1 = {_CARRY} parameter(0)
  %index = {_INDEX} get-tuple-element(%tuple.1), index=0
  %next = {_INDEX} add(%index, %one)
  %x = {_ON_CHIP} get-tuple-element(%tuple.1), index=1
  %weights = {_WEIGHTS} get-tuple-element(%tuple.1), index=2
  %fusion = {_ON_CHIP} fusion(%x, %weights, /*index=2*/%index), kind=kOutput, calls=%fused, {estimate(1_000_000)}
  ROOT %result = {_CARRY} tuple(%next, %fusion, %weights)
}}

%condition (tuple.2: {_PLAIN_CARRY}) -> pred[] {{
  %bound = {_INDEX} constant(6)
  %tuple.2 = {_CARRY} parameter(0)
  %at = {_INDEX} get-tuple-element(%tuple.2), index=0
  ROOT %less = pred[]{{:T(512)}} compare(%at, %bound), direction=LT
}}

ENTRY %main (x.1: bf16[4096,4096], w.1: bf16[6,4096,4096]) -> bf16[4096,4096] {{
  %start = {_INDEX} constant(0)
  %x.1 = {_X} parameter(0)
  %w.1 = {_WEIGHTS} parameter(1)
  %copy-start = ({_ON_CHIP}, {_X}, u32[]{{:S(2)}}) copy-start(%x.1)
  %copied = {_INDEX} copy(%start)
  %copy-done = {_ON_CHIP} copy-done(%copy-start)
  %tuple.3 = {_CARRY} tuple(%copied, %copy-done, %w.1)
  %while = {_CARRY} while(%tuple.3), condition=%condition, body=%body
  ROOT %out = {_ON_CHIP} get-tuple-element(%while), index=1
}}
"""


def between_slices(compute_cycles: int, kind: str = "ALL_REDUCE", result: str = "bf16[2048,8,128]") -> str:
    """A transfer among four slices, with an operation of so many cycles between its start and its end."""
    attributes = (
        'is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
        '_xla_host_transfer_rendezvous="psum.7_0",_xla_megascale_target="{1,2,3,4}x{0:3}",'
        f'_xla_megascale_transfer_type="{kind}"}}'
    )
    sent, tiles = "bf16[2048,8,128]{2,1,0:T(8,128)(2,1)}", "{2,1,0:T(8,128)(2,1)}"
    return f"""HloModule jit_f, is_scheduled=true

ENTRY %main (a: bf16[2048,8,128], b: f32[8,128]) -> {result} {{
  %a = {sent} parameter(0)
  %b = f32[8,128]{{1,0:T(8,128)}} parameter(1)
  %after-all = token[] after-all()
  %send = ({sent}, u32[]{{:S(2)}}, token[]) send(%a, %after-all), channel_id=2, {attributes}
  %recv = ({result}{tiles}, u32[]{{:S(2)}}, token[]) recv(%after-all), channel_id=1, {attributes}
  %negated = f32[8,128]{{1,0:T(8,128)}} negate(%b), {estimate(compute_cycles)}
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %recv-done = ({result}{tiles}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  ROOT %out = {result}{tiles} get-tuple-element(%recv-done), index=0
}}
"""
