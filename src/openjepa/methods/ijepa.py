"""I-JEPA: predict the representation of hidden blocks of an image from a visible one (arXiv 2301.08243, section 3).

A context encoder sees the visible patches. A predictor, told only where, predicts what the target
encoder says about hidden blocks. The target encoder sees the whole image, gets no gradient, and is
the exponential moving average of the context encoder. The loss lives in representation space.

Shapes: B images, C context blocks, M target blocks, Nc and Nt patches in each, N patches, D width.
"""

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.masks import Masks
from openjepa.methods.losses import Loss, pick_patches
from openjepa.methods.method import Method, Output, TargetNorm, Targets
from openjepa.methods.whole_image import NUM_LAYERS, WholeImage, describe
from openjepa.models.architecture import Architecture
from openjepa.models.predictor import Predictor
from openjepa.models.transformer import init_weights
from openjepa.models.vit import VisionTransformer


class IJEPA(Method):
    """Context encoder, predictor and target encoder, with the objective that trains them. Arguments as `Method`'s.

    The target encoder starts as a copy of the context encoder. Of the normalisations of targets, `none` is the
    paper's, `layer` the authors' code's.

    Attributes:
        pixel_share: Of the loss, that of the pixels of hidden patches; 0, the paper's, until `ask_for_pixels`.
        whole_image: The whole image as one more target; None, the paper's, until `ask_for_the_whole`.
        teacher: What sets the targets, held still; None, the paper's, until `renew_teacher`: the target encoder does.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        predictor: Predictor,
        *,
        loss: Loss = "smooth_l1",
        target_norm: TargetNorm = "layer",
    ) -> None:
        super().__init__(encoder, predictor, loss=loss, target_norm=target_norm)
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.pixel_share = 0.0
        self.whole_image: WholeImage | None = None
        self.whole_weight = 0.0
        self.teacher: VisionTransformer | None = None

    def renew_teacher(self) -> None:
        """Let a copy of the target encoder as it is now set the targets until the next call.

        The target encoder goes on as the moving average, and as what features are taken from. Held for a whole run
        after a first stage, this is SALT (arXiv 2509.24317); what it gives is in docs/log.md.
        """
        if self.teacher is None:
            self.teacher = copy.deepcopy(self.target_encoder)
        else:  # in place, for what holds on to its modules: a compiled graph, DDP
            self.teacher.load_state_dict(self.target_encoder.state_dict())

    def ask_for_pixels(self, share: float, *, seed: int = 0) -> None:
        """Let the loss ask for the pixels of hidden patches, too, read from the predictor by a second last layer.

        What the pixels say is there from the first step, when the target encoder has nothing to say yet. Measured with
        AdamW: a point better by the linear probe than without (docs/log.md).

        Args:
            share: Of the loss, in (0, 1).
            seed: Of the layer's weights.
        """
        num_pixels = self.context_encoder.patch_embed.proj.weight[0].numel()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.pixel_proj = nn.Linear(self.predictor.predictor_proj.in_features, num_pixels)
            self.pixel_proj.apply(init_weights)
        self.pixel_share = share

    def ask_for_the_whole(self, weight: float, *, seed: int = 0) -> None:
        """Let the loss ask for the whole image's representation, too, from when it is fitted (`WholeImage.fit`).

        Args:
            weight: Weight of the whole-image loss; the patch loss has weight 1. Needs a frozen teacher.
            seed: Of the layers' weights.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.whole_image = WholeImage(self.shape.embed_dim, self.shape.depth)
        self.whole_weight = weight

    def forward(self, images: Tensor, masks: Masks, asked: Targets | None = None) -> Output:
        """As `Method.forward`, with pixels and the whole image in the loss if asked for."""
        asked = asked or self.ask(images)
        out = super().forward(images, masks, asked)
        if self.pixel_share:
            out = replace(
                out, loss=torch.lerp(out.loss, self._pixel_loss(images, masks, out), self.pixel_share)
            )
        if self.whole_image is not None and asked.whole is not None:
            out = replace(out, loss=out.loss + self.whole_weight * self.whole_image(out.context, asked.whole))
        return out

    @torch.no_grad()
    def ask(self, images: Tensor) -> Targets:
        """As `Method.ask`; both targets are of one pass of the teacher, that of the whole image of the view at hand."""
        if self.teacher is None or self.whole_image is None or not self.whole_image.fitted:
            return super().ask(images)
        layers = self.teacher.layers(images, NUM_LAYERS)  # (B, L, N, D)
        return Targets(self.normalise_targets(layers[:, -1]), self.whole_image.targets(describe(layers)))

    def _pixel_loss(self, images: Tensor, masks: Masks, out: Output) -> Tensor:
        pixels = self.context_encoder.patch_embed.cut(images)
        pixels = pick_patches(F.layer_norm(pixels, pixels.shape[-1:]), masks.target)[:, None]
        drawn = self.pixel_proj(out.answers)  # (B, C, M, Nt, c·h·w)
        return F.mse_loss(drawn.float(), pixels.expand_as(drawn))

    def raw_targets(self, images: Tensor) -> Tensor:
        """What the target encoder, or the teacher, says about whole images: (B, c, H, W) -> (B, N, D)."""
        return (self.teacher or self.target_encoder)(images)

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """One step of the moving average: target ← m·target + (1−m)·context.

        Its horizon is 1/(1−m) steps: a context encoder of k steps ago weighs (1−m)·mᵏ.

        Args:
            momentum: m in [0, 1].

        Raises:
            ValueError: m outside [0, 1].
        """
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"EMA momentum must lie in [0, 1], got {momentum}")
        torch._foreach_lerp_(
            list(self.target_encoder.parameters()), list(self.context_encoder.parameters()), 1.0 - momentum
        )


def build_ijepa(
    architecture: Architecture, *, loss: Loss = "smooth_l1", target_norm: TargetNorm = "layer", seed: int = 0
) -> IJEPA:
    """A new model of this shape, its weights drawn from the seed (the global generator is left as it was)."""
    encoder, predictor = architecture.build(seed=seed)
    model = IJEPA(encoder, predictor, loss=loss, target_norm=target_norm)
    model.architecture = architecture
    return model
