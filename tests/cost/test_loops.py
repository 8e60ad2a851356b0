"""How often loops run."""

import pytest

from idefics_jax.cost import CHIPS, analyze
from idefics_jax.cost.hlo import parse
from idefics_jax.cost.loops import trip_count
from tests.support.hlo_snippets import SCAN, read


def trips(text: str) -> int | None:
    """Of the one loop of a program's entry."""
    program = parse(text)
    owner = program.computations[program.entry]
    return trip_count(program, owner, next(each for each in owner.instructions if each.opcode == "while"))


def loop(*, start: str = "0", step: str = "1", bound: str = "10", direction: str = "LT", carried: str = "99") -> str:
    """A loop whose tuple has its counter and another number, `carried`; "other" stands for that one."""

    def value(name: str, tuple_name: str, of: str) -> str:
        if of == "other":
            return f"  %{name} = s32[] get-tuple-element(%{tuple_name}), index=1"
        return f"  %{name} = s32[] constant({of})"

    return f"""HloModule loop
%add_fusion (p0: s32[], p1: s32[]) -> s32[] {{
  %p0 = s32[] parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %sum = s32[] add(%p0, %p1)
}}
%body (t: (s32[], s32[])) -> (s32[], s32[]) {{
  %t = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] get-tuple-element(%t), index=1
{value("step", "t", step)}
  %next = s32[] fusion(%i, %step), kind=kLoop, calls=%add_fusion
  ROOT %r = (s32[], s32[]) tuple(%next, %n)
}}
%less (q0: s32[], q1: s32[]) -> pred[] {{
  %q0 = s32[] parameter(0)
  %q1 = s32[] parameter(1)
  ROOT %c = pred[] compare(%q0, %q1), direction={direction}
}}
%cond (u: (s32[], s32[])) -> pred[] {{
  %u = (s32[], s32[]) parameter(0)
  %j = s32[] get-tuple-element(%u), index=0
{value("bound", "u", bound)}
  ROOT %f = pred[] fusion(%j, %bound), kind=kLoop, calls=%less
}}
ENTRY %main () -> (s32[], s32[]) {{
  %start = s32[] constant({start})
  %copied = s32[] copy(%start)
  %carried = s32[] constant({carried})
  %tuple = (s32[], s32[]) tuple(%copied, %carried)
  ROOT %while = (s32[], s32[]) while(%tuple), condition=%cond, body=%body
}}
"""


def test_a_scan_is_as_long_as_what_it_scans():
    assert trips(SCAN) == 6


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 10),
        ({"start": "4"}, 6),
        ({"direction": "LE"}, 11),
        ({"direction": "NE"}, 10),
        ({"step": "3"}, 4),  # 0, 3, 6, 9
        ({"bound": "other", "carried": "7"}, 7),
        ({"step": "other", "carried": "2"}, 5),
        ({"start": "20"}, 0),
    ],
)
def test_start_bound_and_step(changes: dict[str, str], expected: int):
    assert trips(loop(**changes)) == expected


def test_what_the_compiler_knows_is_believed():
    known = 'body=%body, backend_config={"known_trip_count":{"n":"42"}}'
    assert trips(loop().replace("body=%body", known)) == 42


def test_a_length_that_depends_on_data_is_named_and_counts_once():
    text = SCAN.replace("%bound = s32[]{:T(128)} constant(6)", "%bound = s32[]{:T(128)} rng-bit-generator()")
    assert trips(text) is None
    cost = read(text)
    assert cost.unknown_loops == ("while",)
    assert cost.matmul_flops == 2 * 4096**3


def test_of_a_loop_of_unknown_length_one_turn_can_be_read_or_as_many_as_are_told():
    text = SCAN.replace("%bound = s32[]{:T(128)} constant(6)", "%bound = s32[]{:T(128)} rng-bit-generator()")
    once, whole = (analyze(text, CHIPS["v5e"], 1, turn=turn) for turn in (True, False))
    assert once.matmul_flops == whole.matmul_flops == 2 * 4096**3
    assert whole.hbm_bytes - once.hbm_bytes == pytest.approx(2 * 4096**2, abs=1000)  # what comes before the loop
    known = analyze(text, CHIPS["v5e"], 1, turns=5)
    assert known.matmul_flops == 5 * 2 * 4096**3
    assert known.unknown_loops == ()
    assert analyze(text, CHIPS["v5e"], 1, turns=0).matmul_flops == 0  # such as for images where a prompt has none
    with pytest.raises(ValueError, match="no loop"):
        analyze(SCAN, CHIPS["v5e"], 1, turn=True)
