"""`python -m conversion`."""

from idefics_jax.utils.interrupt import end_at_interrupts

if __name__ == "__main__":
    end_at_interrupts()
    from idefics_jax.cli.process import run_process

    from .cli import main

    run_process(main)
