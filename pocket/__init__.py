"""The recipe of the pocket model, the small IDEFICS that the package ships: its data, its training, its measures."""
