"""Distillation recipes as YAML files; `edgekit.compress.recipe` reads them."""
