"""Evaluation: tasks, prompts, retrieval, scores and the report."""
