"""Who may look at whom. Masks are boolean, True where a query (row) may look at a key (column)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def causal_mask(valid: Bool[Array, "b t"]) -> Bool[Array, "b t t"]:
    """Tokens look at real tokens: themselves and earlier ones.

    A left-padded row, `valid = [0 0 1 1 1]`; `.` is False:

        key     0 1 2 3 4
        query 0 . . . . .
        query 1 . . . . .
        query 2 . . 1 . .
        query 3 . . 1 1 .
        query 4 . . 1 1 1
    """
    places = jnp.arange(valid.shape[1])
    return (places <= places[:, None]) & valid[:, None]


def image_mask(attends: Bool[Array, "b t i"], patches: int) -> Bool[Array, "b t s"]:
    """Tokens look at every latent (or patch) of the images they attend; `s = i * patches`.

    Two images of 3 latents; a token before any image, one after the first, one after the second:

        image    0     1            latent 0 0 0 1 1 1
        token 0  .     .                   . . . . . .
        token 1  1     .      ->           1 1 1 . . .
        token 2  .     1                   . . . 1 1 1
    """
    return jnp.repeat(attends, patches, axis=-1)


def position_ids(valid: Bool[Array, "b s"]) -> Int[Array, "b s"]:
    """Each real token's place among its row's real tokens; padding gets 1, as in the reference.

    valid     0 0 1 1 1   ->   1 1 0 1 2
    """
    return jnp.where(valid, jnp.cumsum(valid, axis=-1) - 1, 1)
