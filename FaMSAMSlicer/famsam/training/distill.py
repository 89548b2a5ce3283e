"""Distillation of a deep network into a shallow one: layer by layer, then by what both make of clicks.

Layer-wise progressive distillation is that of FastSAM3D (Shen et al. 2024, arXiv 2403.09827, eq. 1 and 2): the outputs
of the student's first k blocks learn those of every other block of a teacher twice as deep, and k grows from 1 to all
blocks. Then logit-level distillation: the student's masks learn the teacher's under the same simulated clicks.

Shape legend: B crops or prompts, M masks, C channels, z y x tokens of the encoder's grid, or voxels of the logits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints import load_model
from ..errors import ConfigError
from ..model.base import Embedding, PromptableModel
from ..model.config import to_plain
from ..model.famsam import FamsamConfig
from ..model.sam_config import FASTSAM3D, Sam3DConfig
from . import prompting, team
from .config import CONFIG_NAME, TrainConfig, check_begun_by
from .learner import Decoded, Learner, RoundLoss, Values, label_loss, maybe_recomputed, rounds_of_clicks
from .losses import balance
from .pool import Normalise
from .sample import Dice, Source
from .trainer import Trainer


@dataclass(frozen=True)
class DistillConfig:
    """How a student learns from its teacher."""

    teacher: str = ""
    """The teacher's weights file."""
    layer_fraction: float = 0.5
    """Share of the run that goes to the layers, before the logits; 0 is plain logit-level distillation."""
    unit_scale: bool = False
    """Compare layers that are scaled to norm 1; eq. 1 does not, so that of layers that differ in scale the largest
    decides, and a student spends its time on growing where the teacher's numbers are large."""
    logit_weight: float = 1.0
    """Of the difference to the teacher's masks, in the second part."""
    label_weight: float = 0.5
    """Of the loss against the true masks, in the second part."""
    copy: bool = True
    """Begin with the teacher's own parameters outside the encoder's blocks, wherever names and shapes agree."""

    def __post_init__(self) -> None:
        if not 0 <= self.layer_fraction <= 1:
            raise ConfigError(f"layer_fraction must lie within 0..1, got {self.layer_fraction}.")
        weights = (self.logit_weight, self.label_weight)
        if min(weights) < 0 or (sum(weights) == 0 and self.layer_fraction < 1):
            raise ConfigError(f"logit_weight and label_weight must be at least 0 and not both 0, got {weights}.")


