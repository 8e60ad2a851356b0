"""Meshes, what lies on them, and the chips that they are made of. Only this folder names mesh axes."""
