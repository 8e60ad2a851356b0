"""Records of images and text as training and evaluation read them: files, columns and forms. No module uses JAX."""
