"""Settings of UTGRec's tokenizer (arXiv 2504.04405), its presets and the estimate of what a run costs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from catalex.options import Options, Positive, Rate, with_preset

PRESETS: dict[str, dict[str, Any]] = {
    "utgrec": {},
    "utgrec-paper": {
        "encoder": {"name": "qwen2-vl"},
        "shortcut": False,
        "fine_tune_start": "kept",
        "code_width": 128,
        "vector_weight": 0.0,
        "kmeans_init": False,
        "revive_every": 0,
        "batch": 256,
        "epochs": 3,
        "projection_hidden": 768,
        "dropout": 0.1,
        "alignment_weight": 0.01,
        "quantizer_warmup": 301,
        "learning_rate": 3e-4,
        "decoder_ratio": 1.0,
        "fine_tune_epochs": 20,
        "fine_tune_rate": 1e-4,
        "fine_tune_warmup": 0.0,
    },
}
"""The settings of the paper where they differ from our defaults."""


class UTGRecOptions(Options):
    """How the tokenizer is built and trained. A preset fills in what is not given."""

    preset: Literal["utgrec", "utgrec-paper"] = "utgrec"
    """"utgrec-paper": Qwen2-VL-2B, losses, sizes and schedule of the paper. "utgrec": our validated
    choices."""
    encoder: dict[str, Any] = Field(default_factory=lambda: {"name": "mini"})
    """Name and options of the trainable content encoder. UTGRec: qwen2-vl."""
    image_target: dict[str, Any] | None = None
    """What the visual decoder reconstructs: name and options of an image autoencoder; null for no visual
    decoder.
    UTGRec: MAR's KL-16."""
    levels: int = Field(3, ge=1, le=8)
    """L, codes an item. UTGRec: 3."""
    root: int = Field(256, ge=2, le=65536)
    """K_r, codes of the first level. UTGRec: 256."""
    leaf: int | None = Field(None, ge=2, le=65536)
    """K_f, codes of the codebook that the levels 2 to L share; null: 256 (L - 1), as in UTGRec."""
    code_width: Positive = 256
    """d_c, width of a code vector. UTGRec's official code: 128; ours: as many as root codes, so that W alone
    can move each of them freely."""
    components: Positive = 128
    """Principal components that the shortcut starts from, an equal part of them each level, at most d_c."""
    decoder_width: Positive | None = None
    """d_dec, width of the decoders; null: the encoder's d. UTGRec: 1536, as its encoder."""
    projection_hidden: Positive | None = 768
    """Hidden width of the projection from d to d_c; null: one linear map. UTGRec's official code: 768."""
    dropout: Rate = 0.0
    """Dropout before both linear maps of the projection. UTGRec's official code: 0.1; ours: none, it costs
    neighbours."""
    shortcut: bool = True
    """Whether the frozen content vector reaches H' directly as well, through a linear map that starts at its
    principal components, level by level, and learns; the encoder's part then starts at zero (ours: a
    projection
    that starts at random loses most neighbours, and little data cannot bring them back)."""
    residual: Literal["prefix", "quantized", "none"] = "prefix"
    """What a level quantizes: the difference to the vector before (UTGRec), what the codes before leave over
    (residual quantization, ablation 1), or its vector itself."""
    share_leaf: bool = True
    """Whether levels 2 to L share one codebook (UTGRec)."""
    projected: bool = True
    """Whether code vectors are C W (UTGRec, SimVQ) or free."""
    beta: float = Field(0.25, ge=0)
    """Weight of the commitment term, eq. 6. UTGRec: 0.25."""
    reduction: Literal["mean", "sum"] = "mean"
    """How the levels' codebook losses are joined: (root + mean of leaf) / 2 as in the official code, to
    which the
    published weight belongs, or their sum as in eq. 5."""
    code_weight: float = Field(200.0, ge=0)
    """lambda, weight of the codebook loss. UTGRec: 200."""
    content_weight: float = Field(1.0, ge=0)
    """Weight of the reconstruction of text and image, L_raw and its part of L_rec+ (UTGRec: 1)."""
    image_weight: float = Field(3.0, ge=0)
    """alpha, weight of image against text reconstruction. UTGRec's best: 3."""
    vector_weight: float = Field(1.0, ge=0)
    """Weight of the reconstruction of the frozen content vector beside text and image (ours: it keeps what
    words alone do not). UTGRec has none; the encoder `frozen` needs it."""
    alignment_weight: float = Field(10.0, ge=0)
    """mu, weight of co-occurring alignment. UTGRec's best: 0.01; ours: much more, because H' begins near what
    is known of the content and shall learn what is not. It is what recommenders gain from."""
    cooccurrence_weight: float = Field(0.03, ge=0)
    """eta, weight of co-occurring reconstruction. UTGRec's best: 0.03."""
    temperature: float = Field(0.1, gt=0)
    """tau of the alignment. UTGRec's official code: 0.1."""
    align_on: Literal["projected", "hidden"] = "projected"
    """What is aligned: H' after the projection (official code) or the encoder's H (paper)."""
    image_loss: Literal["diffusion", "mse"] = "diffusion"
    """Loss of the visual decoder. UTGRec: diffusion (MAR, arXiv 2406.11838)."""
    quantizer_warmup: int | None = Field(None, ge=0)
    """First steps of pre-training in which nothing is quantized, at most half of all; null: half of them.
    UTGRec's official code: steps 0 to 300; ours: half, because alignment and codes that are there from the
    first pull against each other, and the codes fall together."""
    kmeans_init: bool = True
    """Place the codebooks by k-means when quantization begins (ours, for small runs)."""
    revive_every: int = Field(100, ge=0)
    """Steps between restarts of unused codes, in the first 80 % of pre-training (ours); 0: never."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak rate of AdamW in pre-training. UTGRec: 3e-4, which serves for a single domain; ours starts near to
    where it goes. Without a warm-up the codes of several domains collapse at this rate; 2e-5 then serves."""
    decoder_ratio: float = Field(10.0, gt=0)
    """Rate of the text and visual decoders as a multiple of the rest's (ours: they start from nothing, the
    rest
    from something). UTGRec: 1."""
    fine_tune_rate: float = Field(3e-4, gt=0)
    """Peak rate of AdamW in fine-tuning. UTGRec: 1e-4. Without `fine_tune_warmup` codes that were placed fall
    together again from 1e-4 on; 2e-5 then serves."""
    weight_decay: float = Field(0.01, ge=0)
    """Of AdamW, on matrices. UTGRec's official code: 0.01."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the rate rises; after them it falls along a cosine (UTGRec)."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest norm of the gradient. UTGRec's official code: 1."""
    batch: Positive = 256
    """Items of a step, over all processes. UTGRec: 16 on each of 16 GPUs."""
    epochs: Positive = 3
    """Passes over the items that occur in training sequences. UTGRec: 3."""
    fine_tune_start: Literal["turned", "followed", "settled", "kept"] = "turned"
    """Where fine-tuning begins. "kept": where pre-training ended (UTGRec). "settled" (ours): with W fitted to
    the domain in closed form, so that codes stay near what they meant; see `TreeCodebooks.settle`. "turned"
    (ours): at the domain's own principal components, with the codes turned to meet them before they settle;
    see `TreeCodebooks.turn_onto`. "followed" (ours): H' as pre-training left it, the codes turned onto it and
    settled. A domain that was not seen falls on a tenth of the root codes otherwise and stays there. With a
    `shortcut` the encoder's part of H' begins again in "turned" and "settled"."""
    fine_tune_warmup: float = Field(0.5, ge=0, lt=1)
    """Share of fine-tuning's steps in which nothing is quantized; the codes turn and settle after them, onto
    what alignment has made of H' by then. UTGRec: none."""
    fine_tune_epochs: Positive = 20
    """The same for a target domain. UTGRec: 20 in the paper, 40 in the official code."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of matrix products; codes, distances and losses are always float32. auto: bf16 on CUDA."""
    checkpoint_seconds: float = Field(120.0, ge=0)
    """Seconds between two checkpoints; no influence on results."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_preset(cls, values: Any) -> Any:
        return with_preset(values, PRESETS)

    @property
    def leaf_size(self) -> int:
        """K_f; of no effect with a single level, where there is no leaf."""
        return self.leaf or 256 * max(self.levels - 1, 1)

    @property
    def needs_positives(self) -> bool:
        """Whether co-occurring items take part at all."""
        return self.alignment_weight > 0 or self.cooccurrence_weight > 0
