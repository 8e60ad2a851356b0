"""`python -m conversion`."""

from idefics_jax.cli.process import run_process

from .cli import main

if __name__ == "__main__":
    run_process(main)
