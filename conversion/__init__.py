"""IDEFICS checkpoints converted between formats, looked into and compared: `python -m conversion --help`."""
