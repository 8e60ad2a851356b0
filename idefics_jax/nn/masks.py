"""Attention masks: boolean, True where a query (row) may attend to a key (column)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def causal_mask(valid: Bool[Array, "b t"], segment_ids: Int[Array, "b t"] | None = None) -> Bool[Array, "b t t"]:
    """Tokens look at real tokens: themselves and earlier ones, of their own segment where there are segments.

    A left-padded row, `valid = [0 0 1 1 1]`; `.` is False:

        key     0 1 2 3 4
        query 0 . . . . .
        query 1 . . . . .
        query 2 . . 1 . .
        query 3 . . 1 1 .
        query 4 . . 1 1 1

    Two documents packed into a row and padding behind them, `segment_ids = [1 1 2 2 0]`, `valid = [1 1 1 1 0]`:

        key     0 1 2 3 4
        query 0 1 . . . .
        query 1 1 1 . . .
        query 2 . . 1 . .
        query 3 . . 1 1 .
        query 4 . . . . .
    """
    places = jnp.arange(valid.shape[1])
    mask = (places <= places[:, None]) & valid[:, None]
    return mask if segment_ids is None else mask & (segment_ids[:, :, None] == segment_ids[:, None, :])


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
