"""The API's requests and answers as types; FastAPI checks them and writes the OpenAPI description from them."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import Annotated, Literal

Millimetres = Annotated[float, Field(ge=-1e5, le=1e5, allow_inf_nan=False)]
Point = Annotated[List[Millimetres], Field(min_length=3, max_length=3)]
VoxelIndex = Annotated[int, Field(ge=0, le=1 << 20)]
Voxel = Annotated[List[VoxelIndex], Field(min_length=3, max_length=3)]
VoxelBox = Annotated[List[Voxel], Field(min_length=2, max_length=2)]
Size = Annotated[List[int], Field(min_length=3, max_length=3)]
Lengths = Annotated[List[float], Field(min_length=3, max_length=3)]
Matrix = Annotated[List[Annotated[List[float], Field(min_length=4, max_length=4)]], Field(min_length=4, max_length=4)]
Colour = Annotated[str, Field(pattern=r"^#[0-9A-Fa-f]{6}$", description="red, green, blue as #rrggbb")]
BINARY: Dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


class Body(BaseModel):
    """A request; unknown fields are refused, so that a misspelt one does not go unnoticed."""

    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """What went wrong, in a sentence that may be shown to the user."""

    detail: str
    code: Annotated[str, Field(description="a word for programs, such as not_found, superseded or busy")]


class ServerInfo(BaseModel):
    name: Literal["famsam"] = "famsam"
    version: str
    model: str
    device: str
    proposes: Annotated[bool, Field(description="whether the model's weights have a head for proposals")]
    paths_allowed: bool
    limits: Dict[str, float]


class PathRequest(Body):
    path: Annotated[str, Field(min_length=1, max_length=4096, description="a file or DICOM folder on the server")]


class VolumeInfo(BaseModel):
    id: str
    size_xyz: Size
    spacing_mm: Lengths
    ras_from_ijk: Annotated[Matrix, Field(description="(x, y, z) index -> RAS mm")]
    display_from_ijk: Annotated[
        Matrix, Field(description="(x, y, z) index -> index in image.nii: the same voxels, axes permuted and flipped")
    ]
    value_range: Annotated[List[float], Field(min_length=2, max_length=2)]
    modality: Annotated[str, Field(description="as DICOM names it, or empty")]
    is_dicom: Annotated[bool, Field(description="whether a DICOM SEG can be exported")]
    notes: Annotated[List[str], Field(description="what the user should know of it, such as that slices are missing")]


class SessionInfo(BaseModel):
    id: str
    volume_id: str


class PointRequest(Body):
    point_ras_mm: Point
    positive: bool = True


class AheadRequest(Body):
    point_ras_mm: Point


class AheadAnswer(BaseModel):
    more: Annotated[bool, Field(description="whether there may be more to prepare: ask again while nothing else is up")]


class MoveRequest(Body):
    point_ras_mm: Point
    continues: Annotated[bool, Field(description="a drag goes on: takes the place of the last move in the history")] = (
        False
    )


class BoxRequest(Body):
    corners_ras_mm: Annotated[
        List[Point], Field(min_length=2, max_length=2, description="two opposite corners, in any order")
    ]
    along_scan: Annotated[
        bool, Field(description="of a box along the scan's own axes, as drawn on its slices; else along the RAS axes")
    ] = False


class MaskRequest(Body):
    box_zyx: Annotated[
        Optional[VoxelBox], Field(description="half-open box that the bits fill; null for the whole image")
    ] = None
    bits: Annotated[str, Field(max_length=32 << 20, description="bits, x fastest, lowest first; zlib; base64")]
    quality: Annotated[
        float, Field(ge=0, le=1, allow_inf_nan=False, description="predicted overlap (IoU), if it is a candidate")
    ] = 0.0


class ProposalRequest(Body):
    """How candidates are looked for; what is left out is as ``famsam.proposing.ProposalOptions`` has it."""

    most: Annotated[int, Field(ge=1, le=64, description="at most so many candidates")] = 10
    views: Annotated[int, Field(ge=1, le=64, description="at most so many views are looked at")] = 9
    per_view: Annotated[int, Field(ge=1, le=32, description="peaks of the promised quality scouted in a view")] = 12
    closely: Annotated[int, Field(ge=1, le=64, description="masks that scouts saw and that are looked at in full")] = 16
    least_promise: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.1
    least_quality: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.25
    overlap: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, description="IoU above which one stays")] = 0.6
    least_voxels: Annotated[int, Field(ge=0, le=1 << 40)] = 20
    finest_voxels: Annotated[float, Field(gt=0, le=1e3, description="share of the scan's spacing")] = 0.5


class CandidateAnswer(BaseModel):
    box_zyx: Annotated[VoxelBox, Field(description="half-open box that holds the mask")]
    bits: Annotated[str, Field(description="the mask in that box: bits, x fastest, lowest first; zlib; base64")]
    quality: Annotated[float, Field(description="predicted overlap (IoU) with the structure, 0 to 1")]


class ProposalsAnswer(BaseModel):
    """Candidate masks, the most trusted first; put one as the mask, with its quality, to start from it."""

    candidates: List[CandidateAnswer]


class StateRequest(Body):
    state: Annotated[Dict[str, Any], Field(description="what an earlier answer gave as its state")]


class Update(BaseModel):
    """What an interaction changed."""

    box_zyx: Annotated[
        Optional[VoxelBox],
        Field(description="half-open box around what changed; null if nothing did"),
    ]
    bits: Annotated[str, Field(description="the mask in that box: bits, x fastest, lowest first; zlib; base64")]
    voxels: Annotated[int, Field(description="size of the whole mask")]
    quality: Annotated[Optional[float], Field(description="predicted overlap (IoU) with what is meant, 0 to 1")]
    timings_ms: Dict[str, float]
    can_undo: bool
    can_redo: bool
    state: Annotated[
        Optional[Dict[str, Any]],
        Field(description="the prompts with their history: keep it, and a later session restores from it"),
    ]


class UncertaintyAnswer(BaseModel):
    """The calibrated probability of each voxel around a result."""

    box_zyx: Annotated[
        Optional[VoxelBox], Field(description="half-open box of the map; null if the model saw nothing where it looked")
    ]
    probabilities: Annotated[
        str, Field(description="one byte a voxel of the box, x fastest: 255 is certain; zlib; base64")
    ]
    expected_ml: Annotated[float, Field(description="the sum of all probabilities, as a volume")]


class StateAnswer(BaseModel):
    state: Dict[str, Any]


class ExportedSegment(Body):
    session_id: Annotated[str, Field(max_length=100)]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    colour: Colour


class ExportRequest(Body):
    format: Annotated[
        Literal["nii.gz", "seg.nrrd", "dcm"],
        Field(description="label map, 3D Slicer's segmentation, or DICOM SEG (only for scans that came as DICOM)"),
    ]
    segments: Annotated[List[ExportedSegment], Field(min_length=1, max_length=64)]
