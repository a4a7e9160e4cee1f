"""Recipes of the shipped vision transformers: scenes that are drawn as they are needed, and what is learnt on them."""
