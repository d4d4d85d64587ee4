"""Everything that can be set about training, one documented field per knob.

Knows no files and no torch. Defaults are the release's for MM-AmazonTitles-300K (its newest configuration);
``presets.py`` holds named changes to them, ``config_reading.py`` reads them. Contradictions are refused at construction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mufin.errors import ConfigError
from mufin.inputs import InputSpec


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class EncoderConfig:
    """One transformer of the item encoder."""

    name: str | None = None
    """Name on the model hub or a local folder; None: random weights of the sizes in ``options``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """``transformers`` config fields of a random encoder, ``model_type`` among them."""
    trainable_layers: int | None = None
    """Last blocks that are trained; None: the whole encoder, 0: the encoder is frozen."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    def check(self, role: str) -> None:
        """Raise ConfigError for a contradiction; ``role``: its key in a config, text or image."""
        named = f"--set {role}.name=FOLDER_OR_NAME"
        require(
            self.name is None or not self.options,
            f"{role} encoder {self.name!r} is named, so {role}.options cannot be set: leave them out, or --set {role}.name=null",
        )
        require(
            self.name is not None or "model_type" in self.options,
            f"the {role} encoder needs a name or options.model_type: {named}, or "
            f"--set {role}.options='{{\"model_type\": ...}}'",
        )
        layers = f"{role}.trainable_layers is {self.trainable_layers}"
        require((self.trainable_layers or 0) >= 0, f"{layers}, needs 0 or more, or null for all of them")
        untrained = self.options.get("model_type") == "mufin-descriptor"  # has no weights at all
        require(
            self.name is not None or self.trainable_layers is None or untrained,
            f"{layers} without {role}.name, and a random encoder cannot be frozen: {named}, or --set {role}.trainable_layers=null",
        )


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of what MUFIN adds to the encoders."""

    dimension: int = 192
    """D, the shared embedding."""
    attention_heads: int = 1
    """H of self- and cross-attention; 1 is the exact folded path in serving."""
    dropout: float = 0.1
    """On attention weights and in the adapters of the frozen-feature ranker."""
    feature_dropout: float = 0.0
    """On a title's features before they are projected."""
    word_vectors: int = 0
    """R, size of the latent semantic vector of a title's tokens and token pairs, beside the title encoder's features
    and computed in the same graph; 0: none."""
    spectral_norm: bool = True
    """Divide every added projection by its largest singular value, as the release does."""
    legacy_heads: bool = False
    """Reproduce the release's reshape without permute for H > 1 (docs/network.md)."""
    self_attention: bool = True
    """False: bags are averaged as they come (ablation)."""
    cross_attention: bool = True
    """False: the pooled product meets the classifiers directly (ablation; the release's MufinOva)."""
    early_fusion: bool = False
    """True: the title encoder reads the mean of an item's image vectors as its first token, as ViXML does with each of
    them; the images stay in the bag, too. Module 3's vectors of titles hold all images, whatever ``image_dropout`` says.
    For comparison in training: such a network is not exported."""

    def __post_init__(self) -> None:
        require(self.dimension > 0, f"dimension is {self.dimension}, must be positive")
        require(
            self.attention_heads > 0 and self.dimension % self.attention_heads == 0,
            f"dimension {self.dimension} is no multiple of attention_heads {self.attention_heads}",
        )
        for name in ("dropout", "feature_dropout"):
            require(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}, must lie in 0..1")
        require(self.word_vectors >= 0, f"word_vectors is {self.word_vectors}, needs 0 or more")


