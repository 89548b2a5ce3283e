"""What every promptable model of the family offers to the session, whatever its configuration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional, Tuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .calibration import Calibration

if TYPE_CHECKING:
    from .proposal_head import ProposalMaps


@dataclass
class Embedding:
    """What an encoder makes of a crop; computed once, decoded for every click.

    Attributes:
        tokens: (B, C, 8, 8, 8) features at stride 16.
        finer: what a multi-scale decoder reads besides (famsam only).
    """

    tokens: Tensor
    finer: Any = None


class PromptableModel(nn.Module, ABC):
    """Encode a crop once, decode masks from prompts as often as wanted.

    Class attributes tell the session how crops are to be made for this model.
    """

    config: Any
    """The sizes it was built with: a ``FamsamConfig`` or a ``Sam3DConfig``."""
    name: str = ""
    """The configuration's name: "famsam", "fastsam3d" or "sam_med3d"."""
    crop_size: int = 128
    """Voxels along each edge of a crop."""
    scout_size: Optional[int] = None
    """Voxels along each edge of a smaller crop that it takes as well, good enough to choose a view by; or None."""
    mask_size: int = 64
    """Voxels along each edge of the low-resolution logits that ``decode`` gives and takes."""
    crop_axes: str = "zyx"
    """Order of a crop's three spatial axes (and of point coordinates): "zyx", or "xyz" as the published code has it."""
    spacing_mm: Optional[float] = None
    """The one spacing that the model was trained at, or None if it takes crops of any spacing."""
    takes_boxes: bool = False
    """True if labels 2 and 3 (a box's lower and upper corner) are understood by ``decode``."""
    newest_point_only: bool = False
    """True if the model was made to get only the newest point, with the previous logits, at every click."""
    ignores_padding: bool = False
    """True if prompts of label -1 change nothing, however many there are."""
    one_way: bool = False
    """True if a positive click is only to add to the mask and a negative one only to take away."""
    follows_edges: bool = False
    """True if masks are to follow the scan's edges between the logits' voxels; see ``guided_filter``."""
    several_at_first: bool = False
    """True if what one click shows is to be the most trusted of the alternatives that ``decode`` gives for it
    (``multimask``): one click is ambiguous, and they were learnt for that (SAM, Kirillov et al. 2023, section 3)."""
    least_added: float = 0.0
    """Where clicks go one way, a positive one adds what has a larger logit; see ``prompt_maps.restrained``."""
    fast_on_cpu: Tuple[str, ...] = ("bf16",)
    """Precisions that may make this model faster than fp32 on a CPU: what precision "auto" chooses from there."""
    precision: str = "fp32"
    """What ``runtime.autocast(model.device, model.precision)`` is given around ``encode`` and ``decode``; set by
    ``load_model``. The parameters themselves stay fp32."""

    calibration: Calibration = Calibration()
    """Corrects probabilities and predicted IoU outside of the network; comes with the weights file."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and where crops and prompts must be."""
        return next(self.parameters()).device

    @abstractmethod
    def normalise(self, crop_B1ZYX: Tensor, inside_B1ZYX: Tensor) -> Tensor:
        """Raw intensities to what ``encode`` expects.

        Args:
            crop_B1ZYX: (B, 1, 128, 128, 128) intensities as stored in the scan, zero outside the scan.
            inside_B1ZYX: the same shape, bool: which voxels lie inside the scan.
        """

    @abstractmethod
    def encode(self, crop_B1ZYX: Tensor) -> Embedding:
        """(B, 1, 128, 128, 128), normalised -> the embedding that ``decode`` reads."""

    @abstractmethod
    def decode(
        self,
        embedding: Embedding,
        points_BN3: Tensor,
        labels_BN: Tensor,
        mask_logits_B1zyx: Optional[Tensor] = None,
        multimask: bool = False,
    ) -> Tuple[Tensor, Tensor]:
        """Prompts to masks.

        Args:
            embedding: what ``encode`` returned.
            points_BN3: (B, N, 3) crop voxel indices, axes as ``crop_axes``.
            labels_BN: (B, N): 1 positive, 0 negative, -1 padding (2, 3 box corners where ``takes_boxes``).
            mask_logits_B1zyx: the previous low-resolution logits, or None.
            multimask: three alternatives for an ambiguous prompt instead of one mask.

        Returns:
            logits (B, M, z, y, x) at the model's low resolution and the predicted IoU (B, M).
        """

    @property
    def proposes(self) -> bool:
        """True if ``propose`` works."""
        return False

    def propose(self, embedding: Embedding) -> ProposalMaps:
        """Coarse masks without a prompt, of whatever the model takes for a structure.

        Raises:
            ConfigError: the weights come without a head for it.
        """
        raise ConfigError(
            f"Expected a model with a proposal head, got {self.name} without one. Train one onto the weights of a "
            "famsam model with `famsam train-proposals OUTPUT --model WEIGHTS`, and load what it writes."
        )

    def first_mask_logits(self, batch: int = 1) -> Optional[Tensor]:
        """What ``decode`` is to get as previous logits before there are any: None, or (batch, 1, z, y, x)."""
        return None
