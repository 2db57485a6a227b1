"""Every setting of an evaluation, typed and documented: `openjepa evaluate … --set KEY=VALUE`."""

from typing import Literal

from pydantic import Field

from openjepa.config import Section
from openjepa.evals.attentive import LEARNING_RATES as ATTENTIVE_RATES
from openjepa.evals.linear import LEARNING_RATES
from openjepa.evals.logistic import STRENGTHS


class EvalDataConfig(Section):
    """The labelled images."""

    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    """Images that cannot be read are left out; the evaluation stops once it is certain that more than this fraction of
    them is (and not before 100 were read)."""


class KnnConfig(Section):
    """The vote of the nearest training images (arXiv 1805.01978)."""

    k: int = Field(20, ge=1)
    """How many vote."""
    temperature: float = Field(0.07, gt=0)
    """A neighbour of cosine similarity s counts exp(s / temperature)."""


class LinearConfig(Section):
    """The paper's linear heads (appendix A.2)."""

    layers: int = Field(4, ge=1, le=4)
    """Last layers that heads may use side by side; 1 for a head of the last layer alone."""
    learning_rates: tuple[float, ...] = Field(LEARNING_RATES, min_length=1)
    """Tried for each head."""
    epochs: int = Field(30, ge=1)
    """Passes over the images that are fitted."""
    min_steps: int = Field(500, ge=1)
    """On small data as many more passes as make up this many steps."""
    batch_size: int = Field(1024, ge=1)
    """Images a step."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty of weights and biases."""


class LinearGridConfig(Section):
    """The same heads on more of an image than one mean; all other settings are those of `linear`."""

    grid: Literal[2, 3] = 3
    """Rows and columns of the regions over which patches are averaged; raw pixels stay what they are."""


class AttentiveConfig(Section):
    """A learned query that attends over the patches, and a linear classifier of what it finds."""

    learning_rates: tuple[float, ...] = Field(ATTENTIVE_RATES, min_length=1)
    """Peaks of AdamW's learning rate to choose from."""
    epochs: int = Field(30, ge=1)
    """Passes over the images that are fitted."""
    min_steps: int = Field(500, ge=1)
    """On small data as many more passes as make up this many steps."""
    batch_size: int = Field(256, ge=1)
    """Images a step."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW's, of all matrices."""
    num_heads: int = Field(8, ge=1)
    """Of the attention."""


class LogisticConfig(Section):
    """Logistic regression."""

    strengths: tuple[float, ...] = Field(STRENGTHS, min_length=1)
    """Values of C to choose from, the weight of the summed losses against the L2 penalty."""


class FewshotConfig(Section):
    """Linear heads fitted on few labels."""

    fractions: tuple[float, ...] = (0.01, 0.1)
    """Parts of each class's training images that keep their labels (the paper: 1 %)."""
    per_class: tuple[int, ...] = ()
    """Numbers of images of each class that keep them."""
    subsets: int = Field(3, ge=1)
    """Subsets of each size, drawn from the seed; their mean and spread are told."""


class FinetuneConfig(Section):
    """Training the encoder further, with labels (the paper's appendix A.1; learning rate for small encoders)."""

    epochs: float = Field(50, gt=0)
    """Passes over the labelled images."""
    batch_size: int = Field(128, ge=2)
    """Images a step."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate of the head and the last layers."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Of the run, in which the learning rate rises."""
    weight_decay: float = Field(0.05, ge=0)
    """AdamW's."""
    layer_decay: float = Field(0.75, gt=0, le=1)
    """Each layer's learning rate over that of the next (1 when trained from scratch)."""
    drop_path: float = Field(0.1, ge=0, lt=1)
    """Chance that an image skips a branch of the last block (the paper: 0.25, for ViT-H)."""
    mixup: float = Field(0.8, ge=0)
    """α of mixup; 0 for none. A batch is mixed or cut, one or the other."""
    cutmix: float = Field(1.0, ge=0)
    """α of cutmix; 0 for none."""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of a label that is given to all classes alike."""
    randaugment_ops: int = Field(2, ge=0)
    """Operations of RandAugment on an image; 0 for none."""
    randaugment_magnitude: int = Field(9, ge=0, le=30)
    """How strong they are."""


class EvalConfig(Section):
    """Everything that defines an evaluation, beside its encoder and data."""

    seed: int = 0
    """Of validation splits, subsets and the order of images."""
    views: int = Field(0, ge=0)
    """Random crops of each training image that classifiers see beside its centre crop."""
    flip: bool = True
    """Mirror half of these, and of what fine-tuning trains on. False for what must not be mirrored, as letters."""
    data: EvalDataConfig = EvalDataConfig()
    knn: KnnConfig = KnnConfig()
    linear: LinearConfig = LinearConfig()
    linear_grid: LinearGridConfig = LinearGridConfig()
    attentive: AttentiveConfig = AttentiveConfig()
    logistic: LogisticConfig = LogisticConfig()
    fewshot: FewshotConfig = FewshotConfig()
    finetune: FinetuneConfig = FinetuneConfig()
