"""Images and text to arrays, and tokens to text. No module imports JAX."""