def student_of(teacher: Any) -> Any:
    """The configuration of the student that suits a teacher's: half as deep, the rest alike.

    For ``sam_med3d`` that is FastSAM3D's: half the heads, and no attention in the first third of the blocks.
    """
    if isinstance(teacher, FamsamConfig):
        return dataclasses.replace(teacher, depth=max(1, teacher.depth // 2))
    assert isinstance(teacher, Sam3DConfig)
    depth = max(1, len(teacher.encoder.blocks) // 2)
    encoder = dataclasses.replace(
        teacher.encoder,
        heads=max(1, teacher.encoder.heads // 2),
        blocks=("mlp",) * math.ceil(depth / 3) + ("global",) * (depth - math.ceil(depth / 3)),
        norm_before_residual=FASTSAM3D.encoder.norm_before_residual,
    )
    return dataclasses.replace(teacher, name=FASTSAM3D.name, encoder=encoder)


def layers_to_match(iteration: int, total: int, depth: int) -> int:
    """k of eq. 2: ceil(iteration * depth / total), for iterations 1 to ``total`` of a student of ``depth`` blocks."""
    return -(-iteration * depth // total)


def teacher_layers(student_depth: int, teacher_depth: int) -> List[int]:
    """The teacher's layer (from 1) for each of the student's: 2 i of eq. 1 if it is twice as deep, else in proportion.

    Raises:
        ConfigError: the teacher is shallower than the student.
    """
    if teacher_depth < student_depth:
        raise ConfigError(
            f"The teacher must be at least as deep as the student, got {teacher_depth} and {student_depth} blocks."
        )
    return [i * teacher_depth // student_depth for i in range(1, student_depth + 1)]


def layer_distance(wanted: Tensor, found: Tensor, unit_scale: bool = False) -> Tensor:
    """The L2 norm of eq. 1, mean over the batch, divided by the root of the number of elements.

    The divisor is the same for all layers; without it the value would grow with the size of the network. Where both are
    brought to norm 1 first (``unit_scale``) there is no divisor, and the distance is at most 2.
    """
    pair = [t.float().flatten(1) for t in (wanted, found)]
    if unit_scale:
        pair = [F.normalize(t, dim=1) for t in pair]
    norms = torch.linalg.vector_norm(pair[0] - pair[1], dim=1)
    return norms.mean() if unit_scale else norms.mean() / math.sqrt(wanted[0].numel())


def imitation_loss(logits_BMzyx: Tensor, wanted_BMzyx: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the masks from the wanted ones, (B, M): 0 where the logits agree everywhere.

    Foreground and background weigh about the same, as in ``losses.mask_loss``.
    """
    logits, wanted = logits_BMzyx.float(), wanted_BMzyx.float()
    probability = wanted.sigmoid()
    missed = probability * (F.softplus(-logits) - F.softplus(-wanted))
    alarm = (1 - probability) * (F.softplus(logits) - F.softplus(wanted))
    foreground, background = balance(probability, foreground_weight=2.0)
    axes = (2, 3, 4)
    weight = probability / foreground[..., None, None, None] + (1 - probability) / background[..., None, None, None]
    return 0.5 * ((missed + alarm) * weight).sum(axes)


def encoder_blocks(model: PromptableModel) -> Sequence[nn.Module]:
    """The transformer blocks of a network's encoder, the first one first."""
    encoder = model.encoder if isinstance(model.config, FamsamConfig) else model.image_encoder
    assert isinstance(encoder, nn.Module) and isinstance(encoder.blocks, nn.ModuleList)
    return list(encoder.blocks)


@contextlib.contextmanager
def block_outputs(model: PromptableModel) -> Iterator[List[Tensor]]:
    """Collects what each block of the encoder returns while in this context."""
    found: List[Tensor] = []
    hooks = [b.register_forward_hook(lambda _m, _i, out: found.append(out)) for b in encoder_blocks(model)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def encode_with_layers(
    model: PromptableModel, crop_B1ZYX: Tensor, recompute: bool = False
) -> Tuple[Embedding, List[Tensor]]:
    """The embedding, and the output of each block as (B, z, y, x, C), axes as the crop's."""
    with block_outputs(model) as found:
        embedding = maybe_recomputed(prompting.encode, recompute)(model, crop_B1ZYX)
    channels_last = not isinstance(model.config, FamsamConfig)
    tokens = [out.movedim(-1, 1) if channels_last else out for out in found]
    return embedding, [prompting.in_order(model, t).movedim(1, -1) for t in tokens]


class DistillLearner(Learner):
    """The student with what carries its layers over to the teacher's width; the teacher itself never learns."""

    can_be_planned = False

    def __init__(
        self, student: PromptableModel, teacher: PromptableModel, config: TrainConfig, distill: DistillConfig
    ) -> None:
        super().__init__(student, config)
        self.distill = distill
        self.k = 0
        self.layer_steps = round(distill.layer_fraction * config.steps)
        self._teacher = (teacher,)  # in a tuple, so that it is no part of what learns or is saved
        self.depth = len(encoder_blocks(student))
        self.matched = teacher_layers(self.depth, len(encoder_blocks(teacher)))
        widths = (_width(student), _width(teacher))
        # As in FitNets (Romero et al. 2015): a student of another width is compared through a learned projection.
        self.projections = nn.ModuleList(
            nn.Identity() if widths[0] == widths[1] else nn.Linear(*widths) for _ in self.matched
        )

    @property
    def teacher(self) -> PromptableModel:
        return self._teacher[0]

    @property
    def normalise(self) -> Normalise:
        """To the student's and the teacher's view of a crop, as two channels."""
        return functools.partial(_views, (self.model.normalise, self.teacher.normalise))

    def matched_layers(self, step: int) -> int:
        """k in step ``step`` (from 0) of a run without a budget of time; 0 once the layers are done."""
        return layers_to_match(step + 1, self.layer_steps, self.depth) if step < self.layer_steps else 0

    def forward(self, crops: Tensor, targets: Tensor, dice: Dice, step: int) -> Tuple[Tensor, Values]:
        config = self.config
        self.k = k = self.matched_layers(step)
        names = ["first", "last", "logits", *(f"layer{i + 1}" for i in range(self.depth))]
        values: Values = dict.fromkeys(names, math.nan)
        embedding, layers = encode_with_layers(self.model, crops[:, :1], config.recompute)
        teaching: Optional[Embedding] = None
        distances: List[Tensor] = []
        if k or self.distill.logit_weight:
            with torch.no_grad():
                teaching, wanted = encode_with_layers(self.teacher, crops[:, 1:])
            distances = self._distances(layers, wanted)
            values.update({f"layer{i + 1}": d.detach() for i, d in enumerate(distances)})
        if k:
            return torch.stack(distances[:k]).mean(), values
        round_loss = self._round_loss(teaching, targets, values)
        loss, values["first"], values["last"] = rounds_of_clicks(
            self.model, embedding, targets, self.plan(dice), config, dice, round_loss
        )
        return loss, values

    def _distances(self, layers: Sequence[Tensor], wanted: Sequence[Tensor]) -> List[Tensor]:
        """The distance of each of the student's layers to the teacher's."""
        grids = [tuple(tensors[0].shape[1:4]) for tensors in (layers, wanted)]
        if grids[0] != grids[1]:
            raise ConfigError(f"Student and teacher must have the same grid of tokens, got {grids[0]} and {grids[1]}.")
        pairs = zip(self.projections, layers, self.matched)
        return [layer_distance(wanted[i - 1], project(x), self.distill.unit_scale) for project, x, i in pairs]

    def _round_loss(self, teaching: Optional[Embedding], targets: Tensor, values: Values) -> RoundLoss:
        of_labels = label_loss(self.config, targets)
        if teaching is not None:
            teaching = prompting.expand(teaching, len(targets) // len(teaching.tokens))

        def loss(
            decoded: Decoded, given: Tuple[Tensor, Tensor, Optional[Tensor]], first: bool
        ) -> Tuple[Tensor, Tensor]:
            against_labels, dice_score = of_labels(decoded, given, first)
            total = self.distill.label_weight * against_labels
            if teaching is not None and self.distill.logit_weight:
                with torch.no_grad():
                    wanted, wanted_quality = prompting.decode(self.teacher, teaching, *given, several=first)
                count = min(decoded[0].shape[1], wanted.shape[1])
                imitation = imitation_loss(decoded[0][:, :count], wanted[:, :count]).mean()
                values["logits"] = imitation.detach()
                imitation = imitation + F.mse_loss(decoded[1][:, :count].float(), wanted_quality[:, :count].float())
                total = total + self.distill.logit_weight * imitation
            return total, dice_score

        return loss


class Distiller(Trainer):
    """A run that distils; see ``Trainer`` for the folder, resuming and the other arguments.

    Args:
        distill: how, and from which teacher.
        student: the student's configuration; None for that of a run begun, or ``student_of`` the teacher.

    Raises:
        CheckpointError: the teacher cannot be loaded.
        ConfigError: the two networks do not go together.
    """

    command = "distill"

    def __init__(
        self,
        directory: Union[str, Path],
        source: Source,
        distill: DistillConfig,
        config: Optional[TrainConfig] = None,
        student: Any = None,
        device: Optional[torch.device] = None,
        workers: int = 0,
    ) -> None:
        check_begun_by(self.command, directory)
        if not distill.teacher:
            raise ConfigError("A distillation needs the teacher's weights file, got none.")
        self.distill = distill
        self.teacher = load_model(distill.teacher, str(device or "cpu"), "fp32", paused_share=0.0)
        if student is None and not team.given((Path(directory) / CONFIG_NAME).exists()):
            student = student_of(self.teacher.config)
        super().__init__(directory, source, config, student, device, workers=workers)

    def _make_learner(self) -> Learner:
        for _, size, _ in self.config.sizes:
            prompting.check_crop_size(self.teacher, size)
        if self.distill.copy:
            copy_parameters(self.teacher, self.model)
        return DistillLearner(self.model, self.teacher, self.config, self.distill)

    def _settings(self) -> Dict[str, Any]:
        return {**super()._settings(), "distill": to_plain(self.distill)}

    def _log(self, values: Dict[str, float], scores: Sequence[float]) -> None:
        assert isinstance(self.learner, DistillLearner)
        super()._log({"k": self.learner.k, **values}, scores)


def copy_parameters(teacher: PromptableModel, student: PromptableModel) -> List[str]:
    """Give the student the teacher's tensors outside the encoder's blocks where names and shapes agree; their names."""
    own = student.state_dict()
    in_blocks = ("encoder.blocks.", "image_encoder.blocks.")
    fitting = {
        name: tensor
        for name, tensor in teacher.state_dict().items()
        if name in own and own[name].shape == tensor.shape and not name.startswith(in_blocks)
    }
    student.load_state_dict(fitting, strict=False)
    return list(fitting)


def _views(networks: Sequence[Normalise], crop_B1ZYX: Tensor, inside_B1ZYX: Tensor) -> Tensor:
    """What each network sees of a crop, a channel for each."""
    return torch.cat([normalise(crop_B1ZYX, inside_B1ZYX).float() for normalise in networks], dim=1)


def _width(model: PromptableModel) -> int:
    config = model.config
    return int(config.token_channels if isinstance(config, FamsamConfig) else config.encoder.width)
