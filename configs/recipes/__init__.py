"""Settings of others, to stand beside their numbers; see docs/recipes.md."""
