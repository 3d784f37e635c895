"""Names and layouts of other people's weights, in and out."""
