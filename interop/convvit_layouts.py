"""Layouts of ConvViT."""

from interop.layout import Layout


def layouts() -> tuple[Layout, ...]:
  """All of them."""
  return ()