@dataclass(frozen=True)
class SiameseConfig:
    """Module 1: item encoder with clustered in-batch negatives."""

    epochs: int = 300
    """Passes over the training products."""
    batch_size: int = 1023
    """Products a step; each brings one of its labels."""
    learning_rate: float = 2e-4
    """Of every parameter but those with a rate of their own."""
    backbone_learning_rate: float | None = None
    """Of the encoders' own layers, as far as they are trained; null: the same as the rest."""
    weight_decay: float = 0.01
    """AdamW's."""
    warmup_epochs: float = 1.0
    """Linear rise of the learning rate; then linear decay to 0."""
    loss: Literal["margin", "softmax"] = "margin"
    """margin: hinge over the hardest in-batch negatives; softmax: multi-positive cross entropy."""
    margin: float = 0.3
    """Of the hinge."""
    hard_negatives: int = 10
    """Hardest in-batch negatives of each product (margin loss)."""
    temperature: float = 0.1
    """tau: softmax weights of the negatives (margin), or of the whole loss (softmax)."""
    accumulation: int = 1
    """Batches a step of the optimiser."""
    random_epochs: int = 20
    """First epochs with uniformly shuffled batches; clusters after that."""
    cluster_size: int = 32
    """Products in a cluster at the most; a batch is a row of neighbouring clusters."""
    recluster_epochs: int = 5
    """Epochs between two clusterings."""
    hard_positives: int = 0
    """Extra positives a product drawn with weight 1.01 - cosine; 0: one uniform positive."""
    label_negatives: int = 0
    """Labels drawn from all of them that a batch is compared with beside its own (softmax loss); as many as the
    catalogue has, or more: every step compares with all labels."""
    label_to_product_weight: float = 0.0
    """Weight of the same loss taken the other way, each label against the batch's products (softmax loss); 0: none."""
    classifier_weight: float = 0.0
    """Weight of the same loss on classifier scores of the batch's labels. The encoder then keeps what only the
    classifiers can use; 0: classifiers are first trained in module 4, as in the release."""
    classifier_learning_rate: float = 1e-2
    """Of the labels' vectors and gates, where ``classifier_weight`` is not 0."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"siamese.epochs is {self.epochs}, needs at least 1")
        require(
            self.batch_size > 2,
            f"siamese.batch_size is {self.batch_size}: in-batch negatives need at least 3",
        )
        require((self.backbone_learning_rate or 1.0) > 0, "backbone_learning_rate must be positive, or null")
        require(self.learning_rate > 0 and self.temperature > 0, "learning_rate and temperature must be positive")
        require(self.weight_decay >= 0, f"siamese.weight_decay is {self.weight_decay}, needs 0 or more")
        require(
            self.classifier_learning_rate >= 0,
            f"siamese.classifier_learning_rate is {self.classifier_learning_rate}, needs 0 or more",
        )
        require(self.accumulation >= 1, f"siamese.accumulation is {self.accumulation}, needs at least 1")
        require(self.hard_negatives >= 1, f"siamese.hard_negatives is {self.hard_negatives}, needs at least 1")
        require(min(self.random_epochs, self.warmup_epochs) >= 0, "random_epochs and warmup_epochs need 0 or more")
        require(self.cluster_size >= 2, f"cluster_size is {self.cluster_size}, needs at least 2")
        require(self.recluster_epochs >= 1, f"recluster_epochs is {self.recluster_epochs}, needs at least 1")
        require(self.hard_positives >= 0, f"hard_positives is {self.hard_positives}, needs 0 or more")
        require(self.label_negatives >= 0, f"label_negatives is {self.label_negatives}, needs 0 or more")
        require(
            not self.label_negatives or (self.loss == "softmax" and not self.hard_positives),
            f"label_negatives is {self.label_negatives}: set loss=softmax and hard_positives=0 with it",
        )
        require(
            self.label_to_product_weight >= 0 and (not self.label_to_product_weight or self.loss == "softmax"),
            f"label_to_product_weight is {self.label_to_product_weight} with loss {self.loss}: needs 0 or more, and "
            "loss=softmax where it is not 0",
        )
        require(self.classifier_weight >= 0, f"classifier_weight is {self.classifier_weight}, needs 0 or more")


@dataclass(frozen=True)
class ShortlistConfig:
    """Module 2: the nearest labels of every product."""

    size: int = 300
    """K, labels handed to the ranker."""
    head_frequency: int = 1000
    """Labels with at least so many training products are searched exactly."""
    exact_labels: int = 50_000
    """Up to so many labels the whole search is exact; beyond, HNSW as in the release."""
    prototype_weight: float = 0.0
    """Weight of the mean of a label's training products in the vector that it is found by, its prototype, beside its own
    embedding's; 0: its embedding alone. Each search over all labels, at evaluations, too, embeds all training products once."""
    product_vectors: int = 0
    """Centroids of its training products by which a label is found, too, at the most; rounded down to a power of two.
    This and the next are for comparison in training: such a run is not exported."""
    modality_vectors: bool = False
    """True: a label that has both is found by its title alone and by its images alone, too."""

    @property
    def more_than_embeddings(self) -> bool:
        """Whether labels are found by more than their own embeddings."""
        return self.prototype_weight > 0 or self.several_vectors

    @property
    def several_vectors(self) -> bool:
        """Whether labels have more than one vector."""
        return self.product_vectors > 0 or self.modality_vectors

    def __post_init__(self) -> None:
        require(0 <= self.prototype_weight <= 1, f"prototype_weight is {self.prototype_weight}, must lie in 0..1")
        require(self.product_vectors >= 0, f"product_vectors is {self.product_vectors}, needs 0 or more")
        require(self.head_frequency >= 0, f"shortlist.head_frequency is {self.head_frequency}, needs 0 or more")
        require(self.size >= 1, f"shortlist.size is {self.size}, needs at least 1")


