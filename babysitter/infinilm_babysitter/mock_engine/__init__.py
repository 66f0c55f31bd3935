"""An OpenAI-compatible engine without a model: what a fresh machine serves.

Answers are made up but deterministic, paced like a real engine's, and counted in tokens, so the
whole system can be tried, tested and measured before a real engine is named.
"""
