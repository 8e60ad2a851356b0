"""`python -m idefics_jax`."""

from idefics_jax.cli import main

if __name__ == "__main__":
    main()