@dataclass(frozen=True)
class RankerConfig:
    """Module 4: cross attention and one classifier a label."""

    epochs: int = 20
    """Passes over the training products; 0 leaves the module out."""
    batch_size: int = 400
    """Products a step."""
    accumulation: int = 1
    """Batches a step of the optimiser."""
    encoder_learning_rate: float = 5e-4
    """Of encoders (or adapters) and self-attention."""
    cross_learning_rate: float = 5e-4
    """Of cross attention."""
    classifier_learning_rate: float = 5e-3
    """Of the labels' vectors and gates."""
    weight_decay: float = 0.01
    """AdamW's; never on classifiers."""
    warmup_epochs: float = 1.0
    """Linear rise of the learning rates; then linear decay to 0."""
    negatives: int = 12
    """Labels drawn from the shortlist that are not relevant."""
    positives: int = 2
    """Relevant labels drawn, from the shortlist or not."""
    random_negatives: int = 0
    """Further negatives drawn from all labels."""
    drop_hardest: int = 1
    """Best non-relevant labels of the shortlist never drawn: likely missing positives."""
    loss: Literal["cosine", "bce"] = "cosine"
    """cosine: 1 - s and relu(s - margin); bce: logistic loss of the scaled score."""
    margin: float = 0.5
    """Score that parts relevant from not relevant, in both losses."""
    scale: float = 20.0
    """Of the score in the logistic loss."""
    distillation_weight: float = 0.0
    """Weight of a loss that has the shortlist's cosines rank the drawn candidates as the classifiers' scores do; 0: none."""
    reshortlist_epochs: int = 0
    """Epochs between refreshed shortlists when encoders are trained; 0: never."""

    def __post_init__(self) -> None:
        require(self.epochs >= 0, f"ranker epochs is {self.epochs}, needs 0 or more")
        require(self.batch_size >= 1, f"ranker batch_size is {self.batch_size}, needs at least 1")
        require(self.positives >= 1, "a ranker that draws no positives learns nothing: positives needs at least 1")
        require(self.negatives + self.random_negatives >= 1, "negatives + random_negatives needs at least 1")
        rates = (self.encoder_learning_rate, self.cross_learning_rate, self.classifier_learning_rate)
        require(min(rates) >= 0 and max(rates) > 0, f"ranker learning rates are {rates}: need 0 or more, one above 0")
        require(self.weight_decay >= 0, f"ranker weight_decay is {self.weight_decay}, needs 0 or more")
        require(self.accumulation >= 1, f"ranker accumulation is {self.accumulation}, needs at least 1")
        require(self.scale > 0, f"ranker scale is {self.scale}, must be positive")
        require(min(self.warmup_epochs, self.reshortlist_epochs) >= 0, "ranker epochs counts need 0 or more")
        require(self.distillation_weight >= 0, f"distillation_weight is {self.distillation_weight}, needs 0 or more")
        require(self.drop_hardest >= 0, f"drop_hardest is {self.drop_hardest}, needs 0 or more")


