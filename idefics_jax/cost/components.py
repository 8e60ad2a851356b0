"""Which part of the model an operation belongs to, by the `jax.named_scope` that it was traced in.

The compiler keeps the scopes in an operation's `op_name`, wrapped by what transformed it:
"jit(train_step)/transpose(jvp(vision))/while/body/checkpoint/rematted_computation/dot_general" is the vision tower's.
"""

import re

#: What `jax.named_scope`s may be called, and the component that each is counted with.
SCOPES = {
    "vision": "vision",
    "resampler": "resampler",
    "cross_attention": "cross_attention",
    "self_attention": "self_attention",
    "mlp": "mlp",
    "cross_mlp": "mlp",
    "head": "head",
    "embedding": "embedding",
    "optimizer": "optimizer",
}

#: In the order of the data's flow. "head" has the loss too; "other" is what no scope claims.
COMPONENTS = (*dict.fromkeys(SCOPES.values()), "collectives", "other")

_NAME = re.compile(rf"(?<![\w.\-])({'|'.join(SCOPES)})(?![\w.\-])")


def component(op_name: str) -> str | None:
    """The component of the innermost scope in an `op_name`; None if there is none that is known.

    The last part of the name is the primitive's and no scope.
    """
    found = _NAME.findall(op_name.rpartition("/")[0])
    return SCOPES[found[-1]] if found else None
