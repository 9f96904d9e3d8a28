"""What the artist sees: schemas and glue, one file a family of nodes."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from .adaptive import ApprenticeSampler
from .calibrate import ApprenticeCalibrate, ApprenticeLoadCalibration
from .cascade import ApprenticeCascadeOracle
from .critics import ApprenticeClassify, ApprenticeDomainText, ApprenticeLoadPromptKD, ApprenticePromptKDOracle, ApprenticeSort
from .distill import ApprenticeSiDDistill
from .edm import ApprenticeLoadEDM, ApprenticeSiDSampler
from .explore import ApprenticeExplore, ApprenticePictureSource, ApprenticeSource
from .finetune import ApprenticeRewardCurve, ApprenticeRewardFinetune
from .guard import guarded
from .judge import ApprenticeJudge, ApprenticeKeepBetter
from .oracles import ApprenticeBestOf, ApprenticeCombineOracles, ApprenticeLoadOracle, ApprenticeOracleCompare, ApprenticeScore
from .places import placed
from .promptkd import ApprenticePromptKDDistill, ApprenticePromptKDTeacher
from .report import ApprenticeReport, ApprenticeSaveImages
from .sample import ApprenticeFastDecode, ApprenticeStudentSampler, ApprenticeTeacher, ApprenticeTeacherCost
from .split import ApprenticeMerge, ApprenticeSplit
from .start import ApprenticeTiltedStart
from .students import ApprenticeLoadStudent
from .taste import ApprenticeLoadTaste, ApprenticeTaste
from .taste_finetune import ApprenticeTasteFinetune
from .world import ApprenticePrompts, ApprenticeTinyWorld

NODES: list[type[io.ComfyNode]] = [
    ApprenticeTinyWorld,
    ApprenticePrompts,
    ApprenticeStudentSampler,
    ApprenticeJudge,
    ApprenticeTeacher,
    ApprenticeKeepBetter,
    ApprenticeSampler,
    ApprenticeReport,
    ApprenticeSaveImages,
    ApprenticeCalibrate,
    ApprenticeLoadCalibration,
    ApprenticeLoadOracle,
    ApprenticeScore,
    ApprenticeBestOf,
    ApprenticeCombineOracles,
    ApprenticeOracleCompare,
    ApprenticeFastDecode,
    ApprenticeTeacherCost,
    ApprenticeLoadStudent,
    ApprenticeLoadEDM,
    ApprenticeSiDSampler,
    ApprenticeSiDDistill,
    ApprenticePromptKDTeacher,
    ApprenticePromptKDDistill,
    ApprenticeLoadPromptKD,
    ApprenticeClassify,
    ApprenticeSort,
    ApprenticePromptKDOracle,
    ApprenticeDomainText,
    ApprenticeRewardFinetune,
    ApprenticeRewardCurve,
    ApprenticeTiltedStart,
    ApprenticeTaste,
    ApprenticeLoadTaste,
    ApprenticeSplit,
    ApprenticeMerge,
    ApprenticeExplore,
    ApprenticeSource,
    ApprenticePictureSource,
    ApprenticeCascadeOracle,
    ApprenticeTasteFinetune,
]


class ApprenticeExtension(ComfyExtension):
    """The pack, as ComfyUI asks for it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes."""
        return NODES


for _node in NODES:
    guarded(placed(_node))
