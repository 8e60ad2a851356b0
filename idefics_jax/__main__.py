"""`idefics-jax`, and `python -m idefics_jax`."""

from idefics_jax.utils.interrupt import end_at_interrupts


def main() -> int:
    """Run the command as a process, which it ends."""
    end_at_interrupts()
    from idefics_jax.cli import main

    return main()


if __name__ == "__main__":
    main()
