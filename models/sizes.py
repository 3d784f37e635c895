"""Sizes of encoders: fields by the letter in their word."""

# Ti is the extrapolation that solo-learn uses: 12 heads like MoCo v3's S and B
# (DINO's Ti has 3 and its S has 6). Mini is for 32-px images and patch 4; three
# heads of 32 are faster on a CPU than four of 24.
VIT = {
  'mini': dict(width=96, depth=6, num_heads=3),
  'ti': dict(width=192, depth=12, num_heads=12),
  's': dict(width=384, depth=12, num_heads=12),
  'b': dict(width=768, depth=12, num_heads=12),
  'l': dict(width=1024, depth=24, num_heads=16),
  'h': dict(width=1280, depth=32, num_heads=16),
}

# T to L as published, 32 channels per head. Mini is for 32-px images: with
# patch 2 its maps are 16, 8, 4 and 2 wide.
SWIN = {
  'mini': dict(
    patch_size=2,
    width=32,
    depths=(2, 2, 2, 2),
    num_heads=(1, 2, 4, 8),
    window=4,
  ),
  't': dict(width=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
  's': dict(width=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
  'b': dict(width=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
  'l': dict(width=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}

# S and B as published. Mini is for 32-px images: maps of 16, 8 and 8, so that
# the last stage has the grid of vit_mini4.
CONVVIT = {
  'mini': dict(
    patch_sizes=(2, 2, 1), widths=(32, 64, 96), depths=(1, 1, 4), num_heads=3
  ),
  's': dict(widths=(128, 256, 384), depths=(2, 2, 11), num_heads=6),
  'b': dict(widths=(256, 384, 768), depths=(2, 2, 11), num_heads=12),
}
