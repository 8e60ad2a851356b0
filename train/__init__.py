"""Fine-tuning: `python -m train`, from a folder of images and text to a better checkpoint."""