@dataclass(frozen=True)
class CombinationConfig:
    """The learned combination of all scores, with evidence from training products and title words (docs/training.md)."""

    folds: int = 0
    """Networks trained without a part of the training products, to learn the combination from; each costs as much as
    the training itself. 0: no combination, scores are fused by one weight."""
    most_lists: int = 12_000
    """Products that teach the combination at the most, the same share of each fold: a list of candidates and what is
    known of them takes some 55 KB, and is held over three times while it is learned from. More are drawn by the seed."""
    exact_products: int = 50_000
    """Training products up to which a product is compared with every one; of more, with those in the lists nearest to it
    (docs/training.md)."""
    tail_calibration: float = 0.0
    """What a label loses for each unit of log(1 + its training products), in standard deviations of the combined score:
    above 0, rare labels are recommended more often, at the cost of accuracy over all (docs/experiments.md)."""

    def __post_init__(self) -> None:
        require(
            self.tail_calibration == 0 or self.folds >= 2,
            f"combination.tail_calibration is {self.tail_calibration} and folds {self.folds}: it changes a combination, set folds",
        )
        require(self.exact_products >= 1, f"combination.exact_products is {self.exact_products}, needs at least 1")
        require(self.folds == 0 or self.folds >= 2, f"combination.folds is {self.folds}, needs 0, or 2 or more")
        require(
            self.most_lists >= max(self.folds, 1),
            f"combination.most_lists is {self.most_lists} with {self.folds} folds: each needs at least one",
        )


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run. Frozen, saved with every checkpoint."""

    text: EncoderConfig
    """Title encoder."""
    image: EncoderConfig
    """Image encoder."""
    inputs: InputSpec = InputSpec()  # noqa: RUF009 - frozen, so that sharing one is safe
    """How items become arrays."""
    network: NetworkConfig = NetworkConfig()
    """What stands on the encoders."""
    siamese: SiameseConfig = SiameseConfig()
    """Module 1."""
    shortlist: ShortlistConfig = ShortlistConfig()
    """Module 2."""
    frozen_ranker: RankerConfig = RankerConfig()
    """Module 4 on the frozen features of module 3."""
    ranker: RankerConfig = RankerConfig(
        batch_size=200, encoder_learning_rate=1e-5, cross_learning_rate=1e-4, classifier_learning_rate=1e-3
    )
    """Module 4 end to end."""
    combination: CombinationConfig = CombinationConfig()
    """How scores are joined."""
    seed: int = 22
    """Of everything random."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of forward passes; weights and optimiser stay fp32."""
    sparse_classifiers: bool = False
    """SparseAdam on the classifiers: steps touch only the labels of the batch."""
    classifier_init: Literal["labels", "random", "siamese"] = "labels"
    """Classifier vectors start module 4 from the label embeddings, random as in the release (Q6), or from what
    module 1 made of them (``siamese.classifier_weight``)."""
    carry_self_attention: bool = True
    """False: module 4 starts self-attention afresh, as the release does by accident (Q3)."""
    image_dropout: float = 0.0
    """Probability that a training image is left out; never the last thing an item has."""
    vocabulary_size: int = 30_000
    """Of the WordPiece tokenizer trained when no text encoder is named."""
    encode_batch_size: int = 512
    """Items a forward pass without gradients."""
    validation_fraction: float = 0.1
    """Cut from train when the catalogue has no valid.csv."""
    refit: Literal["none", "evidence", "network"] = "none"
    """What learns from validation products, too, once they have chosen all there is to choose. evidence: they stand among
    the training products that the combination compares a request with; network: it is trained once more besides. Figures
    of the validation split are those from before."""
    evaluate_epochs: int = 1
    """Epochs between two evaluations on the validation split."""
    checkpoint_minutes: float = 10.0
    """Longest time between two checkpoints inside an epoch; every epoch ends with one, unless one is ten seconds old."""

    def __post_init__(self) -> None:
        self.text.check("text")
        self.image.check("image")
        require(0 <= self.image_dropout < 1, f"image_dropout is {self.image_dropout}, must lie in 0..1")
        require(0 < self.validation_fraction < 0.5, f"validation_fraction is {self.validation_fraction}")
        require(
            self.frozen_ranker.epochs + self.ranker.epochs > 0,
            "frozen_ranker.epochs and ranker.epochs are both 0: classifiers would stay untrained",
        )
        require(
            (self.classifier_init == "siamese") == (self.siamese.classifier_weight > 0),
            f"classifier_init is {self.classifier_init!r} and siamese.classifier_weight {self.siamese.classifier_weight}: "
            "set classifier_init=siamese exactly when module 1 trains classifiers",
        )
        require(
            self.refit != "evidence" or self.combination.folds > 0,
            "refit is 'evidence' and combination.folds 0: without a combination there is no evidence; set refit=network or none",
        )
        require(
            not self.network.early_fusion or self.text.trainable_layers != 0,
            "network.early_fusion is true and text.trainable_layers 0: a frozen title encoder has learned to read no images; "
            "train layers of it, or set early_fusion=false",
        )
        require(self.encode_batch_size >= 1, f"encode_batch_size is {self.encode_batch_size}, needs at least 1")
        require(0 <= self.seed < 2**64, f"seed is {self.seed}, must lie in 0..{2**64 - 1}")
        require(self.checkpoint_minutes >= 0, f"checkpoint_minutes is {self.checkpoint_minutes}, needs 0 or more")
        require(self.vocabulary_size >= 32, f"vocabulary_size is {self.vocabulary_size}, needs at least 32")
        require(self.evaluate_epochs >= 1, f"evaluate_epochs is {self.evaluate_epochs}, needs at least 1")

    def to_json(self) -> dict[str, Any]:
        """Plain nested values."""
        return asdict(self)
