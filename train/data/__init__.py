"""From files of images and text to rows of tokens and pixels, also in worker processes: no module here uses JAX.

(grain imports it where it is installed, but starts no backend.)
"""
