"""vitwarm: start a vision transformer from procedural data instead of from noise.

Shape letters in tensor code: B batch, T tokens, P patches, D width, N heads, V ids, C classes,
H W pixels.
"""

__version__ = "0.1.0"
