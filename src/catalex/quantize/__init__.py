"""Codebook mathematics on plain vectors; knows nothing of items.

========== ==========================================================
file       idea
========== ==========================================================
distances  float32 squared distances; blocks of fixed shape
kmeans     k-means with k-means++ start, weights, no empty clusters
residual   residual quantization with given codebooks
opq        a rotation, and a codebook for each slice of the vector
vq         a learned codebook with straight-through gradient
tree       one code a level: root and shared leaf codebooks C W
experts    groups of residual codebooks; a vector goes to one group
balanced   codes that serve about equally many vectors
procrustes rotates vectors onto given codebooks and refines these
usage      utilisation, perplexity, collisions, balance
dependence HSIC and CKA: what one set of vectors tells about another
========== ==========================================================
"""

from catalex.quantize.distances import in_blocks, nearest, squared_distances
from catalex.quantize.kmeans import Clusters, kmeans
from catalex.quantize.residual import (
    cumulative,
    reconstruct,
    residual,
    residual_distances,
    residual_encode,
    residual_encoder,
)
from catalex.quantize.vq import Codebook, Quantized, straight_through

__all__ = [
    "Clusters",
    "Codebook",
    "Quantized",
    "cumulative",
    "in_blocks",
    "kmeans",
    "nearest",
    "reconstruct",
    "residual",
    "residual_distances",
    "residual_encode",
    "residual_encoder",
    "squared_distances",
    "straight_through",
]
